from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t

from lowbit._kernels.dispatch cimport lb_activations, lb_matrix


cdef class PackedMatrix:
    cdef lb_matrix m
    cdef readonly size_t nbytes
    cdef readonly str source_type


cdef void matrix_row(const lb_matrix *m, int32_t row, float *out) noexcept nogil
cdef int32_t padded_cols(const lb_matrix *m) noexcept nogil
cdef int32_t row_stride(const lb_matrix *m) noexcept nogil
cdef bint is_float(int32_t format) noexcept nogil
cdef void multiply(const lb_matrix *w, const lb_activations *x, float *y, int32_t *sums, ptrdiff_t y_stride,
                   int32_t threads) noexcept nogil
