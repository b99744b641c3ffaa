from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, uint8_t, uint32_t

from lowbit._kernels.dispatch cimport lb_matrix


cdef class PackedMatrix:
    cdef lb_matrix m
    cdef readonly size_t nbytes
    cdef readonly str source_type


cdef const float[:, ::1] aligned(const float[:, ::1] x)
cdef void matrix_row(const lb_matrix *m, int32_t row, float *out) noexcept nogil
cdef int32_t padded_cols(const lb_matrix *m) noexcept nogil
cdef int32_t row_stride(const lb_matrix *m) noexcept nogil
cdef bint is_float(int32_t format) noexcept nogil
cdef size_t group_code_bytes(const lb_matrix *m) noexcept nogil
cdef size_t group_scale_bytes(const lb_matrix *m) noexcept nogil


# How a stored block (of a tensor of one of BLOCK_TYPES) becomes words.
cdef struct BlockLayout:
    int32_t cols        # weights in it
    int32_t block_bytes
    int32_t codes_at    # offset of the codes in the stored block
    int32_t scale_at    # offset of the float16 scale, -1 if there is none
    int32_t minimum_at  # offset of the float16 minimum, 0 if there is none
    int32_t fifths_at   # offset of 32 fifth bits, which make five-bit codes of nibbles; 0 if there are none
    int32_t words       # 32-bit words that its codes become
    bint reverse        # the first of four 2-bit fields is the highest
    uint32_t flip       # turns signed codes into unsigned ones

# Stored rows that become row groups of a matrix.
cdef struct FillBlocks:
    const lb_matrix *m
    const uint8_t *source
    BlockLayout layout
    int32_t first_group     # where the rows go
    int32_t rows
    int32_t blocks_per_row
    bint one_scale          # the scale is set apart; blocks whose stored scale is 0 become zeros
    bint bad_code, bad_scale    # one does not exist, or is not finite


cdef BlockLayout block_layout(str type, const lb_matrix *m) except *
cdef void fill_blocks(void *context, int32_t begin, int32_t end) noexcept nogil
