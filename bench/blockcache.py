"""A file used in the same order over and over, within less memory than it takes: who reads how much, in which time.

    python bench/blockcache.py [--folder FOLDER] [--megabytes 600] [--record docs/block-cache.json]

In every round and for every budget from 10 to 100 % of the file, in turn:

* the disk: the best rate of direct reads of 1 MB, 1, 4 or 8 at a time;
* `order`: BlockCache that was told the order;
* `lru`: BlockCache without an order, but with hints for the next blocks, so that it reads ahead as well;
* `mmap`: the file mapped by a process of its own, in a memory control group whose limit is the budget. Its pages are
  dropped from the page cache before; tried without advice and with MADV_SEQUENTIAL, and the quicker one counts. Left
  out where control groups are not for us to make.

Each goes through the file once, and then again while it is measured; "using" a block is adding up its 64-bit words. The
least number of reads (Belady 1966) is computed from the same sequence of blocks, for as many blocks as fit into the
budget without any bookkeeping. The best of the rounds is recorded, and the plot goes beside the record.
"""

from __future__ import annotations

import argparse
import heapq
import json
import mmap
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from environment import environment
from plots import STYLE
from tqdm import tqdm

from lowbit.kernels import BlockCache

mpl.use("Agg")
import matplotlib.pyplot as plt

HINTS = 16  # blocks that the LRU cache is told ahead
CURVES = {
    "order": ("BlockCache, order known", "#0072B2", "o"),
    "lru": ("the same, LRU with read-ahead", "#E69F00", "s"),
    "mmap": ("mmap under a memory limit", "#CC79A7", "^"),
}


def belady(trace: list[int], capacity: int) -> list[bool]:
    """Tell which uses miss when the block used again last is evicted: no policy misses less often."""
    later = [len(trace)] * len(trace)
    seen: dict[int, int] = {}
    for t in range(len(trace) - 1, -1, -1):
        later[t] = seen.get(trace[t], len(trace) + t)
        seen[trace[t]] = t
    resident: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    missed = []
    for t, block in enumerate(trace):
        missed.append(block not in resident)
        if missed[-1] and len(resident) == capacity:
            while True:
                use, victim = heapq.heappop(queue)
                if resident.get(victim) == -use:
                    del resident[victim]
                    break
        resident[block] = later[t]
        heapq.heappush(queue, (-later[t], block))
    return missed


