from libc.stdint cimport int32_t, uint32_t


cdef void keep_largest(float *x, int32_t n, int32_t k) noexcept nogil
cdef void keep_from(float *x, int32_t n, float threshold) noexcept nogil
cdef void count_magnitudes(const float *x, int32_t n, uint32_t *counts) noexcept nogil
