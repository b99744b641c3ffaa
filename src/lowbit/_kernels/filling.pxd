# From stored rows to row groups: what is run on the pool, with a Fill, for row groups begin to end.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t

from lowbit._kernels.dispatch cimport LB_F32, LB_T5, LB_U2, LB_U4, LB_U4M, LB_UP, LB_UPM, lb_matrix


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


# Stored rows, and where they go.
cdef struct Fill:
    const lb_matrix *m
    const uint8_t *source
    int32_t first_group
    int32_t rows
    BlockLayout layout      # of stored blocks, like the next two
    int32_t blocks_per_row
    bint one_scale          # the scale is set apart; blocks whose stored scale is 0 become zeros
    int32_t source_format   # of floats that are rounded
    const lb_matrix *u2     # rows that become those of T5
    bint bad_code, bad_scale    # one does not exist, or is not finite


cdef inline int32_t fields_of(int32_t format) noexcept nogil:
    return 4 if format == LB_U2 or format == LB_T5 else 2 if format == LB_U4 or format == LB_U4M else 1


cdef inline int32_t offset_of(const lb_matrix *m) noexcept nogil:
    if m.format == LB_UP or m.format == LB_UPM:
        return 1 << (m.bits - 1) if m.format == LB_UP else 0
    return 1 if m.format == LB_U2 or m.format == LB_T5 else 8 if m.format == LB_U4 else 0 if m.format == LB_U4M else 128


# A byte of codes that are the offset, or of floats that are 0; from T5 on any will do, where inputs or scales are 0.
cdef inline uint8_t empty_byte(int32_t format) noexcept nogil:
    return 0 if format >= LB_T5 or format == LB_U4M else 0x55 if format == LB_U2 else 0x88 if format == LB_U4 else 128


cdef inline size_t value_size(int32_t format) noexcept nogil:
    return 4 if format == LB_F32 else 2


# Words of a scale group of T5.
cdef inline int32_t trit_words(int32_t cols) noexcept nogil:
    return (cols + 19) // 20


cdef void fill_trits(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_dense(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_blocks(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_planes(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_codes(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_floats(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void fill_rounded(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void matrix_row(const lb_matrix *m, int32_t row, float *out) noexcept nogil
