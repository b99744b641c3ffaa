# The table of kernels in use, and the pool. Other modules cimport these, so a forced instruction set holds everywhere.
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t


cdef extern from "kernels.h":
    enum:
        LB_ROWS
        LB_PREPARED_TOKENS
        LB_PREPARED_TILE
        LB_PREPARED_STEP
        LB_U2
        LB_U4
        LB_U8
        LB_U4M
        LB_U8M
        LB_T5
        LB_UP
        LB_UPM
        LB_UT
        LB_F32
        LB_F16
        LB_BF16
        LB_KV_F32
        LB_KV_F16
        LB_KV_I8
        LB_KV_SPAN
        LB_PIECE
        LB_MAX_HEAD_DIM
        LB_SILU
        LB_RELU2
        LB_GELU
        LB_SWIGLU_OAI
        LB_LINE_ROWS
        LB_CHANNELS
        LB_MAX_STREAMS

    ctypedef struct lb_matrix:
        const uint8_t *codes
        const void *scales
        int32_t format
        int32_t n_rows
        int32_t n_cols
        int32_t block_cols
        int32_t group_cols
        int32_t n_groups
        int32_t words
        int32_t scales_f16
        int32_t scales_super
        int32_t tiles
        int32_t bits
        int32_t table

    ctypedef struct lb_stored:
        int32_t type
        int32_t block_cols
        int32_t block_bytes
        const uint64_t *table

    ctypedef struct lb_activations:
        const int8_t *q
        const float *scale
        const int32_t *sum
        const float *x
        int32_t stride
        int32_t n_groups
        int32_t n_tokens

    ctypedef struct lb_matmul_args:
        const lb_matrix *w
        const lb_activations *x
        float *y
        int32_t *sums
        ptrdiff_t y_stride

    ctypedef struct lb_sparse_args:
        const lb_matrix *w
        const int32_t *channels
        const int8_t *q
        const int32_t *ends
        int32_t n_parts
        int32_t *partial
        const float *scale
        const int32_t *sum
        float *y
        int32_t *sums

    ctypedef struct lb_sketch:
        const int16_t *codes
        const float *scales
        int32_t n_rows
        int32_t n_cols
        int32_t spans

    ctypedef struct lb_kv:
        size_t keys
        size_t values
        size_t key_scales
        size_t value_scales
        ptrdiff_t key_stride
        ptrdiff_t value_stride

    ctypedef struct lb_attention_args:
        const float *q
        float *out
        char **const *blocks
        const int32_t *positions
        lb_kv kv
        ptrdiff_t q_stride
        int32_t n_heads
        int32_t n_kv_heads
        int32_t head_dim
        int32_t kv_type
        int32_t value_dim
        int32_t window
        const float *sinks
        float *parts
        int32_t n_parts

    ctypedef void lb_matmul_fn(const lb_matmul_args *args, int32_t begin, int32_t end) noexcept nogil
    ctypedef void lb_streams_fn(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) noexcept nogil
    ctypedef size_t lb_prepared_bytes_fn(const lb_matrix *m, int32_t n_tokens) noexcept nogil
    ctypedef void lb_prepare_fn(const lb_matmul_args *args, void *prepared, int32_t begin, int32_t end) noexcept nogil
    ctypedef void lb_matmul_prepared_fn(const lb_matmul_args *args, const void *prepared, int32_t begin,
                                        int32_t end) noexcept nogil
    ctypedef void lb_sparse_fn(const lb_sparse_args *args, int32_t begin, int32_t end) noexcept nogil
    ctypedef void lb_to_row_groups_fn(const lb_matrix *m, int32_t quarter, uint8_t *codes) noexcept nogil
    ctypedef void lb_quantize_fn(const float *x, int32_t n, int32_t group_cols, int32_t per_token, int32_t padded,
                                 int8_t *q, float *scale, int32_t *sum) noexcept nogil
    ctypedef void lb_rms_norm_fn(const float *x, const float *weight, int32_t n, float eps, float *out) noexcept nogil
    ctypedef void lb_attention_fn(
        const lb_attention_args *args, int32_t row, int32_t rows, int32_t kv_head, int32_t kv_heads,
        int32_t piece) noexcept nogil
    ctypedef void lb_attention_sum_fn(const lb_attention_args *args, int32_t head) noexcept nogil
    ctypedef void lb_kv_store_fn(const float *k, const float *v, char *block, const lb_attention_args *shape,
                                 int32_t position) noexcept nogil
    ctypedef void lb_glu_fn(float *gate, const float *up, int32_t n, int32_t activation) noexcept nogil
    ctypedef void lb_add_fn(float *x, const float *y, int32_t n) noexcept nogil
    ctypedef void lb_exp_fn(const float *x, float shift, float factor, int32_t n, float *out) noexcept nogil
    ctypedef void lb_delta_fn(const float *from_, float *to, const float *q, const float *k, const float *v,
                              float decay, float beta, int32_t size, float *out) noexcept nogil
    ctypedef void lb_hadamard_fn(float *x, int32_t n, int32_t block) noexcept nogil
    ctypedef int lb_unpack_fn(const lb_stored *stored, const uint8_t *source, const lb_matrix *m, int32_t begin,
                              int32_t end) noexcept nogil
    ctypedef int32_t lb_count_from_fn(const float *x, int32_t n, int32_t limit) noexcept nogil
    ctypedef void lb_sketch_fn(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *y,
                               float *best) noexcept nogil
    ctypedef float lb_row_u8_fn(const lb_matmul_args *args, const int16_t *x, int32_t row) noexcept nogil

    ctypedef uint64_t lb_read_fn(const uint64_t *memory, size_t n, int32_t streams) noexcept nogil
    ctypedef int64_t lb_dot_peak_fn(int32_t rounds) noexcept nogil

    ctypedef struct lb_kernels:
        lb_matmul_fn **matmul
        lb_streams_fn *streams
        lb_sparse_fn *sparse
        lb_sparse_fn *sparse_finish
        lb_to_row_groups_fn *to_row_groups
        lb_quantize_fn *quantize
        lb_rms_norm_fn *rms_norm
        lb_attention_fn *attention
        lb_attention_sum_fn *attention_sum
        lb_kv_store_fn *kv_store
        lb_glu_fn *glu
        lb_add_fn *add
        lb_exp_fn *exp
        lb_delta_fn *delta
        lb_hadamard_fn *hadamard
        lb_unpack_fn *unpack
        lb_count_from_fn *count_from
        lb_sketch_fn *sketch
        lb_row_u8_fn *row_u8
        lb_read_fn *read
        lb_dot_peak_fn *dot_peak
        lb_prepared_bytes_fn *prepared_bytes
        lb_prepare_fn *prepare
        lb_matmul_prepared_fn *matmul_prepared

    int32_t lb_part_floats(int32_t value_dim) noexcept nogil
    int32_t lb_row_groups(int32_t rows) noexcept nogil
    int32_t lb_units(int32_t row_groups, int32_t streams) noexcept nogil
    bint lb_has_minima(int32_t format) noexcept nogil
    size_t lb_scales_at(const lb_matrix *m, int32_t row_group, int32_t group) noexcept nogil
    const float *lb_super(const lb_matrix *m, int32_t row_group, int32_t group) noexcept nogil
    const int8_t *lb_multiples(const lb_matrix *m, const float *super, int32_t group) noexcept nogil
    bint lb_has_planes(int32_t format) noexcept nogil
    int32_t lb_super_shift(const lb_matrix *m) noexcept nogil
    size_t lb_super_bytes(const lb_matrix *m) noexcept nogil
    int32_t lb_lines(int32_t rows) noexcept nogil

