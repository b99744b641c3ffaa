from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, uint8_t

from lowbit._kernels.dispatch cimport lb_activations, lb_matrix, lb_sparse_args


# Memory for products with channel-major matrices, enough for those that were reserved for.
cdef class SparseScratch:
    cdef readonly size_t nbytes
    cdef int32_t *channels          # active channels, and their int8 values
    cdef int8_t *values
    cdef int32_t *ends
    cdef int32_t *partial
    cdef uint8_t *row_groups        # for each thread: the codes and scales of 64 outputs
    cdef size_t cols, groups, parts, thread_bytes
    cdef int32_t threads

    cdef void _free(self) noexcept
    cdef int32_t _list(self, const int8_t *q, int32_t begin, int32_t end, int32_t n) noexcept nogil
    cdef void _one(self, const lb_matrix *w, const int8_t *q, lb_sparse_args *args, int32_t threads) noexcept nogil
    cdef int reserve(self, const lb_matrix *m, int32_t threads) except -1
    cdef void multiply(self, const lb_matrix *w, const lb_activations *x, float *y, int32_t *sums,
                       ptrdiff_t y_stride, int32_t threads) noexcept nogil
