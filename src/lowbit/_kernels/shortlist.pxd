from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int32_t, int64_t

from lowbit._kernels.dispatch cimport Buffers, lb_activations, lb_matmul_args, lb_matrix, lb_sketch

cdef extern from "shortlist.h":
    ctypedef struct lb_lengths:
        pass


cdef class Shortlist(Buffers):
    cdef lb_sketch sketch
    cdef lb_lengths *lengths
    cdef int16_t *inputs
    cdef float *best
    cdef int64_t n_asked, n_made        # outputs so far: all of them, and those that were made exactly
    cdef readonly int64_t asked, made   # the same, at the end of the last step

    cdef void multiply(self, const lb_matrix *m, const lb_activations *a, float *y, size_t y_stride,
                       const int32_t *few) noexcept nogil
