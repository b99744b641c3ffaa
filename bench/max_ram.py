"""A model in less memory than it has: what a budget costs, against the least that any policy could read.

    python bench/max_ram.py [--shape 2.4B] [--budgets 0.1,0.2,...] [--cache DIR] [--json FILE] [--plot FILE]

Each budget runs in a process of its own, whose peak of memory the system counts from just before the model is loaded.
Beside it, in the same run: the resident model, the rate at which the disk delivers the file in order past the page
cache (best of one to eight reads at a time), and the bytes that Belady's policy, which knows the future, would
read with the same memory for blocks. The ids of every run must equal those of the resident model.
"""

from __future__ import annotations

import argparse
import heapq
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from random_gguf import write_random_gguf

PROMPT = [1, 15, 27, 300, 4, 77, 8, 912]
TOKENS = 12
PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2.4B")
    parser.add_argument("--budgets", default="256MB,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0", help="sizes, or shares of it")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="folder for the random model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(**json.loads(args.child))))
        return
    path = write_random_gguf(args.shape, args.cache)
    resident = measure(path, None, args.threads)
    weights = resident["weight_bytes"]
    results = []
    for word in args.budgets.split(","):
        budget = word if word[-1] in "Bb" else f"{float(word) * weights / 2**20:.0f}MB"
        disk = disk_rate(path)
        one = measure(path, budget, args.threads)
        again = measure(path, None, args.threads)
        assert one["ids"] == resident["ids"] == again["ids"], f"{budget}: another text"
        floor = max(one["bytes_per_token"] / disk, min(resident["seconds"], again["seconds"]))
        one |= {
            "disk_bytes_per_second": disk,
            "resident_seconds": again["seconds"],
            "over_limit": one["seconds"] / floor,
        }
        results.append(one)
        print(
            f"{budget:>8}: process {one['peak'] / 2**20:.0f} MB, {one['bytes_per_token'] / 2**20:.0f} MB per token "
            f"(Belady {one['belady_bytes'] / 2**20:.0f}), {one['seconds']:.3f} s per token, resident "
            f"{again['seconds']:.3f}, disk {disk / 1e9:.2f} GB/s: {one['over_limit']:.2f} x the limit",
            flush=True,
        )
    record = {"shape": args.shape, "weight_bytes": weights, "resident": resident, "budgets": results}
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.plot:
        plot(record, args.plot)


def measure(path: Path, budget: str | None, threads: int) -> dict[str, Any]:
    """Run one budget in a process of its own."""
    task = json.dumps({"path": str(path), "budget": budget, "threads": threads})
    done = subprocess.run([sys.executable, __file__, "--child", task], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def child(path: str, budget: str | None, threads: int) -> dict[str, Any]:
    """Load, decode, and report."""
    import lowbit
    from lowbit.memory import resident_bytes

    lowbit.load().generate("Once", max_tokens=2, seed=1)  # what the first model of a process takes once
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # sets the peak back
    before = resident_bytes()
    model = lowbit.load(path, max_ram=budget, threads=threads, context=256)
    first = model.generate(PROMPT, max_tokens=2, temperature=0)
    info = model.info()
    start = info["memory"]["bytes_read"] if budget else 0
    best, ids = float("inf"), first.tokens
    for _ in range(3):
        out = model.generate(PROMPT + ids, max_tokens=TOKENS, temperature=0)
        ids = ids + out.tokens
        best = min(best, 1 / out.timings.decode_tps)
    with open("/proc/self/status") as f:
        peak = next(int(line.split()[1]) << 10 for line in f if line.startswith("VmHWM")) - before
    result = {"ids": ids, "seconds": best, "peak": peak, "weight_bytes": info["weight_bytes"], "budget": budget}
    if budget:
        memory = model.info()["memory"]
        passes = 3 * TOKENS
        pager = model._transformer.pager
        sizes = [pager.table[block][2] for block in pager.order]
        result |= {
            "budget_bytes": memory["budget_bytes"],
            "memory": memory,
            "bytes_per_token": (memory["bytes_read"] - start) / passes,
            "belady_bytes": belady(sizes, memory["cache_bytes"]),
        }
    return result


def belady(sizes: list[int], capacity: int, cycles: int = 4) -> float:
    """Bytes per cycle that are read if blocks of these sizes are used in order, over and over: always evict the block
    that is used last from now, and do not keep a block that would be evicted next."""
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


def disk_rate(path: Path) -> float:
    """Bytes per second of the file, read in order past the page cache."""
    best = 0.0
    for n_threads in (1, 2, 4, 8, 4):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        pieces = os.path.getsize(path) // PIECE
        total = min(pieces, 600)  # of the end: the beginning is the embedding, which decoding hardly reads
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


def plot(record: dict[str, Any], path: Path) -> None:
    """Time and bytes per token over the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted(record["budgets"], key=lambda row: row["budget_bytes"])
    x = [row["budget_bytes"] / 2**20 for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(x, [row["bytes_per_token"] / 2**20 for row in rows], "o-", label="lowbit")
    left.plot(x, [row["belady_bytes"] / 2**20 for row in rows], "k--", label="Belady, same memory")
    left.set(xlabel="max_ram, MB", ylabel="MB read per token", ylim=(0, None))
    right.plot(x, [row["seconds"] for row in rows], "o-", label="lowbit")
    right.plot(
        x, [row["bytes_per_token"] / row["disk_bytes_per_second"] for row in rows], "k--", label="the disk alone"
    )
    right.plot(x, [row["resident_seconds"] for row in rows], "k:", label="all weights resident")
    right.set(xlabel="max_ram, MB", ylabel="seconds per token", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
