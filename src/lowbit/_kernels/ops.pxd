from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t

from lowbit._kernels.dispatch cimport lb_attention_args, lb_matrix

cdef enum:
    ATTENTION_GRAIN = 1 << 14       # products of scores and values below which attention stays on one thread
    ATTENTION_ROWS = 32             # rows of a unit: those of one prompt share what is read of their keys and values


cdef struct Rotation:
    # x becomes H (factors * x), in runs of `block` channels; H without its factor, which is in these.
    const float *factors            # (n,), or NULL: no transform
    int32_t block
    int32_t key_heads               # head k + i * key_heads of x goes to i + k * (number of heads) / key_heads before;
    int32_t head_dim                # 0: none does


cdef struct NormWork:
    # Normalise rows, rotate them, keep the inputs that count, and quantise them for the matrix that reads them.
    const float *x
    const float *weight             # NULL: no norm
    float *out
    Rotation rotation
    float *rotated
    int8_t *q
    float *scale
    int32_t *sum
    const lb_matrix *reader         # NULL or a float matrix: no quantisation
    int64_t x_stride, q_stride
    int32_t n
    int32_t n_groups
    float eps
    bint per_token
    int32_t keep                    # 0: all
    float threshold
    const uint8_t *sparse           # (n_rows,): whether these two hold for a row
    uint32_t *histogram


cdef struct AttentionWork:
    # Units are tiles of rows, or of one row pieces of its positions, by runs of kv heads.
    lb_attention_args args
    int32_t n_rows
    int32_t tiles
    int32_t piece                   # the first
    int32_t run


cdef struct AddWork:
    # x += scale * norm(y + bias); y is overwritten if that is not y itself.
    float *x                        # (n_rows, n)
    float *y
    int32_t n
    const float *bias               # NULL: none
    const float *norm               # NULL: none
    float eps
    float scale


cdef struct GluWork:
    float *gate_up                  # (n_rows, 2 n)
    int32_t n
    int32_t activation


cdef struct RopeWork:
    # Per row: biases, norms of the heads, rotation, and the cache.
    float *qkv
    float *gates                    # (n_rows, n_heads * head_dim): what lies behind each query head; NULL: nothing does
    const float *bias               # (n_out,), or NULL, like the next two
    const float *q_norm
    const float *k_norm
    const float *cos
    const float *sin
    lb_attention_args shape
    int32_t n_out
    int32_t rope_dim                # 0: no rotation
    bint halves
    bint whole_norm                 # the norms are over all heads together
    bint norm_after                 # the norms come after the rotation
    float eps
    float q_scale


cdef struct GateWork:
    # x *= logistic(gate)
    float *x                        # (n_rows, n)
    float *gate                     # likewise; overwritten
    int32_t n


cdef void unrotate(const Rotation *rotation, float *x, int32_t n) noexcept nogil
# Turns the first `dim` channels.
cdef void turn(float *head, int32_t dim, bint halves, const float *cos, const float *sin) noexcept nogil
cdef void gate_work(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void scale_by(float *x, float factor, int64_t n) noexcept nogil
cdef void norm_work(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void attend(const lb_attention_args *args, int32_t n_rows, int64_t work, int32_t threads) noexcept nogil
cdef void add_work(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void glu_work(void *context, int32_t begin, int32_t end) noexcept nogil
cdef void rope_work(void *context, int32_t begin, int32_t end) noexcept nogil
