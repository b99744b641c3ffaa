from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from lowbit._kernels.dispatch cimport Buffers, Interrupts
from lowbit._kernels.deltanet cimport Segment
from lowbit._kernels.graph cimport Graph, Layer, Linear
from lowbit._kernels.kvpool cimport KVPool
from lowbit._kernels.latent cimport LatentLayer, LatentScratch
from lowbit._kernels.moe cimport ExpertScratch
from lowbit._kernels.profile cimport Profile
from lowbit._kernels.shortlist cimport Shortlist

cdef extern from "os.h":
    ctypedef int32_t lb_atomic
    int32_t lb_atomic_load(lb_atomic *a) noexcept nogil
    void lb_atomic_store(lb_atomic *a, int32_t v) noexcept nogil

cdef enum:
    INTERRUPTED = -1        # status of a pass that Ctrl-C ended, or somebody gave up


cdef class ForwardPass:
    cdef readonly Graph graph
    cdef readonly KVPool pool
    cdef public int32_t threads
    cdef public Profile profile         # None: nothing is measured
    cdef readonly int32_t batch         # most rows of a pass
    cdef readonly size_t scratch_bytes
    cdef readonly Shortlist shortlist   # of the output head, or None
    cdef int32_t *few                   # of a pass's rows that leave logits: how many of the largest matter, 0 for all
    cdef Buffers scratch
    cdef float *parts                   # of one row's attention, NULL if no row has more than one
    cdef int32_t n_parts
    cdef ExpertScratch experts          # None if the model has none, like the next
    cdef LatentScratch latents
    cdef int status                     # why a pass was given up, 0 if it was not
    cdef Interrupts interrupts
    cdef lb_atomic *given_up            # whether somebody gave the pass up
    cdef int32_t n_rows                 # of this pass
    cdef int32_t *tokens                # of its rows, like the next three
    cdef int32_t *positions
    cdef char ***blocks
    cdef uint8_t *sparse
    cdef Segment *segments              # of sequences in a pass, for recurrent layers
    cdef int32_t *segment_of
    cdef int32_t n_segments
    cdef float *x                       # the residual stream
    cdef float *h
    cdef float *normed                  # by a matrix's own norm, or rotated
    cdef float *wide                    # q, k and v; or gate and up
    cdef float *attended
    cdef float *gates                   # of gated attention
    cdef float *mixed                   # by recurrent layers
    cdef int8_t *q8
    cdef float *scales
    cdef int32_t *sums
    cdef void *prepared

    cdef void _forward(self) noexcept nogil
    cdef void _lap(self, int32_t operation) noexcept nogil
    cdef void _embed(self, int32_t token, float *out) noexcept nogil
    cdef void _apply(self, Linear *linear, const float *x, int64_t x_stride, int32_t n_in, const float *norm,
                     int32_t n_rows, float *y) noexcept nogil
    cdef void _layer(self, int32_t index) noexcept nogil
    cdef void _attend(self, Layer *layer) noexcept nogil
    cdef int64_t _kv_bytes(self, Layer *layer) noexcept nogil
    cdef void _attend_latents(self, Layer *layer, LatentLayer latent) noexcept nogil
    cdef void _recur(self, Layer *layer) noexcept nogil
    cdef void _dense(self, Layer *layer, const float *x, const float *norm) noexcept nogil
    cdef void _experts(self, Layer *layer) noexcept nogil
