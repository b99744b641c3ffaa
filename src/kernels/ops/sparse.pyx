"""Products that read only the weights of inputs that count.

1. A ternary matrix becomes channel-major (`kernels.h` draws it): what belongs to one input lies together, so that
   inputs that are zero cost neither time nor memory traffic. There is no second copy of the weights.
2. For one token, channels whose int8 activation is not 0 are listed and multiplied. For more, 64 outputs at a time are
   transposed back into row groups, in memory that stays in the cache, for the ordinary kernel.
3. Both give the bits that the ordinary kernel gives for the same activations: integer sums are exact, and scale groups
   are added in the same order.
"""
from libc.math cimport isfinite
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport (
    LB_CHANNELS, LB_LINE_ROWS, LB_ROWS, LB_U2, alloc_aligned, alloc_weights, checked, free_aligned, free_weights,
    lb_activations, lb_lines, lb_matmul_args, lb_matrix, lb_plus, lb_row_groups, lb_sparse_args, lb_times, parallel,
    table,
)
from lowbit._kernels.matrix cimport PackedMatrix, padded_cols
from lowbit._kernels.products cimport Activations

import numpy as np

from lowbit._kernels.topk import largest_kept
from lowbit.errors import FormatError


cdef extern from "os.h":
    ctypedef int32_t lb_atomic
    int32_t lb_atomic_add(lb_atomic *a, int32_t v) noexcept nogil

cdef extern from "transpose.h":
    void lb_transpose_to_lines(const lb_matrix *rows, const lb_matrix *m, int32_t quarter) noexcept nogil

cdef enum:
    TILE_LINES = 12             # 768 bytes of a channel; tiles have 10 to 13 lines where there are so many
    PART_CHANNELS = 1 << 16     # most that the kernels sum without overflow
    MOST_PARTS = 16             # of a matrix with one scale group
    UNIT_BYTES = 64 << 10       # least that is worth a unit of its own
    CHUNK_BYTES = 192 << 10     # what a thread takes at a time
    FEW_TOKENS = 8              # for these the matrix is read for each token anew
    QUARTER = 64                # outputs that become row groups at a time


cdef struct Transposition:
    const lb_matrix *rows       # row groups
    const lb_matrix *channels


