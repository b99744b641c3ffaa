# The block cache for other modules: functions without the GIL, on the `c` of a Cache that the caller keeps alive.
from libc.stdint cimport int32_t, uint8_t

from lowbit._kernels.blocksources cimport Sources


cdef extern from "blockcache.h":
    ctypedef struct lb_cache:
        pass

    enum:
        LB_CACHE_TRUNCATED
        LB_CACHE_CLOSED
        LB_CACHE_FORKED
        LB_CACHE_NO_BLOCK
        LB_CACHE_BUSY
        LB_CACHE_BUDGET
        LB_CACHE_NO_MEMORY
        LB_CACHE_OWN_WAIT
        LB_CACHE_INTERRUPTED


cdef class Cache:
    cdef lb_cache *c
    cdef readonly int32_t n_blocks
    cdef readonly bint closed
    cdef Sources _sources
    cdef object _table
    cdef dict _failures         # what was raised last in each thread: by an object that was asked, by Ctrl-C in a wait

    cdef lb_cache *_engine(self) except NULL
    cdef const void *_acquire(self, int32_t block) except NULL
    # Raises what `acquire` reported in `error`.
    cdef int raise_error(self, int32_t block, int32_t error) except -1


# The bytes of a block, which stay until it is released; or NULL, with what `raise_error` takes in `error`.
cdef const void *acquire(lb_cache *c, int32_t block, int32_t *error) noexcept nogil
cdef void release(lb_cache *c, int32_t block) noexcept nogil
# A byte that goes with the bytes of an acquired block: 0 after every read, then whatever its users make of it.
cdef uint8_t *mark(lb_cache *c, int32_t block) noexcept nogil
# Whether a block takes one of the few slots of the ring, and is gone soon after its release.
cdef bint passes_through(const lb_cache *c, int32_t block) noexcept nogil
# Asks for n blocks from `block` on to be read soon; whether all of them are there.
cdef bint prefetch(lb_cache *c, int32_t block, int32_t n) noexcept nogil
