# Experts: the weights of a layer, what is kept of a pass, and the walk through those that were chosen.
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t

from lowbit._kernels.dispatch cimport Buffers, lb_activations, lb_matmul_args, lb_matrix


# One projection of all experts.
cdef struct Projection:
    lb_matrix m             # that of one expert; codes and scales are those of the first
    size_t codes, scales    # bytes from one expert to the next
    void *paged             # a PagedMatrix instead, or NULL


# What a pass hands over: normalised rows, and memory for them as int8.
cdef struct Rows:
    const float *x          # (n, hidden)
    float *out              # (n, hidden): results are added to these
    const float *shared     # (n, hidden): of the shared expert, or NULL
    const float *gates      # (n,): what its sigmoid weights that with, or NULL
    int8_t *q8
    float *scales
    int32_t *sums
    int32_t n
    int32_t threads
    bint per_token


cdef class ExpertLayer:
    cdef readonly int32_t n, top_k, size, hidden, groups, top_groups
    cdef readonly size_t nbytes         # resident
    cdef readonly size_t used_bytes     # of weights that a token reads
    cdef int32_t n_parts
    cdef Projection parts[2]            # gate and up, or both in one
    cdef Projection down
    cdef const float *bias              # (n,), or NULL
    cdef const float *logit_bias        # (n,), or NULL, like the next two
    cdef const float *gate_up_bias      # (n, 2 size)
    cdef const float *down_bias         # (n, hidden)
    cdef bint sigmoid, chosen_only, normalized, by_two
    cdef int32_t activation
    cdef float scale, clamp
    cdef int64_t n_asked, n_found       # experts that were to be had from a file, and those that were in memory
    cdef readonly int64_t asked, found  # the same, at the end of the last step
    cdef list keep

    cdef const float *_bias(self, values, int32_t width) except? NULL
    cdef int _projection(self, matrix, int32_t n_out, int32_t n_in, Projection *out) except -1


cdef class ExpertScratch(Buffers):
    cdef float *logits                  # (rows, 2, n): the router's, which become probabilities; scores to choose by
    cdef float *gates                   # (rows,): the router's word on the shared expert
    cdef int32_t *chosen                # (rows, top_k): experts, the best first
    cdef float *weights                 # (rows, top_k)
    cdef int32_t *slot                  # (rows, top_k): where that result is; slots are in the order of experts
    cdef int32_t *row                   # (slots,)
    cdef int32_t *expert                # (slots,)
    cdef int32_t *starts                # (n + 1,): first slot of each expert
    cdef int8_t *q8                     # (slots, ...): inputs of a projection, as int8 or as floats
    cdef float *x
    cdef float *scales
    cdef int32_t *sums
    cdef float *wide                    # (slots, 2 size)
    cdef float *y                       # (slots, hidden)
    cdef lb_matmul_args *products       # two of each expert
    cdef lb_activations *inputs
    cdef lb_matrix *matrices
    cdef int32_t *paged                 # experts of a projection whose weights are paged

    cdef int run(self, ExpertLayer layer, const Rows *rows) noexcept nogil
    cdef int _project(self, ExpertLayer layer, Projection *parts, int32_t n_parts, const Rows *rows,
                      bint down) noexcept nogil
    cdef void _prefetch(self, ExpertLayer layer) noexcept nogil
