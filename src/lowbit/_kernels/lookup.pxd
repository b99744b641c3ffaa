from libc.stdint cimport int32_t

from lowbit._kernels.suffixes cimport Automaton, Place, Suffixes

cdef enum:
    MAX_DRAFT = 16          # tokens proposed at a time
    N_LENGTHS = 6           # kinds of matches: of 1, 2 to 3, 4 to 7 tokens, and so on


cdef class Earlier:
    cdef Automaton *texts[2]        # the newer texts, and the older ones; NULL if there are none
    cdef int32_t generation         # counts how often the newer ones became the older
    cdef readonly int32_t capacity
    cdef Suffixes newer, older


cdef class Lookup:
    cdef Suffixes own
    cdef Earlier earlier
    cdef Place places[2]            # in the earlier texts
    cdef int32_t generation         # of these
    cdef int32_t seen               # tokens of the text that were taken in
    cdef int32_t length             # of the best match
    cdef const Automaton *source    # where it was found, and behind how many tokens of that
    cdef int32_t at
    cdef readonly float value       # of the last proposal: as many times the tokens in the same time
    cdef float right[N_LENGTHS]     # of the proposed tokens, and of `tried` that were computed for nothing
    cdef float tried[N_LENGTHS]

    cdef void look(self, const int32_t *text, int32_t n) noexcept nogil
    cdef int32_t propose(self, const int32_t *text, int32_t n, int32_t *out, int32_t most, float cost) noexcept nogil
    cdef void learn(self, int32_t right, int32_t proposed) noexcept nogil
