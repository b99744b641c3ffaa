from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.forward cimport ForwardPass, lb_atomic, lb_atomic_load, lb_atomic_store
from lowbit._kernels.lookup cimport MAX_DRAFT
from lowbit._kernels.rowcost cimport RowCosts
from lowbit._kernels.sequence cimport State

# What one sequence has in a pass: `rows` of its tokens, and behind them what is proposed to follow.
cdef struct Entry:
    State *state
    int32_t rows
    int32_t want            # which of them leave something behind
    bint few                # of the logits only those that matter for the next token
    int32_t first_row
    int32_t first_wanted    # where their logits or states begin, and how many there are
    int32_t n_wanted
    bint samples            # whether the last one is followed by a made token
    int32_t most_drafted
    int32_t most_rows       # drafts among them
    int32_t n_given         # proposals that the caller gave, for the first pass
    int32_t n_drafted
    bint looked_up          # whether these were found by the text's Lookup
    int32_t drafted[MAX_DRAFT]


cdef class Batch:
    cdef readonly int32_t capacity
    cdef int32_t vocab
    cdef readonly int32_t n_rows        # of the first pass, at most
    cdef readonly int32_t n_wanted      # rows of it that leave logits, at most
    cdef list sequences
    cdef object memory
    cdef Entry *entries
    cdef int32_t n_entries
    cdef lb_atomic given_up


cdef class Decoder(ForwardPass):
    cdef public int32_t most_logits     # most rows of a pass that should leave logits
    cdef public bint sparse_prefill     # not all inputs count in prompts, either
    cdef public object weights          # what others that load the same file may share
    cdef readonly object lock
    cdef public object texts
    cdef lb_atomic interrupted
    cdef int32_t n_wanted               # rows of this pass that leave logits
    cdef int32_t *wanted                # which these are
    cdef object logits_memory, states_memory
    cdef int32_t logits_rows
    cdef float *row_logits
    cdef float *row_states
    cdef readonly int64_t proposed, accepted    # tokens, so far
    cdef int64_t n_proposed, n_accepted         # the same within a step, while other threads may read those
    cdef RowCosts costs

    cdef int _need_logits(self, int32_t rows) except -1
    cdef int _tell(self) except -1
    cdef void _fill(self, Batch batch) noexcept nogil
    cdef bint _account(self, Batch batch) noexcept nogil
    cdef void _leave(self, Batch batch) noexcept nogil
