"""The machine's own limits, measured in the same run as the speed that is held against them."""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t

from lowbit._kernels.dispatch cimport alloc_huge, free_aligned, nanoseconds, parallel, table
from libc.string cimport memset

cdef enum:
    PIECE = 1 << 20         # bytes that a thread reads at a time

STREAMS = (1, 2, 4, 8, 16)


cdef struct ReadWork:
    const uint64_t *memory
    uint64_t sink
    int32_t streams


cdef void read_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef ReadWork *c = <ReadWork *>context
    cdef const uint64_t *p = c.memory + <size_t>begin * (PIECE // 8)
    cdef size_t n = <size_t>(end - begin) * (PIECE // 8)
    c.sink ^= table.read(p, n, c.streams)


def read_bandwidths(int32_t threads=1, size_t n_bytes=512 << 20, int32_t repeat=3) -> dict:
    """Measure how fast threads read memory that is not in a cache.

    Some processors read one sequential stream at the speed of memory, others only several at once.

    Returns
    -------
    dict of int to float
        For 1, 2, 4, 8 and 16 streams that each thread reads in turn: bytes per second of all threads, the best of
        `repeat` times.
    """
    cdef ReadWork work
    cdef int64_t start, taken
    cdef int32_t _, pieces = <int32_t>(n_bytes // PIECE)
    work.sink = 0
    work.memory = <const uint64_t *>alloc_huge(<size_t>pieces * PIECE)
    if work.memory == NULL:
        raise MemoryError("no memory to measure reading")
    rates = dict.fromkeys(STREAMS, 0.0)
    try:
        memset(<void *>work.memory, 1, <size_t>pieces * PIECE)
        for _ in range(repeat):
            for work.streams in STREAMS:
                with nogil:
                    start = nanoseconds()
                    parallel(read_work, &work, pieces, 8, threads)
                    taken = nanoseconds() - start
                rates[work.streams] = max(rates[work.streams], <double>pieces * PIECE * 1e9 / <double>taken)
    finally:
        free_aligned(<void *>work.memory)
    return rates


def read_bandwidth(int32_t threads=1, size_t n_bytes=512 << 20, int32_t repeat=3) -> float:
    """Return the best rate at which `threads` threads read memory, in whatever number of streams: bytes per second."""
    return max(read_bandwidths(threads, n_bytes, repeat).values())


cdef void peak_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef int32_t _
    for _ in range(begin, end):
        (<int64_t *>context)[0] = table.dot_peak(1 << 12)


def dot_peak(int32_t threads=1, int32_t repeat=5) -> float:
    """Return the best rate of int8 multiply-adds that the instruction set reaches in registers, per second."""
    cdef int64_t macs = 0, start, taken, best = 0
    cdef int32_t _, units = 256 * threads
    with nogil:
        for _ in range(repeat):
            start = nanoseconds()
            parallel(peak_work, &macs, units, 1, threads)
            taken = nanoseconds() - start
            if best == 0 or taken < best:
                best = taken
    return <double>macs * units * 1e9 / <double>best
