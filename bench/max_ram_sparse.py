"""Sparsity under a memory budget: bytes and time per token where channels that do not count are not read.

    python bench/max_ram_sparse.py [--shape 1B] [--budgets 0.25,0.5] [--shares 0,0.5,0.75,0.9,0.95,0.98] [--json FILE]

For each budget and each share of inputs that are skipped, three ways to read: all weights in their order, every layer
by channel, and the way that `max_ram` chooses. Each runs in a process of its own; the ids must equal those of the
resident model with the same sparsity. Weights are random, so which channels count is nearly random, too: that is the
worst case for a cache of channels. What its policy reads is compared with LRU and with Belady on the blocks of a run.
"""

from __future__ import annotations

import argparse
import bisect
import json
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from random_gguf import write_random_gguf

PROMPT = [1, 15, 27, 300, 4, 77, 8, 912]
WARM, TOKENS, ROUNDS, TRACED = 4, 3, 4, 12
WAYS = {"in order": 0.0, "by channel": 1.0, "chosen": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1B")
    parser.add_argument("--budgets", default="0.25,0.5", help="shares of the weights")
    parser.add_argument("--shares", default="0,0.5,0.75,0.9,0.95,0.98", help="shares of inputs that are skipped")
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
    results = []
    for share in map(float, args.shares.split(",")):
        resident = measure(path=str(path), budget=None, share=share, pays=None, threads=args.threads)
        for part in map(float, args.budgets.split(",")):
            budget = int(part * path.stat().st_size)
            for way, pays in WAYS.items():
                if way == "by channel" and not share:
                    continue  # then there are no channels to skip
                one = measure(path=str(path), budget=budget, share=share, pays=pays, threads=args.threads)
                assert one["ids"] == resident["ids"], f"{budget} bytes, {share}, {way}: another text"
                assert one["peak"] <= 1.05 * budget, f"{one['peak']} bytes where {budget} are allowed"
                one |= {"way": way, "budget_share": part, "share": share, "resident_seconds": resident["seconds"]}
                results.append(one)
                print(
                    f"{part:4.0%} of the weights, {share:3.0%} skipped, {way:>10}: "
                    f"{one['bytes_per_token'] / 1e6:6.1f} MB and {one['seconds']:.3f} s per token "
                    f"(resident {resident['seconds']:.3f} s), process "
                    f"{one['peak'] / 1e6:.0f} of {budget / 1e6:.0f} MB, loaded in {one['load_seconds']:.1f} s"
                    + "".join(f", {k} {v:.1%}" for k, v in one.get("hits", {}).items()),
                    flush=True,
                )
    for one in results:
        del one["ids"]
    record = {"shape": args.shape, "file_bytes": path.stat().st_size, "threads": args.threads, "runs": results}
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.plot:
        plot(record, args.plot)


def measure(**task: Any) -> dict[str, Any]:
    """Run one setting in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def child(path: str, budget: int | None, share: float, pays: float | None, threads: int) -> dict[str, Any]:
    """Load, decode, and report."""
    import lowbit
    from lowbit._kernels.sampler import Sampler
    from lowbit._kernels.transformer import KVCache
    from lowbit.loading import load as loading
    from lowbit.memory import resident_bytes

    lowbit.load().generate("Once", max_tokens=2, seed=1)  # what the first model of a process takes once
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # sets the peak back
    before = resident_bytes()
    if pays is not None:
        loading.blocks_that_pay = lambda path: pays
    start = time.perf_counter()
    model = lowbit.load(path, max_ram=budget, sparsity=share, threads=threads, context=256)
    load_seconds = time.perf_counter() - start
    t = model._transformer
    cache, sampler = KVCache(t, 256), Sampler(t.vocab, 0.0, 0, 1.0, 0.0, 1.0, 0)
    text, none = iter(np.random.default_rng(1).integers(3, t.vocab, 200, np.int32)), np.empty(0, np.int32)
    t.prefill(cache, np.array(PROMPT, np.int32))

    def decode(n: int) -> list[int]:
        """What would follow each of some random words: a random model left to itself repeats one."""
        return [t.decode([cache], [sampler], np.array([next(text)], np.int32), 1, none)[0][0] for _ in range(n)]

    ids, best = decode(WARM), float("inf")
    first = t.cache_stats().get("bytes_read", 0)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        ids += decode(TOKENS)
        best = min(best, (time.perf_counter() - start) / TOKENS)
    with open("/proc/self/status") as f:
        peak = next(int(line.split()[1]) << 10 for line in f if line.startswith("VmHWM")) - before
    result = {"ids": ids, "seconds": best, "peak": peak, "load_seconds": load_seconds}
    if budget is None:
        return result
    stats = t.cache_stats()
    result |= {"budget": budget, "bytes_per_token": (stats["bytes_read"] - first) / (ROUNDS * TOKENS)}
    if t.pager.channels is not None:
        uses, trace, taken = t.pager.channels.recent_uses().astype(int), [], -stats["channel_reads"]
        while len(trace) < TRACED:
            decode(1)
            now = t.pager.channels.recent_uses().astype(int)
            if (now >= uses).all():  # otherwise the counts were halved
                trace.append(np.flatnonzero(now > uses).tolist())
            else:
                trace, taken = [], -t.cache_stats()["channel_reads"]
            uses = now
        needed = sum(map(len, trace))
        taken += t.cache_stats()["channel_reads"]
        slots = stats["channel_lru_slots"]
        result |= {
            "blocks": len(uses),
            "slots": slots,
            "needed": needed / TRACED / len(uses),
            "hits": {"kept": 1 - taken / needed, "LRU": lru(trace, slots), "Belady": belady(trace, slots)},
        }
    return result


def lru(trace: list[list[int]], slots: int) -> float:
    """Share of hits of plain LRU on the second half of a trace."""
    resident: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for token, blocks in enumerate(trace):
        for block in blocks:
            if block in resident:
                resident.move_to_end(block)
                hits += token >= len(trace) // 2
            else:
                resident[block] = None
                if len(resident) > slots:
                    resident.popitem(last=False)
    return hits / sum(map(len, trace[len(trace) // 2 :]))


def belady(trace: list[list[int]], slots: int) -> float:
    """Share of hits of the policy that knows the future, on the second half of a trace."""
    import heapq

    uses: dict[int, list[int]] = {}
    flat = [block for blocks in trace for block in blocks]
    for at, block in enumerate(flat):
        uses.setdefault(block, []).append(at)
    half = sum(map(len, trace[: len(trace) // 2]))
    resident: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = 0
    for at, block in enumerate(flat):
        hits += at >= half and block in resident
        later = bisect.bisect_right(uses[block], at)
        resident[block] = uses[block][later] if later < len(uses[block]) else len(flat)
        heapq.heappush(heap, (-resident[block], block))
        while len(resident) > slots:
            when, victim = heapq.heappop(heap)
            if resident.get(victim) == -when:
                del resident[victim]
    return hits / (len(flat) - half)


def plot(record: dict[str, Any], path: Path) -> None:
    """Bytes and time per token over the share of inputs that is skipped."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = record["runs"]
    parts = sorted({run["budget_share"] for run in runs})
    figure, axes = plt.subplots(2, len(parts), figsize=(9, 6), layout="constrained", squeeze=False, sharex=True)
    for column, part in enumerate(parts):
        top, bottom = axes[0][column], axes[1][column]
        for way, style in zip(WAYS, ("k--", "o-", "s:")):
            rows = [run for run in runs if run["budget_share"] == part and run["way"] == way]
            x = [run["share"] for run in rows]
            top.plot(x, [run["bytes_per_token"] / 1e6 for run in rows], style, label=way)
            bottom.plot(x, [run["seconds"] for run in rows], style, label=way)
        rows = [run for run in runs if run["budget_share"] == part and run["way"] == "in order"]
        bottom.plot([run["share"] for run in rows], [run["resident_seconds"] for run in rows], "k:", label="resident")
        top.set(title=f"max_ram: {part:.0%} of the weights", ylabel="MB read per token", ylim=(0, None))
        bottom.set(xlabel="share of inputs that is skipped", ylabel="seconds per token", ylim=(0, None))
        for one in (top, bottom):
            one.legend()
            one.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
