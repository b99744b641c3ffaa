from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t

from lowbit._kernels.dispatch cimport lb_matrix
from lowbit._kernels.paging cimport Pager
from lowbit._kernels.topk cimport SparseScratch

cdef enum:
    MAX_PARTS = 3       # matrices that read the same input


# A matrix: resident, or a PagedMatrix whose shape m is.
cdef struct Part:
    const lb_matrix *m
    void *paged             # NULL if resident


# Matrices that read the same input, and write their outputs side by side.
cdef struct Linear:
    Part parts[MAX_PARTS]
    int32_t n_parts
    int32_t n_out
    const float *bias       # (n_out,), or NULL
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
    Linear qkv
    Linear attn_output
    Linear gate_up                  # without parts where there are experts, but for those of the shared one
    Linear ffn_down
    int32_t wide                    # channels between these two
    void *experts                   # an ExpertLayer, or NULL
    Linear router
    Linear shared_gate              # without parts if the shared expert has no gate


cdef class Graph:
    cdef readonly int32_t n_layers, n_heads, n_kv_heads, head_dim, hidden, intermediate, vocab, context
    cdef int32_t rope_dim, q_stride, n_groups
    cdef bint halves, relu2, per_token, whole_norm
    cdef readonly bint sparse_decode    # not all inputs count in rows that decode
    cdef float eps
    cdef Layer *layers
    cdef Part token_embd
    cdef Linear output
    cdef const float *output_norm
    cdef const float *cos
    cdef const float *sin
    cdef SparseScratch sparse
    cdef readonly Pager pager
    cdef readonly list experts          # ExpertLayers, of the layers that have one
    cdef list keep                      # owners of all that is pointed to
    cdef readonly size_t weight_bytes
    cdef size_t embedding_bytes

    cdef const float *_vector(self, values, int32_t size) except? NULL
    cdef Linear _linear(self, list parts, int32_t n_in, int32_t n_out, int32_t threads) except *
    cdef int _feed_forward(self, Layer *one, layer, plan, int32_t threads) except -1
    cdef Linear *linear(self, int32_t layer, str name) except NULL