cdef void transpose_lines(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Row groups to lines of 256 outputs; outputs beyond the matrix have weight 0 and scale 0."""
    cdef Transposition *c = <Transposition *>context
    cdef const lb_matrix *m = c.channels
    cdef int32_t line, i, g, group, n_groups = lb_row_groups(m.n_rows)
    cdef size_t padded = <size_t>lb_lines(m.n_rows) * LB_LINE_ROWS, size = 2 if m.scales_f16 else 4
    for line in range(begin, end):
        for i in range(4):
            lb_transpose_to_lines(c.rows, m, 4 * line + i)
        for group in range(16 * line, min(16 * line + 16, n_groups)):
            for g in range(m.n_groups):
                memcpy(<char *>m.scales + (g * padded + <size_t>group * LB_ROWS) * size,
                       <const char *>c.rows.scales + (<size_t>group * m.n_groups + g) * LB_ROWS * size, LB_ROWS * size)


cdef int32_t tiles_of(const lb_matrix *m) noexcept nogil:
    return max(1, (lb_lines(m.n_rows) + TILE_LINES // 2) // TILE_LINES)


def make_channel_major(PackedMatrix w not None, int32_t threads=1):
    """Change a ternary matrix to the channel-major order, in place.

    Raises
    ------
    FormatError
        If the matrix is not ternary, or has several scales per row, each for more than 65,536 columns.
    MemoryError
        If the memory cannot be had.
    """
    cdef Transposition both
    cdef lb_matrix m = w.m
    cdef int32_t lines = lb_lines(m.n_rows)
    cdef size_t code_bytes, scale_bytes
    if m.format != LB_U2:
        raise FormatError("not a ternary matrix")
    if m.n_groups > 1 and m.group_cols > PART_CHANNELS:
        raise FormatError(f"scale groups of {m.group_cols} columns are too long")
    if m.tiles:
        return
    m.tiles = tiles_of(&m)
    code_bytes = lb_times(lines, <size_t>m.n_cols * 64)
    scale_bytes = lb_times(<size_t>lines * LB_LINE_ROWS, <size_t>m.n_groups * (2 if m.scales_f16 else 4))
    checked(lb_plus(code_bytes, scale_bytes), f"a matrix of {m.n_rows} x {m.n_cols}")
    m.codes = <const uint8_t *>alloc_weights(code_bytes)
    m.scales = alloc_weights(scale_bytes)
    if m.codes == NULL or m.scales == NULL:
        free_weights(<void *>m.codes)
        free_weights(<void *>m.scales)
        raise MemoryError(f"no memory for a matrix of {m.n_rows} x {m.n_cols}")
    memset(<void *>m.scales, 0, scale_bytes)
    both.rows, both.channels = &w.m, &m
    with nogil:
        parallel(transpose_lines, &both, lines, 1, threads)
    free_weights(<void *>w.m.codes)
    free_weights(<void *>w.m.scales)
    w.m = m
    w.nbytes = code_bytes + scale_bytes


def channel_major(PackedMatrix w not None, int32_t threads=1):
    """Return a copy of a ternary matrix in the channel-major order, for `sparse_ternary_matmul`.

    Raises
    ------
    FormatError
        If the matrix is not ternary.
    """
    if w.m.format != LB_U2 or w.m.tiles:
        raise FormatError("not a ternary matrix in row groups")
    cdef PackedMatrix copy = PackedMatrix("u2", w.m.n_rows, w.m.n_cols, w.m.group_cols, w.m.scales_f16, w.m.block_cols)
    cdef size_t groups = lb_row_groups(w.m.n_rows)
    memcpy(<void *>copy.m.codes, w.m.codes, groups * w.m.words * 64)
    memcpy(<void *>copy.m.scales, w.m.scales, groups * w.m.n_groups * LB_ROWS * (2 if w.m.scales_f16 else 4))
    make_channel_major(copy, threads)
    return copy


cdef void sparse_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    table.sparse(<const lb_sparse_args *>context, begin, end)


cdef void finish_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    table.sparse_finish(<const lb_sparse_args *>context, begin, end)


cdef struct QuarterWork:
    const lb_matmul_args *args
    uint8_t *scratch
    size_t thread_bytes
    lb_atomic next
    int32_t quarters


cdef void quarter_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Each unit is a thread's own scratch memory; quarters of lines are taken one line at a time."""
    cdef QuarterWork *c = <QuarterWork *>context
    cdef int32_t slot, first, quarter
    for slot in range(begin, end):
        while True:
            first = lb_atomic_add(&c.next, 4)
            if first >= c.quarters:
                break
            for quarter in range(first, min(first + 4, c.quarters)):
                multiply_quarter(c.args, quarter, c.scratch + slot * c.thread_bytes)


cdef void multiply_quarter(const lb_matmul_args *whole, int32_t quarter, uint8_t *scratch) noexcept nogil:
    cdef const lb_matrix *m = whole.w
    cdef lb_matrix part = m[0]
    cdef lb_matmul_args args = whole[0]
    cdef size_t size = 2 if m.scales_f16 else 4, padded = <size_t>lb_lines(m.n_rows) * LB_LINE_ROWS
    cdef uint8_t *scales = scratch + <size_t>4 * m.words * 64
    cdef int32_t i, g
    table.to_row_groups(m, quarter, scratch)
    for i in range(4):
        for g in range(m.n_groups):
            memcpy(scales + (<size_t>i * m.n_groups + g) * LB_ROWS * size,
                   <const char *>m.scales + (g * padded + <size_t>QUARTER * quarter + LB_ROWS * i) * size,
                   LB_ROWS * size)
    part.codes, part.scales, part.tiles = scratch, scales, 0
    part.n_rows = min(<int32_t>QUARTER, m.n_rows - QUARTER * quarter)
    args.w = &part
    if args.sums != NULL:
        args.sums += QUARTER * quarter
    else:
        args.y += QUARTER * quarter
    table.matmul[LB_U2](&args, 0, lb_row_groups(part.n_rows))


cdef class SparseScratch:
    """Memory that products with channel-major matrices need."""

    def __dealloc__(self):
        self._free()

    cdef void _free(self) noexcept:
        free_aligned(self.channels)
        free_aligned(self.values)
        free_aligned(self.ends)
        free_aligned(self.partial)
        free_aligned(self.row_groups)
        self.channels, self.values, self.ends, self.partial, self.row_groups = NULL, NULL, NULL, NULL, NULL

    cdef int reserve(self, const lb_matrix *m, int32_t threads) except -1:
        """Take memory enough for this matrix too."""
        cdef size_t lines = lb_lines(m.n_rows), parts = max(m.n_groups, MOST_PARTS), nbytes, row_groups
        self.cols = max(self.cols, <size_t>m.n_cols + LB_CHANNELS * parts + LB_CHANNELS)
        self.groups = max(self.groups, parts + 1)
        self.parts = max(self.parts, lb_times(lb_times(parts, lines), LB_LINE_ROWS * 4))
        self.thread_bytes = max(self.thread_bytes, <size_t>4 * 64 * (m.words + m.n_groups))
        self.threads = max(self.threads, threads)
        row_groups = lb_times(self.threads, self.thread_bytes)
        nbytes = lb_plus(lb_plus(5 * self.cols + 4 * self.groups, self.parts), row_groups)
        if nbytes == self.nbytes:
            return 0
        self._free()
        self.nbytes = 0
        checked(nbytes, "memory for sparse products")
        self.channels = <int32_t *>alloc_aligned(4 * self.cols)
        self.values = <int8_t *>alloc_aligned(self.cols)
        self.ends = <int32_t *>alloc_aligned(4 * self.groups)
        self.partial = <int32_t *>alloc_aligned(self.parts)
        self.row_groups = <uint8_t *>alloc_aligned(row_groups)
        if not (self.channels and self.values and self.ends and self.partial and self.row_groups):
            raise MemoryError("no memory for sparse products")
        self.nbytes = nbytes
        return 0

    cdef int32_t _list(self, const int8_t *q, int32_t begin, int32_t end, int32_t n) noexcept nogil:
        """Append the channels of a range that are not 0, and fill up with zeros; the new number of channels."""
        cdef int32_t c, i, first = n
        for c in range(begin, end):
            self.channels[n] = c
            self.values[n] = q[c]
            n += q[c] != 0
        if n > first:
            i = self.channels[n - 1]
            while n % LB_CHANNELS:
                self.channels[n] = i
                self.values[n] = 0
                n += 1
        return n

    cdef void _one(self, const lb_matrix *w, const int8_t *q, lb_sparse_args *args, int32_t threads) noexcept nogil:
        """One token: list what is active, multiply, finish."""
        cdef int32_t g, n = 0, p, units, chunk, lines = lb_lines(w.n_rows), workers = threads
        cdef int64_t work
        self.ends[0] = 0
        if w.n_groups > 1:
            args.n_parts = w.n_groups
            for g in range(w.n_groups):
                n = self._list(q, g * w.group_cols, min((g + 1) * w.group_cols, w.n_cols), n)
                self.ends[g + 1] = n
        else:
            n = self._list(q, 0, w.n_cols, 0)
            args.n_parts = (n + PART_CHANNELS - 1) // PART_CHANNELS
            if threads > 1:
                work = <int64_t>n * lines * 64 // UNIT_BYTES // w.tiles
                args.n_parts = max(args.n_parts, <int32_t>min(work, <int64_t>(4 * threads + w.tiles - 1) // w.tiles))
            args.n_parts = min(max(args.n_parts, 1), <int32_t>MOST_PARTS)
            for p in range(args.n_parts):
                self.ends[p + 1] = <int32_t>(<int64_t>(n // LB_CHANNELS) * (p + 1) // args.n_parts) * LB_CHANNELS
        args.w, args.channels, args.q, args.ends, args.partial = w, self.channels, self.values, self.ends, self.partial
        units = w.tiles * args.n_parts
        work = <int64_t>n * lines * 64
        if work < 2 * UNIT_BYTES:
            workers = 1
        chunk = <int32_t>min(CHUNK_BYTES // (work // units + 1), <int64_t>units // (2 * workers))
        parallel(sparse_work, args, units, units if workers == 1 else max(chunk, 1), workers)
        if <int64_t>w.n_rows * args.n_parts < 1 << 15:
            workers = 1
        parallel(finish_work, args, lines, lines if workers == 1 else max(lines // (2 * workers), 1), workers)

    cdef void multiply(self, const lb_matrix *w, const lb_activations *x, float *y, int32_t *sums,
                       ptrdiff_t y_stride, int32_t threads) noexcept nogil:
        """y = x W^T for a channel-major matrix that memory was reserved for."""
        cdef lb_sparse_args args
        cdef lb_matmul_args many
        cdef QuarterWork work
        cdef int64_t token
        if x.n_tokens <= FEW_TOKENS:
            args.y, args.sums = NULL, NULL
            for token in range(x.n_tokens):
                args.scale = NULL if x.scale == NULL else x.scale + token * x.n_groups
                args.sum = x.sum + token * x.n_groups
                if sums != NULL:
                    args.sums = sums + token * y_stride
                else:
                    args.y = y + token * y_stride
                self._one(w, x.q + token * x.stride, &args, threads)
            return
        many.w, many.x, many.y, many.sums, many.y_stride = w, x, y, sums, y_stride
        work.args, work.scratch, work.thread_bytes, work.next = &many, self.row_groups, self.thread_bytes, 0
        work.quarters = (w.n_rows + QUARTER - 1) // QUARTER
        threads = min(threads, self.threads)
        parallel(quarter_work, &work, threads, 1, threads)


def sparse_matmul(PackedMatrix w not None, const float[:, ::1] x not None, bint per_token=False, int32_t threads=1):
    """Multiply a channel-major ternary matrix by float activations: x W^T, reading only what is not zero.

    Takes and returns what `matmul` does for the same matrix in row groups, bit for bit.
    """
    cdef Activations activations
    cdef float[:, ::1] out
    cdef SparseScratch scratch = SparseScratch()
    if not w.m.tiles:
        raise FormatError("not a channel-major matrix")
    activations = Activations(w, x, per_token)
    result = np.empty((x.shape[0], w.m.n_rows), np.float32)
    if x.shape[0] == 0:
        return result
    out = result
    scratch.reserve(&w.m, threads)
    with nogil:
        scratch.multiply(&w.m, &activations.a, &out[0, 0], NULL, w.m.n_rows, threads)
    return result


def sparse_ternary_matmul(PackedMatrix packed not None, x, k=None, threshold=None, int32_t threads=1,
                          SparseScratch scratch=None):
    """Multiply packed ternary weights by the int8 activations that count.

    Parameters
    ----------
    packed : PackedMatrix, n rows of k ternary weights with one scale per row
        Fast if it is `channel_major`; otherwise it is transposed into that first.
    x : ndarray of int8, shape (m, k) or (k,)
    k : int, optional
        Only the k largest magnitudes of each row of `x` count; of equal ones the first.
    threshold : float, optional
        Only magnitudes of at least this count.
    threads : int
    scratch : SparseScratch, optional
        Memory that several calls can share, one after the other.

    Returns
    -------
    ndarray of int32, shape (m, n) or (n,)
        Exact, unscaled sums, equal on every instruction set. Without `k` and `threshold` those of `ternary_matmul`.

    Raises
    ------
    FormatError
        If k differs between `packed` and `x`, `x` is not int8, or there are several scales per row.
    ValueError
        If `k` or `threshold` is out of range, or both are given.
    """
    cdef lb_activations a
    cdef int8_t[:, ::1] padded
    cdef int32_t[:, ::1] sums, out
    cdef PackedMatrix w = packed if packed.m.tiles else channel_major(packed, threads)
    x = np.asarray(x)
    if x.dtype != np.int8 or x.ndim not in (1, 2):
        raise FormatError("activations must be int8, of shape (m, k) or (k,)")
    rows = np.atleast_2d(x)
    if rows.shape[1] != w.m.n_cols or w.m.n_groups != 1:
        raise FormatError(f"activations of {rows.shape[1]} columns do not fit {packed!r} with one scale per row")
    if k is not None and threshold is not None:
        raise ValueError("give k or threshold, not both")
    if k is not None:
        rows = np.where(largest_kept(rows.astype(np.float32), k) != 0, rows, np.int8(0))
    elif threshold is not None:
        if not (isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold must be a finite number from 0 on, not {threshold!r}")
        rows = np.where(np.abs(rows.astype(np.float32)) >= threshold, rows, np.int8(0))
    result = np.empty((len(rows), w.m.n_rows), np.int32)
    if len(rows):
        whole = np.zeros((len(rows), padded_cols(&w.m)), np.int8)
        whole[:, :w.m.n_cols] = rows
        padded, sums, out = whole, rows.sum(1, dtype=np.int32, keepdims=True), result
        scratch = scratch or SparseScratch()
        scratch.reserve(&w.m, threads)
        a.q, a.sum, a.scale, a.x = &padded[0, 0], &sums[0, 0], NULL, NULL
        a.stride, a.n_groups, a.n_tokens = padded.shape[1], 1, len(rows)
        with nogil:
            scratch.multiply(&w.m, &a, NULL, &out[0, 0], w.m.n_rows, threads)
    return result[0] if x.ndim == 1 else result