cdef extern from "floats.h":
    ctypedef struct lb_float_mode:
        pass

cdef extern from "sizes.h":
    size_t LB_TOO_LARGE
    size_t lb_times(size_t a, size_t b) noexcept nogil
    size_t lb_plus(size_t a, size_t b) noexcept nogil
    size_t lb_round_up(size_t n, size_t step) noexcept nogil

    ctypedef struct lb_kv_layout:
        size_t stride
        size_t values_at
        size_t key_scales_at
        size_t value_scales_at
        size_t layer_bytes
        size_t nbytes

    lb_kv_layout lb_lay_out_kv(size_t element, size_t heads, size_t key_dim, size_t value_dim, size_t span,
                               size_t layers) noexcept nogil

ctypedef void work_fn(void *context, int32_t begin, int32_t end) noexcept nogil

cdef const lb_kernels *table
cdef int32_t streams        # row groups that a thread reads at a time for one token
cdef void parallel(work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads) noexcept nogil
# Around floats that are computed without `parallel`: in the mode of floats.h, whatever the host's is. On an x87 floats
# and doubles have modes of their own.
cdef lb_float_mode begin_floats() noexcept nogil
cdef lb_float_mode begin_doubles() noexcept nogil
cdef void end_floats(lb_float_mode before) noexcept nogil
# The size that was computed, or MemoryError if it is LB_TOO_LARGE.
cdef size_t checked(size_t n_bytes, str what) except? 0
cdef void register_portable_ternary(lb_matmul_fn *matmul) noexcept
cdef void *alloc_aligned(size_t n_bytes) noexcept nogil
cdef void *alloc_huge(size_t n_bytes) noexcept nogil
cdef void *alloc_weights(size_t n_bytes) noexcept nogil
cdef void free_weights(void *memory) noexcept nogil
cdef void free_aligned(void *memory) noexcept nogil
cdef int64_t nanoseconds() noexcept nogil


# Memory, at multiples of 64 bytes, that lives as long as this.
cdef class Buffers:
    cdef readonly size_t nbytes
    cdef list kept

    cdef void *take(self, size_t rows, size_t row_bytes) except NULL


# Whether Ctrl-C was pressed, asked between two pieces of long work without the GIL.
cdef class Interrupts:
    cdef int64_t next           # time of the next look
    cdef object error           # what the signal's handler raised

    cdef bint wanted(self) noexcept nogil
    cdef bint _look(self) noexcept with gil
    cdef int check(self) except -1
