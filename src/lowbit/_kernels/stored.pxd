# Types that stay in their blocks until they are used.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint64_t

from lowbit._kernels.dispatch cimport lb_matrix, lb_stored


cdef class Stored:
    cdef lb_stored c
    cdef readonly str type
    cdef int32_t group_cols     # weights that share a scale once they are unpacked
    cdef str format             # of the matrix that they become
    cdef bint scales_super
    cdef const uint64_t[::1] table

    cdef size_t row_bytes(self, str format, const lb_matrix *m) except 0
    cdef int unpack(self, const lb_matrix *m, const uint8_t *source, int32_t threads) except -1
