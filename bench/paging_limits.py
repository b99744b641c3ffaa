"""What blocks of a file, used in one order over and over, cost others: the disk, Belady, LRU and mmap."""

from __future__ import annotations

import heapq
import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.kernels import BlockCache

__all__ = ["belady", "cached", "disk_rate", "forget", "mapped", "use"]

PIECE = 1 << 20
HINTS = 16  # blocks that the LRU cache is told ahead


def belady(sizes: Sequence[int], capacity: int, cycles: int = 4) -> float:
    """Bytes per cycle that are read if blocks of these sizes are used in order, over and over: always evict the block
    that is used last from now, and do not keep a block that would be evicted next (Belady 1966). None reads less."""
    n, resident, used, read = len(sizes), {}, 0, 0
    heap: list[tuple[int, int]] = []
    for at in range(n * cycles):
        block = at % n
        if at == n:
            read = 0  # the first cycle fills the cache
        if block not in resident:
            read += sizes[block]
            used += sizes[block]
        resident[block] = at + n
        heapq.heappush(heap, (-(at + n), block))
        while used > capacity:
            when, victim = heapq.heappop(heap)
            if resident.get(victim) == -when:
                del resident[victim]
                used -= sizes[victim]
    return read / (cycles - 1)


def disk_rate(path: Path, n_bytes: int) -> float:
    """Bytes per second of the last bytes of a file, read past the page cache in pieces of 1 MB: best of one to eight
    reads at a time."""
    best = 0.0
    for n_threads in (1, 2, 4, 8, 4):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        pieces = os.path.getsize(path) // PIECE
        total = min(pieces, n_bytes // PIECE)
        lock, position = threading.Lock(), iter(range(pieces - total, pieces))

        def work(fd: int = fd, lock: threading.Lock = lock, position: Any = position) -> None:
            buffer = mmap.mmap(-1, PIECE)
            while True:
                with lock:
                    piece = next(position, None)
                if piece is None:
                    return
                os.preadv(fd, [buffer], piece * PIECE)

        workers = [threading.Thread(target=work) for _ in range(n_threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, total * PIECE / (time.perf_counter() - start))
        os.close(fd)
    return best


def use(view: memoryview | mmap.mmap) -> int:
    """Read all of a block, whole 64-bit words of it."""
    return int(np.frombuffer(view, np.uint64, memoryview(view).nbytes // 8).sum())


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cached(path: Path, blocks: np.ndarray, budget: int, order: bool) -> dict[str, float]:
    """Measure one cycle of a BlockCache over blocks (offset, length): told the order, or LRU with hints.

    Under LRU the next blocks are announced, so that it reads ahead as well.
    """
    n = len(blocks)
    table = np.column_stack([np.zeros(n, np.int64), blocks])
    with BlockCache([path], table, budget) as cache:
        if order:
            cache.set_order(range(n))
        for cycle in range(2):
            if cycle:
                before, start = cache.stats(), time.perf_counter()
            for b in range(n):
                if not order and b % (HINTS // 2) == 0:
                    cache.prefetch([(b + i) % n for i in range(1, HINTS)])
                with cache.pinned(b) as view:
                    use(view)
        seconds, after = time.perf_counter() - start, cache.stats()
    return {"seconds": seconds, "bytes": after["bytes_read"] - before["bytes_read"], "peak": after["peak_memory"]}


# --- mmap under a limit ------------------------------------------------------------------------------------------


@contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """Make a memory control group, of whichever version there is; None where that is not allowed."""
    roots = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
    group = None
    for root, name in roots.items():
        candidate = root / f"lowbit-bench-{os.getpid()}"
        try:
            candidate.mkdir()
        except OSError:
            continue
        try:
            (candidate / name).write_text(str(limit))
        except OSError:
            candidate.rmdir()
            continue
        group = candidate
        break
    try:
        yield group
    finally:
        if group:
            group.rmdir()


def _bytes_from_disk() -> int:
    """Return what this process has caused to be read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _map_file(group: Path, path: Path, blocks: np.ndarray, advice: int, out: Any) -> None:
    """Measure one cycle over a mapped file; runs in its own process."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    mapped.madvise(advice)
    words = np.frombuffer(mapped, np.uint64, len(mapped) // 8)
    for cycle in range(2):
        if cycle:
            before, start = _bytes_from_disk(), time.perf_counter()
        for offset, length in blocks // 8:
            words[offset : offset + length].sum()
    out.send({"seconds": time.perf_counter() - start, "bytes": _bytes_from_disk() - before})


def mapped(path: Path, blocks: np.ndarray, budget: int) -> dict[str, float] | None:
    """Measure one cycle over blocks (offset, length) of the mapped file, in a process whose memory is limited.

    The limit is the budget, and a little for the kernel's own tables. Pages are dropped from the page cache before.
    Tried without advice and with MADV_SEQUENTIAL; the quicker one counts. None where control groups are not for us to
    make.
    """
    best = None
    for advice in (mmap.MADV_NORMAL, mmap.MADV_SEQUENTIAL):
        forget(path)
        with control_group(budget + (4 << 20)) as group:
            if group is None:
                return None
            mine, theirs = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(
                target=_map_file, args=(group, path, blocks, advice, theirs)
            )
            child.start()
            theirs.close()
            try:
                result = mine.recv()
            except EOFError:
                result = None
            except KeyboardInterrupt:
                child.kill()
                raise
            finally:
                child.join()
        if result and (best is None or result["seconds"] < best["seconds"]):
            best = result
    forget(path)
    return best
