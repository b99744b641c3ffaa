"""A cache of file blocks under a hard budget of memory: the Python edge of `blockcache.c`, where all of it happens.

1. `Cache` checks what it is given and owns the C cache, `BlockCache` ends it; `blocksources.pyx` has the files.
2. `pinned` lends the cache's own memory as a read-only buffer; the block stays in place until the last view is gone.
   What a view needs lives as long as the view, in whatever order the garbage collector takes a cycle apart
   (`no_gc_clear`), and before it begins with that the cache's threads have ended (`__del__`, which Cython calls for a
   class of C only where Python's whole ABI may be used; so the class that has it is one of Python's).
3. Whoever waits looks every now and then whether a signal came, with the GIL, callers without it too. What its handler
   raises is kept until `raise_error`.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t

from lowbit._kernels.blocksources cimport Sources, lb_source

import os
import threading

import numpy as np

from lowbit.errors import FormatError, LowbitError, MemoryBudgetError


cdef extern from "blockcache.h":
    ctypedef struct lb_cache_stats:
        int64_t hits, misses, late, reads, prefetched, wasted, evictions, errors, bytes_read, wait_ns
        int64_t memory, peak_memory, budget
        int64_t pinned_blocks, pinned_bytes, ring_slots, ring_slot_bytes, lru_slots, lru_slot_bytes

    lb_cache *lb_cache_new(const lb_source *sources, int32_t n_sources, const int64_t *table, int32_t n_blocks,
                           int64_t budget, int32_t n_readers, int32_t *error, int64_t *smallest) noexcept
    void lb_cache_on_wait(lb_cache *c, int (*interrupted)(void *) noexcept, void *context) noexcept nogil
    int32_t lb_cache_close(lb_cache *c) noexcept nogil
    void lb_cache_end(lb_cache *c) noexcept nogil
    void lb_cache_free(lb_cache *c) noexcept nogil
    int32_t lb_cache_set_order(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes,
                               int64_t *smallest) noexcept nogil
    int32_t lb_cache_prefetch(lb_cache *c, const int32_t *blocks, int32_t n) noexcept nogil
    const void *lb_cache_acquire(lb_cache *c, int32_t block, int64_t timeout_ns, int32_t *error) noexcept nogil
    void lb_cache_release(lb_cache *c, int32_t block) noexcept nogil
    void lb_cache_count_uses(lb_cache *c) noexcept nogil
    uint8_t *lb_cache_mark(lb_cache *c, int32_t block) noexcept nogil
    int32_t lb_cache_passes_through(const lb_cache *c, int32_t block) noexcept nogil
    lb_cache_stats lb_cache_get_stats(lb_cache *c) noexcept nogil
    void lb_cache_after_fork() noexcept

READERS = 4


cdef const void *acquire(lb_cache *c, int32_t block, int32_t *error) noexcept nogil:
    return lb_cache_acquire(c, block, -1, error)


cdef void release(lb_cache *c, int32_t block) noexcept nogil:
    lb_cache_release(c, block)


cdef uint8_t *mark(lb_cache *c, int32_t block) noexcept nogil:
    return lb_cache_mark(c, block)


cdef bint passes_through(const lb_cache *c, int32_t block) noexcept nogil:
    return lb_cache_passes_through(c, block)


cdef bint prefetch(lb_cache *c, int32_t block, int32_t n) noexcept nogil:
    cdef bint all = True
    cdef int32_t i
    for i in range(block, block + n):
        all = lb_cache_prefetch(c, &i, 1) and all
    return all


cdef int is_interrupted(void *context) noexcept with gil:
    try:
        PyErr_CheckSignals()
        return 0
    except BaseException as failure:
        (<Cache>context)._failures[PyThread_get_thread_ident()] = failure
        return 1


def _numbers(name, values, int64_t columns):
    """Return an integer array of one or more columns, whatever the caller gave."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.reshape(0, columns) if columns > 1 else array.reshape(0)
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != (2 if columns > 1 else 1) or (
            columns > 1 and array.shape[1] != columns):
        raise FormatError(f"{name} must be integers, {f'{columns} columns' if columns > 1 else 'one row'} of them")
    return np.ascontiguousarray(array, np.int64)


