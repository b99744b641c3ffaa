"""Products of packed matrices: split over the row groups, for the forward pass and for Python callers."""
from libc.stdint cimport int8_t, int32_t, int64_t

from lowbit._kernels.dispatch cimport (
    LB_PREPARED_STEP, LB_PREPARED_TILE, LB_PREPARED_TOKENS, LB_ROWS, begin_floats, end_floats, lb_activations,
    lb_float_mode, lb_matmul_args, lb_matrix, lb_row_groups, lb_units, parallel, streams, table,
)
from lowbit._kernels.matrix cimport PackedMatrix, aligned, group_code_bytes, is_float, padded_cols, row_stride

import numpy as np

from lowbit.errors import FormatError

cdef enum:
    CHUNK_BYTES = 192 << 10     # weights a thread takes at a time: long enough to stream, short enough to share out


cdef struct Products:
    const lb_matmul_args *each
    int32_t n
    int32_t streams         # row groups of a unit
    void *prepared          # or NULL: then units are of LB_PREPARED_STEP row groups


cdef void multiply_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Units, counted through all products: row groups, or some of them that lie far apart (`lb_streams_fn`)."""
    cdef const Products *c = <const Products *>context
    cdef const lb_matmul_args *args
    cdef int32_t i, units, row_groups
    if c.prepared != NULL:
        row_groups = lb_row_groups(c.each.w.n_rows)
        table.matmul_prepared(c.each, c.prepared, begin * LB_PREPARED_STEP, min(end * LB_PREPARED_STEP, row_groups))
        return
    for i in range(c.n):
        args = &c.each[i]
        units = lb_units(lb_row_groups(args.w.n_rows), c.streams)
        if end <= 0:
            break
        if begin < units and c.streams == 1:
            table.matmul[args.w.format](args, max(begin, 0), min(end, units))
        elif begin < units:
            table.streams(args, c.streams, max(begin, 0), min(end, units))
        begin -= units
        end -= units


cdef void multiply_all(const lb_matmul_args *products, int32_t n, int32_t threads) noexcept nogil:
    """Products with matrices of one kind, on several threads where that pays.

    A job costs about a microsecond to hand out.
    """
    cdef Products all
    cdef const lb_matrix *w = products[0].w
    cdef int32_t units = 0, chunk, i
    cdef int64_t work = 0
    all.each, all.n, all.streams, all.prepared = products, n, 1 if is_float(w.format) else streams, NULL
    for i in range(n):
        if products[i].x.n_tokens != 1:
            all.streams = 1
    for i in range(n):
        units += lb_units(lb_row_groups(products[i].w.n_rows), all.streams)
        work += <int64_t>lb_row_groups(products[i].w.n_rows) * LB_ROWS * w.n_cols * products[i].x.n_tokens
    if threads <= 1 or work < (1 << 18 if is_float(w.format) else 1 << 20):
        parallel(multiply_work, &all, units, units, 1)
        return
    chunk = <int32_t>min(<int64_t>units // (threads * 4),
                         CHUNK_BYTES // (all.streams * <int64_t>group_code_bytes(w)))
    parallel(multiply_work, &all, units, chunk if chunk > 1 else 1, threads)


cdef void prepare_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef const Products *c = <const Products *>context
    table.prepare(c.each, c.prepared, begin, end)


cdef void multiply_prepared(lb_matmul_args *one, void *memory, int32_t threads) noexcept nogil:
    """The product of many tokens: as many of them at a time as can be prepared, in parts of about the same size."""
    cdef lb_activations x = one.x[0], part = x
    cdef int32_t parts = lb_units(x.n_tokens, LB_PREPARED_TOKENS), token = 0, left, n, units
    cdef Products all
    all.each, all.n, all.streams, all.prepared = one, 1, 1, memory
    units = lb_units(lb_row_groups(one.w.n_rows), LB_PREPARED_STEP)
    if <int64_t>one.w.n_rows * one.w.n_cols * x.n_tokens < 1 << 20:
        threads = 1
    one.x = &part
    for n in range(parts, 0, -1):
        left = x.n_tokens - token
        part.n_tokens = min(left, lb_units(left, n * LB_PREPARED_TILE) * LB_PREPARED_TILE)
        part.q = x.q + <ptrdiff_t>token * x.stride
        part.sum = x.sum + <ptrdiff_t>token * x.n_groups
        part.scale = x.scale + <ptrdiff_t>token * x.n_groups if x.scale != NULL else NULL
        parallel(prepare_work, &all, lb_units(part.n_tokens, LB_PREPARED_TILE), 1, threads)
        parallel(multiply_work, &all, units, max(1, units // (threads * 4)), threads)
        if one.sums != NULL:
            one.sums += part.n_tokens * one.y_stride
        else:
            one.y += part.n_tokens * one.y_stride
        token += part.n_tokens


cdef size_t prepared_bytes(const lb_matrix *w, int32_t n_tokens) noexcept nogil:
    """Memory that `multiply` can use for so many tokens, or for as many as it takes at a time."""
    return table.prepared_bytes(w, min(n_tokens, LB_PREPARED_TOKENS))


cdef void multiply(const lb_matrix *w, const lb_activations *x, float *y, int32_t *sums, ptrdiff_t y_stride,
                   int32_t threads, void *memory, size_t nbytes) noexcept nogil:
    """y = x W^T; many tokens are prepared where there is memory enough for it (`prepared_bytes`)."""
    cdef lb_matmul_args one
    cdef size_t needed = prepared_bytes(w, x.n_tokens)
    one.w, one.x, one.y, one.sums, one.y_stride = w, x, y, sums, y_stride
    if 0 < needed <= nbytes:
        multiply_prepared(&one, memory, threads)
    else:
        multiply_all(&one, 1, threads)


cdef char[::1] room(PackedMatrix w, int64_t n_tokens):
    """Memory of `prepared_bytes` for `multiply`, or None."""
    cdef size_t nbytes = prepared_bytes(&w.m, <int32_t>min(n_tokens, <int64_t>LB_PREPARED_TOKENS))
    if not nbytes:
        return None
    memory = np.empty(nbytes + 63, np.int8)     # loads of 64 bytes are faster where they do not straddle lines
    first = -memory.ctypes.data % 64
    return memory[first:first + nbytes]


def matmul_sums(PackedMatrix w not None, const int8_t[:, ::1] x, int32_t threads=1):
    """Multiply packed integer weights by int8 activations.

    Parameters
    ----------
    w : PackedMatrix, n rows of k integer weights with one scale per row
    x : ndarray of int8, shape (m, k), C-contiguous, may be read-only
        For ``u8`` weights at least -127.
    threads : int

    Returns
    -------
    ndarray of int32, shape (m, n)
        Exact sums of (code - offset) * x, unscaled.

    Raises
    ------
    FormatError
        If k differs, or the weights have several scales per row or are floats.
    """
    cdef lb_activations a
    cdef int32_t[:, ::1] out, sums
    cdef int8_t[:, ::1] padded
    cdef char[::1] memory
    cdef int64_t m = x.shape[0]
    if w.m.tiles:
        raise FormatError("a channel-major matrix takes sparse products")
    if is_float(w.m.format) or w.m.n_groups != 1:
        raise FormatError("integer sums need integer weights with one scale per row")
    if x.shape[1] != w.m.n_cols:
        raise FormatError(f"activations of {x.shape[1]} columns do not fit weights of {w.m.n_cols}")
    result = np.empty((m, w.m.n_rows), np.int32)
    if m == 0:
        return result
    source = np.asarray(x)
    whole = np.zeros((m, padded_cols(&w.m)), np.int8)
    whole[:, :w.m.n_cols] = source
    total = source.sum(1, dtype=np.int32, keepdims=True)
    padded, sums, out = whole, total, result
    a.q, a.sum, a.scale, a.x = &padded[0, 0], &sums[0, 0], NULL, NULL
    a.stride, a.n_groups, a.n_tokens = padded.shape[1], 1, m
    memory = room(w, m)
    with nogil:
        multiply(&w.m, &a, NULL, &out[0, 0], w.m.n_rows, threads,
                 NULL if memory is None else &memory[0], 0 if memory is None else memory.shape[0])
    return result


def quantize_activations(PackedMatrix w not None, const float[:, ::1] x, bint per_token=False):
    """Quantise activations to int8, as the product with `w` does.

    Parameters
    ----------
    w : PackedMatrix of integer weights, (n, k)
    x : ndarray of float32, shape (m, k)
    per_token : bool
        One scale per token (BitNet) rather than one per scale group of `w`.

    Returns
    -------
    q : ndarray of int8, shape (m, padded k)
        round(x * s), half to even, with s = 127 / max(max|x|, 1e-5).
    scale : ndarray of float32, shape (m, n_groups)
        1 / s
    sums : ndarray of int32, shape (m, n_groups)
        Sums of q over the groups.
    """
    cdef int8_t[:, :] q
    cdef float[:, ::1] scale
    cdef int32_t[:, ::1] sums
    cdef lb_float_mode mode
    cdef int64_t i
    if is_float(w.m.format) or x.shape[1] != w.m.n_cols:
        raise FormatError(f"activations of {x.shape[1]} columns do not fit {w!r}")
    x = aligned(x)
    q_out = np.empty((x.shape[0], row_stride(&w.m)), np.int8)[:, :padded_cols(&w.m)]
    scale_out = np.empty((x.shape[0], w.m.n_groups), np.float32)
    sums_out = np.empty((x.shape[0], w.m.n_groups), np.int32)
    q, scale, sums = q_out, scale_out, sums_out
    mode = begin_floats()
    for i in range(x.shape[0]):
        table.quantize(&x[i, 0], w.m.n_cols, w.m.group_cols, per_token, padded_cols(&w.m), &q[i, 0], &scale[i, 0],
                       &sums[i, 0])
    end_floats(mode)
    return q_out, scale_out, sums_out


cdef class Activations:
    """Activations as the product with a matrix wants them, and the memory that they lie in."""

    def __cinit__(self, PackedMatrix w not None, const float[:, ::1] x not None, bint per_token):
        if x.shape[1] != w.m.n_cols:
            raise FormatError(f"activations of {x.shape[1]} columns do not fit weights of {w.m.n_cols}")
        self.a.n_groups, self.a.n_tokens = w.m.n_groups, x.shape[0]
        if x.shape[0] == 0:
            return
        if is_float(w.m.format):
            self.x = aligned(x)
            self.a.x, self.a.stride = &self.x[0, 0], self.x.shape[1]
        else:
            self.q, self.scale, self.sums = quantize_activations(w, x, per_token)
            self.a.q, self.a.scale, self.a.sum = &self.q[0, 0], &self.scale[0, 0], &self.sums[0, 0]
            self.a.stride = self.q.strides[0]


def matmul(PackedMatrix w not None, const float[:, ::1] x, bint per_token=False, int32_t threads=1):
    """Multiply packed weights of any format by float activations: x W^T.

    Integer weights quantise the activations to int8 first (`quantize_activations`); float weights do not.

    Parameters
    ----------
    w : PackedMatrix, (n, k)
    x : ndarray of float32, shape (m, k), C-contiguous, may be read-only
    per_token : bool
        One int8 scale per token rather than one per scale group.
    threads : int

    Returns
    -------
    ndarray of float32, shape (m, n)
        The same bits on every instruction set and for any number of threads.

    Raises
    ------
    FormatError
        If k differs.
    """
    cdef Activations activations
    cdef float[:, ::1] out
    cdef char[::1] memory
    if w.m.tiles:
        raise FormatError("a channel-major matrix takes sparse products")
    activations = Activations(w, x, per_token)
    result = np.empty((x.shape[0], w.m.n_rows), np.float32)
    if x.shape[0] == 0:
        return result
    out = result
    memory = room(w, x.shape[0])
    with nogil:
        multiply(&w.m, &activations.a, &out[0, 0], NULL, w.m.n_rows, threads,
                 NULL if memory is None else &memory[0], 0 if memory is None else memory.shape[0])
    return result
