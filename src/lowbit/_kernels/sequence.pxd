from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.kvpool cimport Block, KVPool
from lowbit._kernels.lookup cimport Lookup
from lowbit._kernels.sampler cimport Sampler


# What the decoder reads and changes of a sequence, without the GIL.
cdef struct State:
    char **table            # memory of its blocks of keys and values
    int32_t *text           # (capacity + 1,): all tokens
    int32_t *ends           # tokens that end it
    int32_t n_ends
    int32_t capacity        # positions
    int32_t length          # positions that are filled
    int32_t covered         # positions that there are blocks for
    int32_t n_tokens        # those from `length` on are still to be taken in
    int32_t prompt          # how many of them were given
    int32_t most            # tokens, after which it has ended
    void *sampler           # a Sampler; NULL: tokens are only taken in
    float *recurrent        # state of the recurrent layers behind `length` positions; NULL if there are none
    float *next             # where a pass writes the one behind it
    int32_t border          # positions from one state to keep to the next
    void *lookup            # a Lookup; NULL: nothing is proposed from what was said before
    bint all_sparse         # its prompt, too, is computed as made tokens are
    bint ended              # by an end token, or by `most`


cdef inline bint ends_with(const State *s, int32_t token) noexcept nogil:
    """Whether the sequence ends with this token as its last."""
    cdef int32_t i
    for i in range(s.n_ends):
        if s.ends[i] == token:
            return True
    return False


cdef class Turn:
    cdef readonly bint taken
    cdef unsigned long thread


cdef class StepLock:
    cdef object lock, process
    cdef bint taken
    cdef unsigned long thread


cdef class Sequence:
    cdef State state
    cdef KVPool pool
    cdef Block current, other       # memory of the two recurrent states
    cdef Block begin                # with the state to begin with, or None
    cdef list blocks                # of Block, in the order of their positions
    cdef list chains                # one more than full blocks are known: what the next one hangs on is the last
    cdef int32_t shared             # positions from which on nothing is shared
    cdef int64_t began              # nanoseconds since 1970
    cdef readonly int32_t reused    # positions that were known
    cdef readonly Sampler sampler
    cdef readonly Lookup lookup
    cdef readonly object owner

    cdef int _share(self, list blocks) except -1
    cdef int reserve(self, int32_t positions) except -1
