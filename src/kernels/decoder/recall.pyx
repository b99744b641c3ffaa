"""A disk behind the pool: full blocks and copies of states go there as soon as there are any, and come back by chain.

What is on the disk, and whether it can be believed, knows `lowbit.loading.kvdisk`. Here it is given memory of the pool
to write from and to read into, so that nothing is copied, and no memory is taken beside the pool's.
"""
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.dispatch cimport LB_KV_SPAN
from lowbit._kernels.kvpool cimport Block, KVPool

from lowbit._kernels.kvpool import chain_of


cdef int store(KVPool pool, Block block, const float *state, int64_t began, int32_t index) except -1:
    """Let the disk keep block `index` of a text, and the state behind it unless that is NULL."""
    pool.disk.put("block", block.chain, began, index,
                  PyMemoryView_FromMemory(block.memory, pool.block_bytes, PyBUF_READ))
    if state != NULL:
        pool.disk.put("state", block.chain, began, index,
                      PyMemoryView_FromMemory(<char *>state, pool.state_bytes, PyBUF_READ))
    return 0


cdef list recall(KVPool pool, bytes tokens, bytes chain, int32_t known):
    """The full blocks of a text that follow the `known` first ones, as far as the disk has them; held.

    Where there are recurrent layers, the last one has a state. While a block is looked at, the system reads the next.
    """
    cdef size_t size = 4 * LB_KV_SPAN, at = known * size
    cdef Block block
    cdef int32_t i
    cdef list chains = [chain], found = []
    while at + size <= <size_t>len(tokens):
        chain = chain_of(chain, tokens[at:at + size])
        if chain not in pool.full and not pool.disk.holds("block", chain):
            break
        chains.append(chain)
        at += size
    while pool.state_bytes and len(chains) > 1 and not has_state(pool, chains[-1]):
        chains.pop()
    try:
        for i in range(1, <int32_t>len(chains)):
            if i + 1 < <int32_t>len(chains):
                pool.disk.expect("block", chains[i + 1])
            at = (known + i - 1) * size
            block = recall_block(pool, chains[i - 1], chains[i], tokens[at:at + size])
            if block is None:
                break
            found.append(block)
        if pool.state_bytes and found and len(found) + 1 == len(chains):
            recall_state(pool, found[-1])
        while pool.state_bytes and found and (<Block>found[-1]).state is None:
            pool.let_go(found.pop())
    except BaseException:
        while found:
            pool.let_go(found.pop())
        raise
    return found


cdef bint has_state(KVPool pool, bytes chain) except -1:
    cdef Block block = pool.full.get(chain)
    return (block is not None and block.state is not None) or pool.disk.holds("state", chain)


cdef Block recall_block(KVPool pool, bytes parent, bytes chain, bytes tokens):
    """A block, held, from the pool or else from the disk; None if it is not there, or there is no room."""
    cdef Block block = pool.full.get(chain)
    cdef bint good = False
    if block is not None:
        pool.hold(block)
        return block
    try:
        block = pool.take()
    except MemoryError:
        return None
    if block is None:
        return None
    try:
        good = pool.disk.get("block", chain, PyMemoryView_FromMemory(block.memory, pool.block_bytes, PyBUF_WRITE))
    finally:
        if not good:
            pool.let_go(block)
    return pool.learn(block, parent, tokens) if good else None


cdef int recall_state(KVPool pool, Block block) except -1:
    """Read the state behind a block, if it has none and there is room."""
    cdef Block state = None
    cdef bint good = False
    if block.state is not None:
        return 0
    try:
        state = pool.take_state()
    except MemoryError:
        return 0
    if state is None:
        return 0
    try:
        good = pool.disk.get("state", block.chain,
                             PyMemoryView_FromMemory(state.memory, pool.state_bytes, PyBUF_WRITE))
    finally:
        if not good:
            pool.allocated -= pool.state_blocks
    if good:
        block.state = state
        pool.snapshots[block] = None
    return 0
