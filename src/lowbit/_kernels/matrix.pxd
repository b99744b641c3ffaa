from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t

from lowbit._kernels.dispatch cimport lb_matrix, work_fn
from lowbit._kernels.filling cimport BlockLayout, Fill


cdef class PackedMatrix:
    cdef lb_matrix m
    cdef readonly size_t nbytes
    cdef readonly str source_type

    cdef void _fill(self, work_fn *work, Fill *c, const uint8_t *source, int64_t rows, int64_t first_row,
                    int32_t threads) noexcept


cdef const float[:, ::1] aligned(const float[:, ::1] x)
cdef int32_t padded_cols(const lb_matrix *m) noexcept nogil
cdef int32_t row_stride(const lb_matrix *m) noexcept nogil
cdef bint is_float(int32_t format) noexcept nogil
cdef size_t group_code_bytes(const lb_matrix *m) noexcept nogil
cdef size_t group_scale_bytes(const lb_matrix *m) noexcept nogil
cdef BlockLayout block_layout(str type, const lb_matrix *m) except *