@cython.final
@cython.no_gc_clear
cdef class _Block:
    """One referenced block, as a buffer: released when this and all views of it are gone."""
    cdef Cache cache
    cdef const void *memory
    cdef int32_t block

    def __dealloc__(self):
        if self.memory != NULL:
            lb_cache_release(self.cache.c, self.block)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.memory, self.cache._table[self.block, 2], 1, flags)


@cython.final
@cython.no_gc_clear
cdef class _Pin:
    """A context in which a block is referenced."""
    cdef Cache cache
    cdef int32_t block
    cdef object view

    def __enter__(self):
        cdef _Block block = _Block.__new__(_Block)
        if self.view is not None:
            raise LowbitError(f"block {self.block} is pinned by this context already")
        block.cache, block.block = self.cache, self.block
        block.memory = self.cache._acquire(self.block)
        self.view = memoryview(block)
        return self.view

    def __exit__(self, *exception):
        view, self.view = self.view, None
        try:
            view.release()
        except BufferError:
            pass        # an array still looks at it: the block is released with that


@cython.no_gc_clear
cdef class Cache:
    """All of a `BlockCache` but its end."""

    def __cinit__(self, *args, **options):
        self._failures = {}

    def __init__(self, sources, blocks, budget, *, direct=None, int32_t readers=READERS):
        cdef const int64_t[:, ::1] table
        cdef int32_t error = 0
        cdef int64_t smallest = 0, limit
        if self.c != NULL:
            raise LowbitError("a cache is made once")
        if isinstance(sources, (str, bytes, os.PathLike)):
            raise FormatError("sources must be a sequence of them")
        self._table = _numbers("blocks", blocks, 3)
        if len(self._table) == 0 or len(self._table) > 1 << 30:
            raise FormatError(f"a cache of {len(self._table)} blocks")
        if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)):
            raise FormatError(f"the budget must be a number of bytes, not {budget!r}")
        if not 0 <= readers <= 16:
            raise FormatError(f"readers must be from 0 to 16, not {readers}")
        limit = min(max(int(budget), 0), 1 << 62)
        table = self._table
        self.n_blocks = table.shape[0]
        self._sources = Sources(list(sources), direct, self._failures)
        try:
            self._sources.check(self._table)
            self.c = lb_cache_new(self._sources.c, self._sources.n, &table[0, 0], self.n_blocks, limit, readers, &error,
                                  &smallest)
            if self.c == NULL:
                if error == LB_CACHE_BUDGET:
                    raise MemoryBudgetError(
                        f"a budget of {budget} bytes is too small for this cache: it needs {smallest}", smallest)
                raise MemoryError(f"no memory for a cache of {budget} bytes")
        except BaseException:
            self._sources.close()
            raise
        lb_cache_on_wait(self.c, is_interrupted, <void *>self)

    def __dealloc__(self):
        if self.c != NULL:
            with nogil:
                lb_cache_free(self.c)

    def _drop(self):
        if self.closed or self.c == NULL:
            return
        if not self._sources.objects:
            try:
                self._end()
            except Exception:
                pass            # the interpreter ends, and the modules that close files are gone: so are the files
            return
        # An object may be in the middle of answering, further down this thread's stack or in want of a lock held there:
        # so another thread, which keeps the cache alive, waits for that.
        try:
            threading.Thread(target=self._end).start()
        except Exception:
            Py_INCREF(self)     # the interpreter ends: nothing may be freed any more

    def _end(self):
        with nogil:
            lb_cache_end(self.c)
        self.closed = True
        self._sources.close()

    cdef int raise_error(self, int32_t block, int32_t error) except -1:
        failure = self._failures.pop(PyThread_get_thread_ident(), None)
        if error == LB_CACHE_INTERRUPTED:
            raise failure
        if error == LB_CACHE_OWN_WAIT:
            raise LowbitError("the block cache would wait for this very thread: read_at must not ask its own cache")
        if error == LB_CACHE_CLOSED:
            raise LowbitError("the block cache is closed")
        if error == LB_CACHE_FORKED:
            raise LowbitError("the block cache belongs to the parent process: make one after the fork")
        if error == LB_CACHE_NO_BLOCK:
            raise IndexError(f"there is no block {block}: the cache has {self.n_blocks}")
        if error == LB_CACHE_NO_MEMORY:
            raise MemoryError("no memory for the block cache")
        if error == LB_CACHE_BUSY:
            raise LowbitError("blocks are still pinned")
        source, offset, length = self._table[block].tolist()
        name = self._sources.names[source]
        if error == LB_CACHE_TRUNCATED:
            place = f"{length} bytes at {offset}"
            raise FormatError(f"{name}: the file has become shorter, block {block} ({place}) is cut off")
        if failure is not None and (isinstance(failure, LowbitError) or not isinstance(failure, Exception)):
            raise failure       # what was raised in a source knows best; or Ctrl-C, while it was being asked
        raise OSError(error, os.strerror(error), name) from failure

    cdef lb_cache *_engine(self) except NULL:
        if self.c == NULL:
            raise LowbitError("the block cache was never made")
        return self.c

    cdef const void *_acquire(self, int32_t block) except NULL:
        cdef const void *memory
        cdef int32_t error = 0
        cdef lb_cache *c = self._engine()
        with nogil:
            memory = lb_cache_acquire(c, block, -1, &error)
        if memory == NULL:
            self.raise_error(block, error)
        return memory

    def get(self, int32_t block) -> bytes:
        """Return a copy of a block's bytes.

        Parameters
        ----------
        block : int

        Returns
        -------
        bytes

        Raises
        ------
        OSError
            If reading fails; the cache stays usable, and the next call tries again.
        FormatError
            If the file has become too short for the block.
        LowbitError
            If the cache is closed, or asked by one of its own sources.
        """
        cdef const void *memory = self._acquire(block)
        try:
            return PyBytes_FromStringAndSize(<const char *>memory, self._table[block, 2])
        finally:
            lb_cache_release(self.c, block)

    def pinned(self, int32_t block):
        """Return a context manager for a block in place: a read-only memoryview on the cache's own memory.

        The block stays until the context has ended and no array made from the view is left. Pinned blocks take slots:
        if as many are held as there are slots, whoever asks for one more waits.

        Parameters
        ----------
        block : int

        Raises
        ------
        OSError, FormatError, LowbitError
            On entering the context, as `get` does.
        """
        cdef _Pin pin = _Pin.__new__(_Pin)
        if not 0 <= block < self.n_blocks:
            self.raise_error(block, LB_CACHE_NO_BLOCK)
        pin.cache, pin.block = self, block
        return pin

    def set_order(self, order, lru_bytes=0) -> None:
        """Say in which order the blocks are used, over and over.

        As many blocks as fit stay resident, spread evenly over the order; the rest is read ahead of its use. Blocks
        outside the order, and uses out of order, still work. What was resident is dropped.

        Parameters
        ----------
        order : sequence of int
            Distinct blocks; empty: least recently used for all blocks, as at first.
        lru_bytes : int
            Memory for the blocks outside the order, which get two slots at least.

        Raises
        ------
        FormatError
            If a block is unknown or named twice.
        MemoryBudgetError
            If the budget is too small for an order; the message names the smallest that works.
        LowbitError
            If blocks are pinned, or the cache is closed.
        """
        cdef int32_t[::1] ids
        cdef int32_t result, n
        cdef int64_t smallest = 0, lru = min(max(int(lru_bytes), 0), 1 << 62)
        array = _numbers("order", order, 1)
        ids = np.clip(array, -1, self.n_blocks).astype(np.int32)
        n = min(ids.shape[0], self.n_blocks + 1)    # so many cannot be distinct
        cdef lb_cache *c = self._engine()
        with nogil:
            result = lb_cache_set_order(c, &ids[0] if n else NULL, n, lru, &smallest)
        if result == LB_CACHE_NO_BLOCK:
            raise FormatError(f"an order names distinct blocks from 0 to {self.n_blocks - 1}")
        if result == LB_CACHE_BUDGET:
            raise MemoryBudgetError(f"this order of blocks needs a budget of {smallest} bytes", smallest)
        if result:
            self.raise_error(0, result)

    def prefetch(self, blocks) -> None:
        """Ask for blocks outside the order to be read soon.

        Parameters
        ----------
        blocks : sequence of int
        """
        cdef int32_t[::1] ids
        array = _numbers("blocks", blocks, 1)
        if ((array < 0) | (array >= self.n_blocks)).any():
            raise FormatError(f"blocks are numbered from 0 to {self.n_blocks - 1}")
        ids = array.astype(np.int32)
        if ids.shape[0]:
            lb_cache_prefetch(self._engine(), &ids[0], ids.shape[0])

    def count_uses(self) -> None:
        """Evict blocks outside the order by how often they were used from now on, rather than by when."""
        lb_cache_count_uses(self._engine())

    def stats(self) -> dict:
        """Return what happened so far, and how the memory is divided.

        Returns
        -------
        dict
            ``hits``: blocks asked for that were there; ``misses``: those that had to be waited for, ``late`` those of
            them that were being read ahead. ``reads``: blocks read, ``prefetched`` those read ahead, ``wasted`` those
            of them evicted without use. ``evictions``, ``errors``. ``bytes_read``: as transferred, so with direct
            reads whole pages. ``wait_seconds``: time that `get` and `pinned` waited. ``memory``, ``peak_memory``,
            ``budget``: bytes. ``pinned_blocks``, ``pinned_bytes``, ``ring_slots``, ``ring_slot_bytes``,
            ``lru_slots``, ``lru_slot_bytes``: how the memory is divided.
        """
        cdef lb_cache *c = self._engine()
        cdef lb_cache_stats s
        with nogil:
            s = lb_cache_get_stats(c)
        cdef dict result = s
        result["wait_seconds"] = result.pop("wait_ns") / 1e9
        return result

    def close(self) -> None:
        """End the reader threads and give the memory back; does nothing when closed.

        Raises
        ------
        LowbitError
            If blocks are still pinned.
        """
        cdef int32_t result
        if self.closed or self.c == NULL:
            return
        with nogil:
            result = lb_cache_close(self.c)
        if result:
            self.raise_error(0, result)
        self.closed = True
        self._sources.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __len__(self):
        return self.n_blocks

    def __repr__(self):
        if self.closed:
            return "<BlockCache, closed>"
        s = self.stats()
        return f"<BlockCache of {self.n_blocks} blocks, {s['memory']} of {s['budget']} bytes>"


class BlockCache(Cache):
    """Blocks of files under a hard budget of memory, for any number of threads.

    Parameters
    ----------
    sources : sequence of str, PathLike, int or object
        Files: paths, or file descriptors that stay open while the cache is. Or objects with a method
        ``read_at(offset, n)`` that returns n bytes, fewer at the end only.
    blocks : array_like of int, shape (n, 3)
        Source (an index into `sources`), offset and length of each block, in bytes.
    budget : int
        Most bytes to use, for the blocks and for keeping account of them.
    direct : bool, optional
        Read past the page cache of the system, or through it (and ask it to forget). None: directly where that works.
    readers : int
        Threads that read ahead, up to 16.

    Raises
    ------
    FormatError
        If the table is not one, or a block lies outside its file.
    MemoryBudgetError
        If the budget is too small; the message names the smallest that works.
    OSError
        If a file cannot be opened.
    """

    __slots__ = ()

    def __del__(self):
        """End the reader threads before anything that they use is taken apart; blocks that are pinned stay."""
        self._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lb_cache_after_fork)
