"""Which inputs of a product count: the largest ones, or those from a threshold on.

Top-k by magnitude is exact: bisection over the 31 bits of the magnitudes, each step a count that vectors do fast; of
equal magnitudes the first ones are kept. O(n), and the same on every machine.
"""
from libc.math cimport fabsf
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy

from lowbit._kernels.dispatch cimport table

import numpy as np


cdef inline int32_t magnitude(const float *x) noexcept nogil:
    cdef int32_t bits
    memcpy(&bits, x, 4)
    return bits & 0x7fffffff


cdef int32_t magnitude_from(const float *x, int32_t n, int32_t k, int32_t *equal) noexcept nogil:
    """Magnitudes above the result are among the k largest, and the first `equal` of those that are the result.

    Bisection, bit by bit from the highest one, until k magnitudes are left, or nothing but equal ones.
    """
    cdef int32_t found = 0, trial, count, bit
    equal[0] = n
    for bit in range(30, -1, -1):
        trial = found | <int32_t>1 << bit
        count = table.count_from(x, n, trial)
        if count == k:
            return trial
        if count > k:
            found = trial
    equal[0] = k - table.count_from(x, n, found + 1)
    return found


cdef void keep_largest(float *x, int32_t n, int32_t k) noexcept nogil:
    """Set all but the k largest magnitudes to 0; 1 <= k <= n."""
    cdef int32_t i, equal, m, bits, limit
    if k >= n:
        return
    limit = magnitude_from(x, n, k, &equal)
    if equal == n:
        for i in range(n):          # without a branch, which no processor could foresee
            memcpy(&bits, x + i, 4)
            bits = bits if (bits & 0x7fffffff) >= limit else 0
            memcpy(x + i, &bits, 4)
        return
    for i in range(n):
        m = magnitude(x + i)
        if m < limit:
            x[i] = 0
        elif m == limit:
            if equal == 0:
                x[i] = 0
            else:
                equal -= 1


cdef void keep_from(float *x, int32_t n, float threshold) noexcept nogil:
    """Set magnitudes below the threshold to 0."""
    cdef int32_t i
    for i in range(n):
        x[i] = x[i] if fabsf(x[i]) >= threshold else 0


cdef void count_magnitudes(const float *x, int32_t n, uint32_t *counts) noexcept nogil:
    """Count each magnitude at the upper 16 bits of its float32 without the sign: 256 places for each power of two."""
    cdef int32_t i
    for i in range(n):
        counts[magnitude(x + i) >> 15] += 1


def top_k(const float[::1] x not None, int64_t k):
    """Find the k largest magnitudes.

    Parameters
    ----------
    x : ndarray of float32, shape (n,), may be read-only
    k : int
        From 0 to n.

    Returns
    -------
    ndarray of int32, shape (k,)
        Their places, ascending. Of equal magnitudes the first ones are taken.

    Raises
    ------
    ValueError
        If `k` is out of range, or a value is NaN.
    """
    cdef int32_t i, equal, found = 0, n = x.shape[0]
    cdef int32_t m, limit
    cdef int32_t[::1] out
    if not 0 <= k <= n:
        raise ValueError(f"k must be from 0 to {n}, not {k}")
    for i in range(n):
        if magnitude(&x[i]) > 0x7f800000:
            raise ValueError(f"value {i} is not a number")
    result = np.empty(k, np.int32)
    if k == 0:
        return result
    out = result
    limit = magnitude_from(&x[0], n, k, &equal)
    for i in range(n):
        m = magnitude(&x[i])
        if m > limit or (m == limit and equal > 0):
            equal -= m == limit
            out[found] = i
            found += 1
    return result


def largest_kept(const float[:, ::1] x not None, int64_t k):
    """Return a copy of float32 rows, shape (m, n), that keeps the k largest magnitudes of each; the rest is 0."""
    cdef float[:, ::1] out
    cdef int64_t i
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k must be from 1 to {x.shape[1]}, not {k}")
    result = np.array(x)
    out = result
    for i in range(x.shape[0]):
        keep_largest(&out[i, 0], x.shape[1], k)
    return result
