from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t

from lowbit._kernels.blockcache cimport BlockCache, lb_cache
from lowbit._kernels.dispatch cimport lb_activations, lb_matmul_args, lb_matrix
from lowbit._kernels.filling cimport Fill
from lowbit._kernels.matrix cimport PackedMatrix
from lowbit._kernels.stored cimport Stored


cdef enum:
    # what a pass comes back with, beside 0
    BAD_CODE = 1
    BAD_SCALE = 2
    CANNOT_READ = 3


cdef class Pager:
    cdef readonly BlockCache cache
    cdef lb_cache *blocks           # that of `cache`
    cdef int32_t bad_block, error   # the last block that could not be had or packed; why it could not be had
    cdef int64_t block_bytes, part_bytes
    cdef int32_t[::1] uses          # blocks of experts in the order of use, if somebody wants to know
    cdef int64_t n_uses
    cdef size_t longest, piece_bytes    # of the blocks that are packed; of a thread's piece of one that is unpacked
    cdef int32_t threads
    cdef int32_t held               # most blocks of experts that a job holds: enough others have to be free
    cdef bint has_parts             # some blocks are of experts, and used by some passes
    cdef uint8_t *scratch
    cdef readonly list sources      # what `source` counts
    cdef readonly list table        # (source, offset, length) of every block
    cdef readonly list order        # blocks in the order of use

    cdef void note(self, int32_t block, int32_t n) noexcept nogil
    cdef int32_t add(self, int32_t source, int64_t offset, size_t group_bytes, int32_t groups, int32_t block_groups,
                     bint in_order) except -1


cdef class PagedMatrix:
    cdef lb_matrix m                # without memory of its own
    cdef readonly size_t nbytes     # resident
    cdef Pager pager
    cdef PackedMatrix tail
    cdef Fill fill
    cdef bint stored, own_scales    # a tensor as it lies in the file; scales come with the codes, else m has those
    cdef bint packs                 # a block is packed before its use
    cdef bint unpacks               # or unpacked at each use, as `unpacked` says
    cdef Stored unpacked
    cdef int32_t piece_groups
    cdef object scales              # memory of those that all blocks share
    cdef size_t group_bytes, code_bytes
    cdef int32_t n_groups, block_groups, first_block, first_row_block
    cdef int32_t part_groups, part_blocks   # of one of several matrices; 0 blocks if there is but one

    cdef int span(self, int32_t block, int32_t groups, int32_t threads, lb_matrix *out) noexcept nogil
    cdef void _place(self, lb_matrix *m, uint8_t *memory) noexcept nogil
    cdef int multiply_paged(self, const lb_activations *x, float *y, ptrdiff_t y_stride, int32_t threads) noexcept nogil
    cdef int multiply_parts(self, const int32_t *parts, const lb_matmul_args *args, int32_t n,
                            int32_t threads) noexcept nogil
    cdef bint prefetch_part(self, int32_t part) noexcept nogil
    cdef int _multiply(self, int32_t block, int32_t left, const lb_activations *x, float *y, ptrdiff_t y_stride,
                       int32_t threads) noexcept nogil
    cdef int _multiply_pieces(self, const lb_matmul_args *products, const int32_t *blocks, int32_t n,
                              int32_t threads) noexcept nogil
    cdef int row(self, int32_t row, float *out) noexcept nogil
    cdef int _job(self, const lb_matmul_args *products, const int32_t *blocks, int32_t n, int32_t threads,
                  int status) noexcept nogil
