from libc.stdint cimport int32_t, int64_t, uint64_t

cdef enum:
    RECENT = 64     # tokens that the repeat penalty looks back


cdef struct Candidate:
    float logit
    int32_t token


cdef class Sampler:
    cdef int32_t vocab_size, top_k
    cdef double temperature, top_p, min_p, repeat_penalty
    cdef uint64_t state[4]
    cdef int32_t recent[RECENT]
    cdef int64_t n_recent
    cdef Candidate *candidates
    cdef float *probabilities
    cdef float *penalised

    cdef double uniform(self) noexcept nogil
    cdef void remember(self, int32_t token) noexcept nogil
    cdef int32_t sample(self, const float *logits) noexcept nogil
    cdef int32_t _sample(self, const float *logits) noexcept nogil
    cdef int32_t select(self, const float *logits) noexcept nogil
