from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int32_t

from lowbit._kernels.dispatch cimport lb_activations, lb_matmul_args, lb_matrix


cdef class Activations:
    cdef lb_activations a
    cdef int8_t[:, :] q
    cdef float[:, ::1] scale
    cdef int32_t[:, ::1] sums
    cdef const float[:, ::1] x


cdef void multiply(const lb_matrix *w, const lb_activations *x, float *y, int32_t *sums, ptrdiff_t y_stride,
                   int32_t threads, void *memory, size_t nbytes) noexcept nogil
cdef size_t prepared_bytes(const lb_matrix *w, int32_t n_tokens) noexcept nogil
cdef void multiply_all(const lb_matmul_args *products, int32_t n, int32_t threads) noexcept nogil
