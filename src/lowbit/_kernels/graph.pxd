from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t

from lowbit._kernels.deltanet cimport Delta
from lowbit._kernels.dispatch cimport lb_matrix
from lowbit._kernels.ops cimport Rotation
from lowbit._kernels.paging cimport Pager
from lowbit._kernels.sparse cimport SparseScratch

cdef enum:
    MAX_PARTS = 4       # matrices that read the same input


# A matrix: resident, or a PagedMatrix whose shape m is.
cdef struct Part:
    const lb_matrix *m
    void *paged             # NULL if resident
    const float *norm       # of its own input, or NULL
    Rotation rotation       # of its input, if it has factors


# Matrices that read the same input, and write their outputs side by side.
cdef struct Linear:
    Part parts[MAX_PARTS]
    int32_t n_parts
    int32_t n_out
    int32_t operation       # what a profile calls it
    const float *bias       # (n_out,), or NULL
    bint rotates            # some part has a rotation: inputs that count are chosen behind it, for these parts alone
    int32_t keep            # inputs of largest magnitude that count, 0 for all
    float threshold         # magnitude from which on inputs count
    uint32_t *histogram     # of the inputs' magnitudes, or NULL


cdef struct Layer:
    const float *attn_norm
    const float *ffn_norm
    const float *attn_sub_norm      # NULL where the family has none, like the next three
    const float *ffn_sub_norm
    const float *q_norm
    const float *k_norm
    const float *attn_post_norm
    const float *ffn_post_norm
    bint recurrent                  # a DeltaNet, and no attention
    Delta delta
    int32_t kv_index                # among the layers with attention
    bint gated
    int32_t n_heads
    int32_t n_kv_heads
    int32_t head_dim
    int32_t window                  # 0: none
    float q_scale
    const float *sinks              # (n_heads,), or NULL
    const float *cos                # rope_dim / 2 to a position; NULL where there is no rotation
    const float *sin
    int32_t rope_dim
    bint halves
    bint whole_norm         # norms of queries and keys are over all heads together
    bint norm_after_rope
    void *latent                    # a LatentLayer, or NULL
    const float *q_a_norm           # of what its queries are made of, like the next; else without parts
    Linear q_b
    Linear qkv
    Linear attn_output
    Linear gate_up                  # without parts where there are experts, but for those of the shared one
    Linear ffn_down
    int32_t wide                    # channels between these two
    int32_t activation
    void *experts                   # an ExpertLayer, or NULL
    Linear router
    Linear shared_gate              # without parts if the shared expert has no gate


cdef class Graph:
    cdef readonly int32_t n_layers, hidden, intermediate, vocab, context
    cdef int32_t q_size, qkv_size   # the largest of all layers
    cdef int32_t part_floats        # likewise: of a piece of one row's attention
    cdef int32_t inner              # likewise, of inputs that a matrix normalises or rotates by itself
    cdef int32_t channels               # likewise, of convolutions
    cdef readonly size_t state_bytes    # of the recurrent layers, for one sequence
    cdef bint gated                     # some attention is
    cdef int32_t q_stride, n_groups
    cdef size_t prepared        # bytes, of the largest product of many tokens
    cdef bint per_token
    cdef float embedding_scale, residual_scale, logit_scale
    cdef readonly bint sparse_decode    # not all inputs count in rows that decode
    cdef float eps
    cdef Layer *layers
    cdef Part token_embd
    cdef Rotation latent                # of the rows of the embedding, if it has factors
    cdef Linear output
    cdef const float *output_norm
    cdef object rotation                # the plan's, or None
    cdef dict factors                   # of it, by width
    cdef dict tables                    # cosines and sines by what they follow from
    cdef SparseScratch sparse
    cdef readonly Pager pager
    cdef readonly list experts          # ExpertLayers, of the layers that have one
    cdef list latents                   # LatentLayers, likewise
    cdef list keep                      # owners of all that is pointed to
    cdef readonly size_t weight_bytes
    cdef size_t embedding_bytes

    cdef const float *_vector(self, values, int32_t size) except? NULL
    cdef int _delta_net(self, Layer *one, mixer, dict layer, size_t *state) except -1
    cdef int _attention(self, Layer *one, mixer) except -1
    cdef int32_t _latent_attention(self, Layer *one, mixer, dict layer, int32_t threads) except -1
    cdef int _turn(self, Layer *one, rope) except -1
    cdef Rotation _rotation(self, int32_t n) except *
    cdef Linear _linear(self, list parts, int32_t n_in, int32_t n_out, int32_t threads, list norms=*,
                        list folded=*) except *
    cdef int _feed_forward(self, Layer *one, layer, plan, int32_t threads) except -1
    cdef Linear *linear(self, int32_t layer, str name) except NULL
