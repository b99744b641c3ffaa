"""Ternary weights: packing for Python callers, and the portable product.

The portable product multiplies nothing by a weight. A byte of codes holds four weights, so for four activations there
are 81 possible sums: they are made once with additions and subtractions, and every row then looks its sum up.

    byte of row r, word t, byte b:   | field 3 | field 2 | field 1 | field 0 |      two bits each, weight = code - 1
    table of (t, b):                 sum over the fields of weight * x[4 W field + 4 t + b]

A block of 128 columns has 32 bytes per row, so 32 tables of 256 int16 (a sum is at most 4 * 128 = 512): 16 KB, which
stay in the first cache while 1024 rows use them. The sums of a row are int32: at most 128 * n_cols < 2**31.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.string cimport memset

from lowbit._kernels.dispatch cimport (
    LB_ROWS, LB_U2, lb_activations, lb_matmul_args, lb_matrix, register_portable_ternary,
)
from lowbit._kernels.matrix cimport PackedMatrix

import numpy as np

from lowbit._kernels.products import matmul_sums
from lowbit.errors import FormatError


cdef extern from "half.h":
    float lb_half_to_float(unsigned short h) noexcept nogil

cdef enum:
    STRIP = 64          # row groups that share one set of tables
    TABLES = 32         # bytes of a block's row


cdef void make_table(const int8_t *x, int32_t field, int16_t *sums) noexcept nogil:
    """All sums of four activations, field columns apart, times -1, 0 or +1."""
    cdef int32_t a, b, c, d
    cdef int16_t s3, s2, s1
    cdef int16_t x0 = x[0], x1 = x[field], x2 = x[2 * field], x3 = x[3 * field]
    s3 = -x3
    for d in range(3):
        s2 = s3 - x2
        for c in range(3):
            s1 = s2 - x1
            for b in range(3):
                a = d << 6 | c << 4 | b << 2
                sums[a] = s1 - x0
                sums[a + 1] = s1
                sums[a + 2] = s1 + x0
                s1 += x1
            s2 += x2
        s3 += x3


cdef void matmul_u2(const lb_matmul_args *args, int32_t begin, int32_t end) noexcept nogil:
    cdef const lb_matrix *m = args.w
    cdef const lb_activations *a = args.x
    cdef int16_t tables[TABLES][256]
    cdef int32_t sums[STRIP][LB_ROWS]
    cdef float y[STRIP][LB_ROWS]
    cdef int32_t block_words = m.block_cols // 16
    cdef int32_t token, strip, strips, n_strip, g, group_words, words, word, i, t, r, rows
    cdef const int8_t *x
    cdef const uint8_t *w
    cdef float scale, x_scale
    cdef size_t at
    memset(tables, 0, sizeof(tables))
    for token in range(a.n_tokens):
        for strips in range((end - begin + STRIP - 1) // STRIP):
            strip = begin + strips * STRIP
            n_strip = min(<int32_t>STRIP, end - strip)
            x = a.q + <size_t>token * a.stride
            memset(y, 0, sizeof(y))
            word = 0
            for g in range(m.n_groups):
                group_words = m.words if g == m.n_groups - 1 else word + m.group_cols // m.block_cols * block_words
                memset(sums, 0, sizeof(sums))
                while word < group_words:
                    words = min(group_words - word, block_words)
                    for t in range(words):
                        for i in range(4):
                            make_table(x + 4 * t + i, 4 * words, tables[4 * t + i])
                    for i in range(n_strip):
                        w = m.codes + (<size_t>(strip + i) * m.words + word) * 64
                        for t in range(words):
                            for r in range(LB_ROWS):
                                sums[i][r] += (tables[4 * t][w[4 * r]] + tables[4 * t + 1][w[4 * r + 1]]
                                               + tables[4 * t + 2][w[4 * r + 2]] + tables[4 * t + 3][w[4 * r + 3]])
                            w += 64
                    x += 16 * words
                    word += words
                if args.sums != NULL:
                    continue
                x_scale = a.scale[<size_t>token * a.n_groups + g]
                for i in range(n_strip):
                    for r in range(LB_ROWS):
                        at = (<size_t>(strip + i) * m.n_groups + g) * LB_ROWS + r
                        if m.scales_f16:
                            scale = lb_half_to_float((<const unsigned short *>m.scales)[at])
                        else:
                            scale = (<const float *>m.scales)[at]
                        y[i][r] = y[i][r] + <float>sums[i][r] * (scale * x_scale)
            for i in range(n_strip):
                rows = min(<int32_t>LB_ROWS, m.n_rows - (strip + i) * LB_ROWS)
                at = token * args.y_stride + <size_t>(strip + i) * LB_ROWS
                for r in range(rows):
                    if args.sums != NULL:
                        args.sums[at + r] = sums[i][r]
                    else:
                        args.y[at + r] = y[i][r]


register_portable_ternary(matmul_u2)


def pack_ternary(w, float scale=1.0):
    """Pack ternary weights, four to a byte.

    Parameters
    ----------
    w : array of integers -1, 0 or +1, shape (n, k)
    scale : float
        Value of a weight +1.

    Returns
    -------
    PackedMatrix

    Raises
    ------
    FormatError
        If `w` is not a matrix of -1, 0 and +1, or `scale` is not finite.
    """
    values = np.asarray(w)
    if values.ndim != 2 or values.dtype.kind not in "iub" or 0 in values.shape:
        raise FormatError("ternary weights must be a matrix of integers")
    if values.size and (values.min() < -1 or values.max() > 1):
        raise FormatError("ternary weights must be -1, 0 or +1")
    packed = PackedMatrix("u2", values.shape[0], values.shape[1])
    packed.fill_codes(np.ascontiguousarray(values.astype(np.int8) + 1).view(np.uint8))
    packed.fill_scales(np.full((values.shape[0], 1), scale, np.float32))
    return packed


def unpack_ternary(PackedMatrix packed not None):
    """Return the weights of a packed ternary matrix as int8 -1, 0, +1, shape (n, k)."""
    cdef const lb_matrix *m = &packed.m
    cdef int8_t[:, ::1] out
    cdef int32_t row, words_left, words, start, t, b, f, column
    cdef const uint8_t *w
    if m.format != LB_U2 or m.tiles:
        raise FormatError("not a ternary matrix in row groups")
    result = np.empty((m.n_rows, m.n_cols), np.int8)
    out = result
    for row in range(m.n_rows):
        w = m.codes + <size_t>(row // LB_ROWS) * m.words * 64 + row % LB_ROWS * 4
        words_left, start = m.words, 0
        while words_left > 0:
            words = min(words_left, m.block_cols // 16)
            for t in range(words):
                for b in range(4):
                    for f in range(4):
                        column = start + 4 * words * f + 4 * t + b
                        if column < m.n_cols:
                            out[row, column] = <int8_t>(w[t * 64 + b] >> (2 * f) & 3) - 1
            w += words * 64
            words_left -= words
            start += words * 16
    return result


def ternary_matmul(PackedMatrix packed not None, x, int32_t threads=1):
    """Multiply packed ternary weights by int8 activations.

    Parameters
    ----------
    packed : PackedMatrix, n rows of k ternary weights
    x : ndarray of int8, shape (m, k) or (k,), C-contiguous, may be read-only
    threads : int

    Returns
    -------
    ndarray of int32, shape (m, n) or (n,)
        Exact, unscaled sums, equal on every instruction set.

    Raises
    ------
    FormatError
        If k differs between `packed` and `x`, or `x` is not int8.
    """
    if packed.m.format != LB_U2:
        raise FormatError("not a ternary matrix")
    x = np.asarray(x)
    if x.dtype != np.int8 or x.ndim not in (1, 2):
        raise FormatError("activations must be int8, of shape (m, k) or (k,)")
    sums = matmul_sums(packed, np.ascontiguousarray(np.atleast_2d(x)), threads)
    return sums[0] if x.ndim == 1 else sums
