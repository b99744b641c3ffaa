from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    RECENT = 64     # tokens that the repeat penalty looks back


cdef struct Candidate:
    float logit
    int32_t token


cdef class Sampler:
    cdef readonly int32_t vocab_size
    cdef int32_t top_k, n_bias
    cdef int32_t kept               # candidates that the last token was drawn from
    cdef double temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty
    cdef uint64_t state[4]
    cdef int32_t recent[RECENT]
    cdef int64_t n_recent
    cdef Candidate *candidates
    cdef float *probabilities
    cdef float *adjusted
    cdef int32_t *counts            # (vocab_size,): how often each token was made; NULL if nothing depends on it
    cdef Candidate *bias            # tokens whose logit is raised, and by how much
    cdef uint32_t *mask             # one bit per token: those that may come next
    cdef bint masked                # whether the mask holds

    cdef double uniform(self) noexcept nogil
    cdef void remember(self, int32_t token) noexcept nogil
    cdef void accept(self, int32_t token) noexcept nogil
    cdef void adjust(self, const float *logits) noexcept nogil
    cdef int32_t few(self) noexcept nogil
    cdef int32_t sample(self, const float *logits) noexcept nogil
    cdef int32_t _sample(self, const float *logits) noexcept nogil
    cdef int32_t select(self, const float *logits) noexcept nogil
