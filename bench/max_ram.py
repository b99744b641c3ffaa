"""A model in less memory than it has: what a budget costs, against the least that any policy could read.

    python bench/max_ram.py [--shape 2.4B] [--budgets 0.1,0.2,...] [--cache DIR] [--json FILE] [--plot FILE]

Each budget runs in a process of its own, whose peak of memory the system counts from just before the model is loaded.
Beside it, in the same run: the resident model, the rate at which the disk delivers the file in order past the page
cache (best of one to eight reads at a time), and what the same blocks in the same order would cost others in as much
memory as the cache has: the bytes that Belady's policy reads, which knows the future; bytes and time of plain LRU that
reads ahead; and of a mapped file in a process whose memory is limited (needs control groups, so root as a rule). LRU
and the mapped file only add the words up, so what they take is the least that a program built on them could take.
The ids of every run must equal those of the resident model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paging_limits import belady, cached, disk_rate, mapped
from random_gguf import write_random_gguf

PROMPT = [1, 15, 27, 300, 4, 77, 8, 912]
TOKENS = 12
READ = 600 << 20  # bytes at the end of the file: the beginning is the embedding, which decoding hardly reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2.4B")
    parser.add_argument(
        "--budgets", default="0.1,0.2,256MB,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0", help="sizes, or shares of it"
    )
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
        disk = disk_rate(path, READ)
        one = measure(path, budget, args.threads)
        again = measure(path, None, args.threads)
        assert one["ids"] == resident["ids"] == again["ids"], f"{budget}: another text"
        floor = max(one["bytes_per_token"] / disk, min(resident["seconds"], again["seconds"]))
        one |= {
            "disk_bytes_per_second": disk,
            "resident_seconds": again["seconds"],
            "over_limit": one["seconds"] / floor,
        }
        blocks, room = np.array(one.pop("blocks")), one["memory"]["cache_bytes"]
        one["lru"], one["mmap"] = cached(path, blocks, room, order=False), mapped(path, blocks, room)
        results.append(one)
        print(
            f"{budget:>8}: process {one['peak'] / 2**20:.0f} MB, {one['bytes_per_token'] / 2**20:.0f} MB per token "
            f"(Belady {one['belady_bytes'] / 2**20:.0f}), {one['seconds']:.3f} s per token, resident "
            f"{again['seconds']:.3f}, disk {disk / 1e9:.2f} GB/s: {one['over_limit']:.2f} x the limit"
            + "".join(
                f"; {name} {one[name]['bytes'] / 2**20:.0f} MB, {one[name]['seconds']:.3f} s"
                for name in ("lru", "mmap")
                if one[name]
            ),
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
    from lowbit.loading.memory import resident_bytes

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
        pager = model._decoder.graph.pager
        blocks = [pager.table[block] for block in pager.order]
        assert not any(source for source, _, _ in blocks), "all blocks are in the file itself"
        result |= {
            "budget_bytes": memory["budget_bytes"],
            "memory": memory,
            "bytes_per_token": (memory["bytes_read"] - start) / passes,
            "belady_bytes": belady([length for _, _, length in blocks], memory["cache_bytes"]),
            "blocks": [(offset, length) for _, offset, length in blocks],
        }
    return result


def plot(record: dict[str, Any], path: Path) -> None:
    """Time and bytes per token over the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from plots import STYLE

    rows = sorted(record["budgets"], key=lambda row: row["budget_bytes"])
    x = [row["budget_bytes"] / 2**20 for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        left.plot(x, [row["bytes_per_token"] / 2**20 for row in rows], "o-", label="lowbit")
        right.plot(x, [row["seconds"] for row in rows], "o-", label="lowbit")
        for name, label, style in (("lru", "LRU, only reading", "s-"), ("mmap", "mmap, only reading", "^-")):
            there = [i for i, row in enumerate(rows) if row.get(name)]
            if there:
                at = [x[i] for i in there]
                left.plot(at, [rows[i][name]["bytes"] / 2**20 for i in there], style, label=label)
                right.plot(at, [rows[i][name]["seconds"] for i in there], style, label=label)
        left.plot(x, [row["belady_bytes"] / 2**20 for row in rows], "k--", label="Belady, same memory")
        disk = [row["bytes_per_token"] / row["disk_bytes_per_second"] for row in rows]
        right.plot(x, disk, "k--", label="the disk alone")
        right.plot(x, [row["resident_seconds"] for row in rows], "k:", label="all weights resident")
        left.set(xlabel="max_ram, MB", ylabel="MB read per token", ylim=(0, None))
        right.set(xlabel="max_ram, MB", ylabel="seconds per token", ylim=(0, None))
        for axes in (left, right):
            axes.legend(fontsize=7.5)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