def use(view: memoryview | mmap.mmap) -> int:
    """Read all of a block."""
    return int(np.frombuffer(view, np.uint64).sum())


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def disk_rate(path: Path, n_bytes: int) -> float:
    """Return the best rate of direct reads of 1 MB at a time, in bytes per second."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = 1 << 20
    best = 0.0

    def read(first: int, step: int) -> None:
        buffer = mmap.mmap(-1, size)
        for i in range(first, n_bytes // size, step):
            os.preadv(fd, [buffer], i * size)

    for depth in (1, 4, 8):
        threads = [threading.Thread(target=read, args=(i, depth)) for i in range(depth)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, n_bytes / (time.perf_counter() - start))
    os.close(fd)
    return best


def cached(path: Path, table: np.ndarray, budget: int, order: bool) -> dict[str, float]:
    """Measure one cycle of the cache."""
    n = len(table)
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


def bytes_from_disk() -> int:
    """Return what this process has caused to be read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def map_file(group: Path, path: Path, length: int, advice: int, out: Any) -> None:
    """Measure one cycle over a mapped file; runs in its own process."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    mapped.madvise(advice)
    words = np.frombuffer(mapped, np.uint64)
    for cycle in range(2):
        if cycle:
            before, start = bytes_from_disk(), time.perf_counter()
        for at in range(0, len(words), length // 8):
            words[at : at + length // 8].sum()
    out.send({"seconds": time.perf_counter() - start, "bytes": bytes_from_disk() - before})


def mapped(path: Path, length: int, budget: int) -> dict[str, float] | None:
    """Measure a process that maps the file, under a limit of the budget and a little for the kernel's own tables."""
    best = None
    for advice in (mmap.MADV_NORMAL, mmap.MADV_SEQUENTIAL):
        forget(path)
        with control_group(budget + (4 << 20)) as group:
            if group is None:
                return None
            mine, theirs = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(
                target=map_file, args=(group, path, length, advice, theirs)
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


# --- all together ------------------------------------------------------------------------------------------------


def measure(path: Path, length: int, percents: list[int], rounds: int) -> dict[str, Any]:
    """Measure everything in turn; return the record."""
    size = path.stat().st_size
    n = size // length
    table = np.stack([np.zeros(n, np.int64), np.arange(n) * length, np.full(n, length)], 1)
    trace = [*range(n)] * 4
    rows = []
    for percent in percents:
        budget = size * percent // 100
        misses = belady(trace, budget // length)
        least = sum(misses[n : 3 * n]) // 2 * length
        rows.append({"percent": percent, "budget": budget, "least_bytes": least, "engines": {}})
    content = np.fromfile(path, np.uint64)
    rates, resident = [], []
    with tqdm(total=rounds * len(rows) * 4, unit="run", file=sys.stderr) as progress:
        for _ in range(rounds):
            for row in rows:
                forget(path)
                rates.append(disk_rate(path, size // 2))
                start = time.perf_counter()
                for at in range(0, len(content), length // 8):
                    use(memoryview(content[at : at + length // 8]))
                resident.append(time.perf_counter() - start)
                progress.update()
                for name in CURVES:
                    if name == "mmap":
                        result = mapped(path, length, row["budget"])
                    else:
                        result = cached(path, table, row["budget"], name == "order")
                    progress.update()
                    best = row["engines"].get(name)
                    if result and (best is None or result["seconds"] < best["seconds"]):
                        row["engines"][name] = result
    return {
        "environment": environment(),
        "file_bytes": size,
        "block_bytes": length,
        "disk_bytes_per_second": max(rates),
        "disk_bytes_per_second_all": rates,
        "resident_seconds": min(resident),
        "rows": rows,
    }


def limit(record: dict[str, Any], row: dict[str, Any]) -> float:
    """Return the least seconds per cycle: the least bytes at the disk's rate, or everything at the memory's."""
    return max(row["least_bytes"] / record["disk_bytes_per_second"], record["resident_seconds"])


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot bytes and seconds over the budget."""
    rows = record["rows"]
    percents = [row["percent"] for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for axis, key, scale in ((left, "bytes", 1e-6), (right, "seconds", 1)):
            for name, (label, color, marker) in CURVES.items():
                points = [(r["percent"], r["engines"][name][key] * scale) for r in rows if name in r["engines"]]
                if points:
                    axis.plot(*zip(*points), color=color, marker=marker, ms=4, label=label)
            axis.set_xlabel("budget, % of the file")
            axis.set_xticks(percents)
        left.plot(percents, [r["least_bytes"] / 1e6 for r in rows], "k--", lw=1, label="least possible (Belady)")
        right.plot(percents, [limit(record, r) for r in rows], "k--", lw=1, label="least bytes / disk rate, or memory")
        left.set_ylabel("MB read per cycle")
        right.set_ylabel("seconds per cycle")
        for axis in (left, right):
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7.5)
        figure.savefig(path, metadata={"Date": None})


def table_of(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| budget | least MB | order | LRU | mmap | limit s | order | LRU | mmap |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        cells = [f"{row['percent']} %", f"{row['least_bytes'] / 1e6:.0f}"]
        for key, form in (("bytes", "{:.0f}"), ("seconds", "{:.2f}")):
            if key == "seconds":
                cells.append(f"{limit(record, row):.2f}")
            for name in CURVES:
                value = row["engines"].get(name, {}).get(key)
                cells.append("" if value is None else form.format(value / 1e6 if key == "bytes" else value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the file is made")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--block", type=int, default=256, help="KB per block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--percents", type=int, nargs="+", default=list(range(10, 101, 10)))
    parser.add_argument("--record", type=Path, default=Path("docs/block-cache.json"))
    options = parser.parse_args()
    if not hasattr(os, "O_DIRECT"):
        sys.exit("this benchmark needs direct reads, which this system does not have")
    length = options.block << 10
    path = options.folder / f"lowbit-blockcache-{os.getpid()}.bin"
    try:
        with path.open("wb") as file:
            random = np.random.default_rng(0)
            for _ in range((options.megabytes << 20) // length):
                file.write(random.bytes(length))
            file.flush()
            os.fsync(file.fileno())
        record = measure(path, length, options.percents, options.rounds)
    finally:
        path.unlink(missing_ok=True)
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.record.with_suffix(".svg"))
    print(f"disk {record['disk_bytes_per_second'] / 1e6:.0f} MB/s, all from memory {record['resident_seconds']:.3f} s")
    print(table_of(record))


if __name__ == "__main__":
    main()
