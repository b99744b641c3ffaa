"""The output head where only the likeliest tokens matter: their logits exactly, and -infinity for most of the others.

`shortlist.h` has the bounds. It costs a byte of memory for each weight of the head, and saves arithmetic, not memory
traffic: it is for processors that compute slowly.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int32_t
from libc.string cimport memset

from lowbit._kernels.dispatch cimport (
    LB_ROWS, Buffers, begin_floats, end_floats, lb_activations, lb_float_mode, lb_matmul_args, lb_matmul_fn, lb_matrix,
    lb_row_groups, lb_row_u8_fn, lb_sketch, lb_sketch_fn, table,
)
from lowbit._kernels.filling cimport matrix_row
from lowbit._kernels.matrix cimport PackedMatrix

from lowbit.errors import FormatError


cdef extern from "shortlist.h":
    enum:
        LB_MOST_SHORTLISTED
        LB_SPAN_COLS

    ctypedef struct lb_shortlist_tools:
        lb_matmul_fn *matmul
        lb_sketch_fn *sketch
        lb_row_u8_fn *row
        int16_t *inputs
        float *best

    bint lb_can_sketch(const lb_matrix *m) noexcept nogil
    void lb_sketch_row(int16_t *codes, float *scales, lb_lengths *lengths, int32_t n_cols, int32_t row,
                       const float *w) noexcept nogil
    int32_t lb_shortlist(const lb_sketch *s, const lb_lengths *lengths, const lb_matmul_args *args, int32_t k,
                         const lb_shortlist_tools *tools) noexcept nogil

MOST_SHORTLISTED = LB_MOST_SHORTLISTED


cdef class Shortlist(Buffers):
    """A sketch of a matrix of 8-bit codes.

    Parameters
    ----------
    matrix : PackedMatrix

    Raises
    ------
    FormatError
        If it is of another format, or its rows do not fit a sketch.
    MemoryError
        If the memory cannot be had.
    """

    def __cinit__(self, PackedMatrix matrix not None):
        cdef const lb_matrix *m = &matrix.m
        cdef size_t groups = lb_row_groups(m.n_rows), rows = groups * LB_ROWS, cols = m.n_cols
        cdef int32_t row
        cdef float *values
        cdef int16_t *codes
        cdef float *scales
        cdef lb_float_mode mode
        if not lb_can_sketch(m):
            raise FormatError(f"{matrix!r} has no sketch")
        codes = <int16_t *>self.take(rows, cols)
        scales = <float *>self.take(rows, 4)
        self.lengths = <lb_lengths *>self.take(groups, sizeof(lb_lengths))
        self.best = <float *>self.take(groups, 4)
        self.inputs = <int16_t *>self.take(3 * cols, 2)
        values = <float *>self.take(cols, 4)
        memset(codes, 0, rows * cols)       # also where the last row group has no rows
        memset(scales, 0, rows * 4)
        memset(self.lengths, 0, groups * sizeof(lb_lengths))
        with nogil:
            mode = begin_floats()
            for row in range(m.n_rows):
                matrix_row(m, row, values)
                lb_sketch_row(codes, scales, self.lengths, m.n_cols, row, values)
            end_floats(mode)
        self.sketch.codes, self.sketch.scales = codes, scales
        self.sketch.n_rows, self.sketch.n_cols, self.sketch.spans = m.n_rows, m.n_cols, m.n_cols // LB_SPAN_COLS

    cdef void multiply(self, const lb_matrix *m, const lb_activations *a, float *y, size_t y_stride,
                       const int32_t *few) noexcept nogil:
        """y = x W^T for the rows of x, as far as the `few` largest of each row need it; 0 are all."""
        cdef lb_matmul_args args
        cdef lb_activations one = a[0]
        cdef lb_shortlist_tools tools
        cdef lb_float_mode mode = begin_floats()
        cdef int32_t i
        tools.matmul, tools.sketch, tools.row = table.matmul[m.format], table.sketch, table.row_u8
        tools.inputs, tools.best = self.inputs, self.best
        one.n_tokens = 1
        args.w, args.x, args.sums, args.y_stride = m, &one, NULL, <ptrdiff_t>y_stride
        for i in range(a.n_tokens):
            one.q, one.scale = a.q + <size_t>i * a.stride, a.scale + <size_t>i * a.n_groups
            one.sum = a.sum + <size_t>i * a.n_groups
            args.y = y + i * y_stride
            self.n_asked += m.n_rows
            if few[i]:
                self.n_made += lb_shortlist(&self.sketch, self.lengths, &args, few[i], &tools)
            else:
                tools.matmul(&args, 0, lb_row_groups(m.n_rows))
                self.n_made += m.n_rows
        end_floats(mode)
