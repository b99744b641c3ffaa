"""Which instruction set runs, and the pool of threads: the only module that links the micro-kernels.

1. Every instruction set of this build fills a table of function pointers (`table.h`); one table is in use.
2. The other modules cimport the pointer to it, so that they need no rebuild for a new instruction set and all see a
   forced one.
3. The pool belongs to the process, and is entered through `parallel`.
4. What the other modules share beside: sizes that cannot wrap around, buffers, the mode of floats, the look for Ctrl-C.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t

import os
import sys

import numpy as np

from lowbit.errors import UnsupportedISAError


cdef extern from "table.h":
    int lb_isa_count() noexcept
    const char *lb_isa_name(int index) noexcept
    const char *lb_isa_lacks(int index) noexcept
    void lb_isa_use(int index) noexcept
    void lb_set_portable_ternary(lb_matmul_fn *matmul) noexcept
    const lb_kernels lb_table

cdef extern from "cpu.h":
    int32_t lb_cpu_streams() noexcept

cdef extern from "arena.h":
    void lb_open_arena() noexcept nogil
    void lb_close_arena() noexcept nogil
    void *lb_alloc_weights(size_t bytes) noexcept nogil
    void lb_free_weights(void *p) noexcept nogil

cdef extern from "pool.h":
    int LB_MAX_THREADS
    void lb_parallel(work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads) noexcept nogil
    void lb_pool_after_fork() noexcept nogil

cdef extern from "floats.h":
    lb_float_mode lb_begin_floats() noexcept nogil
    lb_float_mode lb_begin_doubles() noexcept nogil
    void lb_end_floats(lb_float_mode before) noexcept nogil

cdef extern from "os.h":
    int32_t lb_cores() noexcept nogil
    int64_t lb_nanoseconds() noexcept nogil
    void *lb_alloc_aligned(size_t n_bytes) noexcept nogil
    void *lb_alloc_huge(size_t n_bytes) noexcept nogil
    void lb_free_aligned(void *memory) noexcept nogil

cdef enum:
    LOOK_NS = 20000000          # between two looks for Ctrl-C, each of which takes the GIL

table = &lb_table
streams = 1
MAX_THREADS = LB_MAX_THREADS
_active = -1


cdef void parallel(work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads) noexcept nogil:
    lb_parallel(work, context, n_units, chunk, n_threads)


cdef lb_float_mode begin_floats() noexcept nogil:
    return lb_begin_floats()


cdef lb_float_mode begin_doubles() noexcept nogil:
    return lb_begin_doubles()


cdef void end_floats(lb_float_mode before) noexcept nogil:
    lb_end_floats(before)


cdef class PlainFloats:
    """Python code under ``with PlainFloats():`` computes in the mode of floats.h, whatever the host program set."""
    cdef lb_float_mode before

    def __enter__(self):
        self.before = lb_begin_doubles()

    def __exit__(self, *_):
        lb_end_floats(self.before)


cdef class Arena:
    """Matrices that are made under ``with Arena():`` lie together in memory, as is best for those that end together."""

    def __enter__(self):
        lb_open_arena()

    def __exit__(self, *_):
        lb_close_arena()


cdef size_t checked(size_t n_bytes, str what) except? 0:
    if n_bytes == LB_TOO_LARGE:
        raise MemoryError(f"{what}: more bytes than this machine has addresses for")
    return n_bytes


cdef class Buffers:
    def __cinit__(self):
        self.kept = []

    cdef void *take(self, size_t rows, size_t row_bytes) except NULL:
        cdef char[::1] view = np.empty(checked(lb_plus(lb_times(rows, row_bytes), 64), "a buffer"), np.int8)
        self.kept.append(view)
        self.nbytes += rows * row_bytes
        return <void *>((<size_t>&view[0] + 63) // 64 * 64)


cdef class Interrupts:
    cdef bint wanted(self) noexcept nogil:
        """Whether to end the work, and call `check`."""
        cdef int64_t now = lb_nanoseconds()
        if now < self.next:
            return False
        self.next = now + LOOK_NS
        return self._look()

    cdef bint _look(self) noexcept with gil:
        try:
            PyErr_CheckSignals()    # does nothing on any thread but the main one
        except BaseException as error:
            self.error = error
            return True
        return False

    cdef int check(self) except -1:
        """Raise what the signal's handler raised, if there is something."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        return 0


cdef void register_portable_ternary(lb_matmul_fn *matmul) noexcept:
    lb_set_portable_ternary(matmul)


cdef void *alloc_aligned(size_t n_bytes) noexcept nogil:
    return lb_alloc_aligned(n_bytes)


cdef void *alloc_huge(size_t n_bytes) noexcept nogil:
    return lb_alloc_huge(n_bytes)


cdef void *alloc_weights(size_t n_bytes) noexcept nogil:
    return lb_alloc_weights(n_bytes)


cdef void free_weights(void *memory) noexcept nogil:
    lb_free_weights(memory)


cdef void free_aligned(void *memory) noexcept nogil:
    lb_free_aligned(memory)


cdef int64_t nanoseconds() noexcept nogil:
    return lb_nanoseconds()


def cores() -> int:
    """Return how many cores this process may use."""
    return lb_cores()


def compiled() -> list:
    """Return the names of the instruction sets in this build, the plainest first."""
    return [lb_isa_name(i).decode() for i in range(lb_isa_count())]


def missing() -> dict:
    """Return why instruction sets of this build cannot run here, by name."""
    return {lb_isa_name(i).decode(): lb_isa_lacks(i).decode() for i in range(lb_isa_count()) if lb_isa_lacks(i) != NULL}


def available() -> list:
    """Return the names of the instruction sets in this build that can run here, the plainest first."""
    return [name for name in compiled() if name not in missing()]


def active() -> str:
    """Return the name of the instruction set in use."""
    return lb_isa_name(_active).decode()


def use(name=None) -> None:
    """Use an instruction set from now on, in all of lowbit; None takes the best one."""
    global _active
    cdef const char *lacks
    names = compiled()
    if name is None:
        name = available()[-1]
    if name not in names:
        raise UnsupportedISAError(f"unknown instruction set {name!r}; this build has {', '.join(names)}")
    index = names.index(name)
    lacks = lb_isa_lacks(index)
    if lacks != NULL:
        raise UnsupportedISAError(f"no {name}: {lacks.decode()}; there are {', '.join(available())}")
    lb_isa_use(index)
    _active = index


def use_streams(n=None) -> None:
    """Read this many row groups at a time from now on, 1 to 8, for one token; None takes what suits the processor."""
    global streams
    n = lb_cpu_streams() if n is None else n
    if not 1 <= n <= LB_MAX_STREAMS:
        raise ValueError(f"row groups are read in 1 to {LB_MAX_STREAMS} streams, not {n}")
    streams = n


def active_streams() -> int:
    """Return how many row groups are read at a time for one token."""
    return streams


def _after_fork():
    lb_pool_after_fork()


if sys.byteorder != "little":
    raise ImportError("lowbit runs on little-endian machines only")
use_streams()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
