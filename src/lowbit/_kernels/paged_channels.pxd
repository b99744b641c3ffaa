from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from lowbit._kernels.blockcache cimport BlockCache, lb_cache
from lowbit._kernels.dispatch cimport lb_activations, lb_matrix
from lowbit._kernels.paging cimport Pager


# A channel-major matrix: where its channels are.
cdef struct ChannelLayer:
    lb_matrix m                     # without memory of its own
    int32_t first_block
    int32_t per_block               # channels


cdef class ChannelPager:
    cdef readonly BlockCache cache
    cdef lb_cache *blocks           # that of `cache`
    cdef int32_t bad_block, error   # the last block that could not be had, and why
    cdef readonly int64_t block_bytes
    cdef readonly int32_t n_blocks
    cdef list parts                 # (offset, blocks) of every matrix
    cdef object source
    # which blocks stay
    cdef uint8_t *uses              # of every block, of late
    cdef int32_t *kept
    cdef int32_t n_kept, most_kept, hand, passes
    cdef int32_t window             # blocks that are asked for ahead
    cdef int32_t open               # the block that is referenced, -1 if there is none
    cdef const uint8_t *bytes       # its bytes
    cdef int32_t n_needed, next_needed, n_asked     # of the blocks for one token: all, used, and asked for
    # scratch: how much of it, and where
    cdef size_t cols, most, piece_bytes, sums, rows
    cdef int32_t *active            # channels
    cdef int32_t *needed            # blocks that hold them
    cdef int8_t *values             # of a piece: its activations,
    cdef int32_t *places            # 0, 1, 2, ...,
    cdef uint8_t *codes             # its codes, channel-major,
    cdef int32_t *partial           # and its sums
    cdef int32_t *total             # sums of each scale group

    cdef int32_t add(self, int64_t offset, const lb_matrix *m, int32_t per_block) except -1
    cdef const uint8_t *_open(self, int32_t block) noexcept nogil
    cdef void _close(self) noexcept nogil
    cdef int _sums(self, const ChannelLayer *w, const int8_t *q, int32_t threads) noexcept nogil
    cdef bint _piece(self, const ChannelLayer *w, const int8_t *q, int32_t begin, int32_t end, int32_t room,
                     int32_t *sums, int32_t threads) noexcept nogil
    cdef const uint8_t *_block_of(self, const ChannelLayer *w, int32_t channel) noexcept nogil
    cdef void _age(self) noexcept nogil


cdef class PagedChannels:
    cdef ChannelLayer layer
    cdef Pager pager
    cdef ChannelPager channels
    cdef int32_t scale_block

    cdef int multiply_channels(self, const lb_activations *x, float *y, ptrdiff_t y_stride,
                               int32_t threads) noexcept nogil
