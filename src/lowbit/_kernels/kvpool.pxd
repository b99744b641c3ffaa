from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.dispatch cimport lb_kv


# Keys and values of LB_KV_SPAN positions, for all layers.
cdef class Block:
    cdef char *memory
    cdef int32_t holders        # sequences that read it, or fill it
    cdef bytes parent           # chain of the block before it; None while the pool does not know it
    cdef bytes chain            # its own; None if it is not full
    cdef bytes tokens           # int32, those that are known to be in it
    cdef Block state            # recurrent state behind its last token, or None


cdef class KVPool:
    cdef readonly size_t block_bytes
    cdef readonly size_t state_bytes    # of one recurrent state; 0: there is none
    cdef readonly int32_t state_blocks  # what it counts as in blocks
    cdef readonly int32_t border        # positions from one state that is kept to the next
    cdef readonly int32_t kv_type
    cdef readonly object limit, kept    # blocks, or None
    cdef readonly int32_t allocated        # in blocks
    cdef size_t layer_bytes
    cdef lb_kv shape                    # of layer 0
    cdef dict full, children, idle
    cdef dict snapshots                 # blocks with a state
    cdef list growing                   # sequences
    cdef list spare                     # blocks of which nothing is known
    cdef readonly int64_t hits, evictions
    cdef public object disk             # lowbit.loading.kvdisk.KVDisk, or None

    cdef lb_kv layer(self, int32_t index) noexcept nogil
    cdef tuple part(self, bytes chain, bytes rest)
    cdef Block take(self)
    cdef Block take_state(self)
    cdef int keep_state(self, Block block, const float *state) except -1
    cdef int drop_state(self, Block block) except -1
    cdef bint make_room(self) except -1
    cdef int hold(self, Block block) except -1
    cdef int let_go(self, Block block) except -1
    cdef int _drop(self, Block block) except -1
    cdef Block learn(self, Block block, bytes parent, bytes tokens)
