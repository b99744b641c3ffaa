from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, uint32_t

from lowbit._kernels.dispatch cimport lb_kv, lb_kv_layout, lb_matrix

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
    void *channels          # a PagedChannels for rows that decode, or NULL


cdef struct Layer:
    const float *attn_norm
    const float *ffn_norm
    const float *attn_sub_norm      # NULL where the family has none, like the next three
    const float *ffn_sub_norm
    const float *q_norm
    const float *k_norm
    Linear qkv
    Linear attn_output
    Linear gate_up
    Linear ffn_down


cdef class KVCache:
    cdef readonly int32_t capacity      # positions
    cdef readonly size_t nbytes         # reserved; the system commits what is written
    cdef readonly int32_t length        # positions that are filled
    cdef lb_kv_layout layout
    cdef char *memory
    cdef object __weakref__

    cdef lb_kv layer(self, int32_t index) noexcept nogil
    cdef void advance(self) noexcept nogil
