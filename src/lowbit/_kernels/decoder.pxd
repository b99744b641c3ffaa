from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from lowbit._kernels.dispatch cimport Interrupts
from lowbit._kernels.deltanet cimport Segment
from lowbit._kernels.graph cimport Graph, Layer, Linear
from lowbit._kernels.moe cimport ExpertScratch
from lowbit._kernels.kvpool cimport KVPool
from lowbit._kernels.latent cimport LatentLayer, LatentScratch
from lowbit._kernels.sequence cimport State

cdef enum:
    MAX_DRAFT = 8           # tokens proposed at a time by prompt look-up

cdef extern from "os.h":
    ctypedef int32_t lb_atomic
    int32_t lb_atomic_load(lb_atomic *a) noexcept nogil
    void lb_atomic_store(lb_atomic *a, int32_t v) noexcept nogil


# What one sequence has in a pass: `rows` of its tokens, and behind them what is proposed to follow.
cdef struct Entry:
    State *state
    int32_t rows
    int32_t want            # which of them leave something behind
    int32_t first_row
    int32_t first_wanted    # where their logits or states begin, and how many there are
    int32_t n_wanted
    bint samples            # whether the last one is followed by a made token
    int32_t most_drafted
    int32_t most_rows       # drafts among them
    int32_t n_drafted
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


cdef class Decoder:
    cdef readonly Graph graph
    cdef readonly KVPool pool
    cdef public int32_t threads
    cdef readonly int32_t batch         # most rows of a pass
    cdef public int32_t most_logits     # most rows of a pass that should leave logits
    cdef public bint sparse_prefill     # not all inputs count in prompts, either
    cdef readonly object lock
    cdef readonly size_t scratch_bytes
    cdef list keep                      # scratch memory
    cdef ExpertScratch experts          # None if the model has none, like the next
    cdef LatentScratch latents
    cdef int status                     # why a pass was given up, 0 if it was not
    cdef Interrupts interrupts
    cdef lb_atomic interrupted
    cdef int32_t n_rows, n_wanted       # of this pass
    cdef object logits_memory, states_memory
    cdef int32_t logits_rows
    cdef float *row_logits
    cdef float *row_states
    cdef float *x
    cdef float *h
    cdef float *normed                  # by a matrix's own norm
    cdef float *wide                    # q, k and v; or gate and up
    cdef float *attended
    cdef float *gates                   # of gated attention
    cdef float *mixed                   # by recurrent layers
    cdef Segment *segments              # of sequences in a pass, for recurrent layers
    cdef int32_t *segment_of
    cdef int32_t n_segments
    cdef int8_t *q8
    cdef float *scales
    cdef int32_t *sums
    cdef int32_t *tokens                # of the rows of a pass, like the next four
    cdef int32_t *positions
    cdef char ***blocks
    cdef uint8_t *sparse
    cdef int32_t *wanted                # rows that leave logits

    cdef void *_scratch(self, size_t rows, size_t row_bytes) except NULL
    cdef int _need_logits(self, int32_t rows) except -1
    cdef void _fill(self, Batch batch) noexcept nogil
    cdef bint _account(self, Batch batch) noexcept nogil
    cdef void _forward(self) noexcept nogil
    cdef void _embed(self, int32_t token, float *out) noexcept nogil
    cdef void _leave(self, Batch batch) noexcept nogil
    cdef void _apply(self, Linear *linear, const float *x, int64_t x_stride, int32_t n_in, const float *norm,
                     int32_t n_rows, float *y) noexcept nogil
    cdef void _layer(self, int32_t index) noexcept nogil
    cdef void _attend(self, Layer *layer) noexcept nogil
    cdef void _attend_latents(self, Layer *layer, LatentLayer latent) noexcept nogil
    cdef void _recur(self, Layer *layer) noexcept nogil
    cdef void _dense(self, Layer *layer, const float *x, const float *norm) noexcept nogil
    cdef void _experts(self, Layer *layer) noexcept nogil
