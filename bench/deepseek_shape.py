"""A random model of DeepSeek-R1's shape under memory budgets: speed, what it reads per token, memory.

    python bench/deepseek_shape.py --size 8GB --budgets 1GB,2GB --json FILE --plot FILE
    python bench/deepseek_shape.py --size 1GB --budgets 0.5GB --check
    python bench/deepseek_shape.py --unpack

It has R1's 61 layers, 256 experts in 8 groups of which 8 work, the layout of its files of January 2025 and the types of
the smallest of these: experts in IQ1_S (the first six down projections in IQ2_XXS), everything else in Q4_K to Q6_K.
Its widths are smaller, so that the file has about the size that was asked for. The bias of the router makes some
experts more frequent than others: the share of an expert falls as rank**-skew. A text is drawn, not the likeliest one,
so that it has as many different tokens as real ones.

Each budget has a process of its own, whose memory is looked at twenty times a second from before the model is loaded.
What a token reads is compared with the least that any policy could read, which knows the future (Belady, 1966), with as
many slots for experts and as much memory for other weights as the cache has. `--unpack` measures how fast a thread
unpacks stored blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from experts import belady
from paging_limits import belady as belady_in_order

import lowbit
from lowbit._kernels.matrix import UNPACKED_TYPES, PackedMatrix
from lowbit._kernels.stored import STORED_TYPES
from lowbit.families import find_family
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.memory import parse_size, resident_bytes
from lowbit.loading.paging import stored_of
from lowbit.plan import JOINED_HEADS
from lowbit.quantize.ggml_types import type_of

LAYERS, DENSE, EXPERTS, CHOSEN, VOCAB, PREFIX = 61, 3, 256, 8, 8192, "deepseek2."
HIDDEN, SIZE, HEADS = 7168, 2048, 128  # R1's own
# Where the float16 scales of a block lie, and what a weight's standard deviation is where the first of them is 1.
SCALES = {
    "IQ1_S": ((0,), 7),
    "IQ2_XXS": ((0,), 50),
    "Q4_K": ((0, 2), 300),
    "Q5_K": ((0, 2), 600),
    "Q6_K": ((208,), 1300),
}
OFFSETS = {"Q4_K": 7.5, "Q5_K": 15.5}
"""The second scale in parts of the first, so that weights are 0 on average."""
WARM = 24
"""Tokens before those that count."""
PAGE = 4096


def widths(size: int) -> tuple[int, int]:
    """Channels of the residual stream and of an expert, both of whole blocks, for a file of about so many bytes."""
    each = (LAYERS - DENSE) * EXPERTS * 3 * type_of("IQ1_S").block_bytes / 256
    pairs = [(256 * a, 256 * b) for a in range(1, 29) for b in range(1, a + 1)]
    return min(pairs, key=lambda pair: (abs(pair[0] * pair[1] * each - size), pair[0]))


def metadata_of(hidden: int, size: int) -> dict[str, object]:
    """The keys of a file of January 2025, and the groups that it leaves out."""
    heads = max(2, hidden * HEADS // HIDDEN // 2 * 2)
    numbers = {
        "vocab_size": VOCAB, "context_length": 4096, "embedding_length": hidden, "block_count": LAYERS,
        "feed_forward_length": max(256, hidden * 18432 // HIDDEN // 256 * 256), "attention.head_count": heads,
        "attention.head_count_kv": heads, "attention.key_length": 192, "attention.value_length": 128,
        "attention.q_lora_rank": max(256, hidden * 1536 // HIDDEN // 256 * 256), "attention.kv_lora_rank": 256,
        "rope.dimension_count": 64, "leading_dense_block_count": DENSE, "expert_count": EXPERTS,
        "expert_used_count": CHOSEN, "expert_feed_forward_length": size, "expert_shared_count": 1,
        "expert_gating_func": 2, "expert_group_count": 8, "expert_group_used_count": 4,
        "rope.scaling.original_context_length": 4096,
    }  # fmt: skip
    floats = {
        "attention.layer_norm_rms_epsilon": 1e-6, "expert_weights_scale": 2.5, "rope.scaling.factor": 40.0,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }  # fmt: skip
    values = {**numbers, **floats, "expert_weights_norm": True, "rope.scaling.type": "yarn"}
    return {PREFIX + key: value for key, value in values.items()}


def kind_of(role: str, layer: int) -> str:
    """The type of a matrix in the smallest of R1's published files."""
    if role.endswith("_exps"):
        return "IQ2_XXS" if role == "ffn_down_exps" and layer < DENSE + 6 else "IQ1_S"
    if role in ("ffn_gate_shexp", "ffn_up_shexp"):
        return "Q5_K"
    small = ("attn_kv_a_mqa", "attn_kv_b", "ffn_down_shexp", "ffn_down", "output")
    return "Q6_K" if role in small else "Q4_K"


def write(path: Path, size: int, skew: float) -> Path:
    """Write the random model, unless it is there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = metadata_of(*widths(size))
    plan = find_family("deepseek2").plan(metadata, "deepseek2", ["output.weight", JOINED_HEADS, "x.exp_probs_b.bias"])
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (1 << 20) + 7, np.uint8)
    weights = [
        (weight, kind_of(weight.role, weight.layer) if weight.kind in ("linear", "embedding", "head") else "F32")
        for weight in plan.weights()
    ]
    with GGUFWriter(path, "deepseek2") as out:
        for key, value in metadata.items():
            out.add_metadata(key, value, "u32" if type(value) is int else None)
        for weight, kind in weights:
            out.add_tensor_info(weight.name, kind, weight.shape)
        out.write_header()
        for weight, kind in weights:
            cols = weight.shape[-1]
            if weight.kind == "bias":
                popular = rng.permutation(np.arange(1, EXPERTS + 1) ** -skew)
                values = popular.astype(np.float32)
            elif weight.kind == "norm":
                values = np.ones(weight.shape, np.float32)
            elif kind == "F32":
                values = (rng.standard_normal(weight.shape) / np.sqrt(cols)).astype(np.float32)
            else:
                block = type_of(kind).block_bytes
                n = int(np.prod(weight.shape, dtype=np.int64)) // 256
                values = np.resize(np.roll(noise, rng.integers(1 << 20)), n * block)
                places, deviation = SCALES[kind]
                for place, factor in zip(places, (1.0, OFFSETS.get(kind, 0.0))):
                    scale = np.float16(factor / (deviation * np.sqrt(cols)))
                    values.reshape(-1, block)[:, place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
            out.write_tensor(weight.name, values.reshape(-1).view(np.uint8))
    return path


class Watch(threading.Thread):
    """Looks at the memory of this process, as (seconds, bytes), from the moment when it is made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_time, self.before = time.perf_counter(), resident_bytes()
        self.curve: list[tuple[float, int]] = []
        self.start()

    def run(self) -> None:
        while True:
            self.curve.append((time.perf_counter() - self.start_time, resident_bytes() - self.before))
            time.sleep(0.05)


def paged_bytes(offset: int, length: int) -> int:
    """What a direct read of a block transfers: whole pages."""
    return -(-(offset + length) // PAGE) * PAGE - offset // PAGE * PAGE


def child(path: str, budget: str | None, threads: int, tokens: int) -> dict[str, Any]:
    """Load, write, and report."""
    lowbit.load().generate("Once", max_tokens=2, seed=1)  # what the first model of a process takes once
    watch = Watch()
    model = lowbit.load(path, threads=threads, max_ram=budget, context=512)
    loaded = time.perf_counter() - watch.start_time
    pager = model._decoder.graph.pager
    if pager is not None:
        pager.record(1 << 24)
    text = model.generate([7], max_tokens=WARM, temperature=1, seed=7).tokens
    warm = 0 if pager is None else len(pager.recorded())
    before, start = model.info()["memory"], time.perf_counter()
    made = model.generate([9], max_tokens=tokens, temperature=1, seed=8)  # as many passes, of one token each
    seconds, info = time.perf_counter() - start, model.info()
    result = {
        "ids": text + made.tokens, "tokens_per_second": made.timings.decode_tps, "seconds": seconds, "loaded": loaded,
        "isa": info["isa"], "threads": threads, "file_bytes": info["file_bytes"], "weight_bytes": info["weight_bytes"],
        "kv_bytes_per_token": info["kv_bytes_per_token"], "bytes_per_token": model._decoder.graph.bytes_per_token,
        "peak": max(size for _, size in watch.curve), "curve": watch.curve, "memory": info["memory"],
    }  # fmt: skip
    if pager is not None:
        memory, uses = info["memory"], pager.recorded()
        sizes = np.array([paged_bytes(offset, length) for _, offset, length in pager.table])
        misses = belady(uses, memory["lru_slots"]) - belady(uses[:warm], memory["lru_slots"])
        room = memory["pinned_bytes"] + memory["ring_slots"] * memory["ring_slot_bytes"]
        in_order = belady_in_order([int(sizes[block]) for block in pager.order], room)
        result |= {
            "read": (memory["bytes_read"] - before["bytes_read"]) / tokens,
            "belady": misses * sizes[uses[warm:]].mean() / tokens + in_order,
            "in_order": in_order,
            "waited": (memory["wait_seconds"] - before["wait_seconds"]) / tokens,
            "experts": sizes[uses[warm:]].sum() / tokens,
        }
    return result


def measure(path: Path, budget: str | None, args: argparse.Namespace) -> dict[str, Any]:
    """Run one budget in a process of its own."""
    task = json.dumps({"path": str(path), "budget": budget, "threads": args.threads, "tokens": args.tokens})
    done = subprocess.run([sys.executable, __file__, "--child", task], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bytes per token over the budget; memory over time, of the smallest budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from plots import STYLE

    rows = sorted(rows, key=lambda row: row["memory"]["budget_bytes"])
    x = [row["memory"]["budget_bytes"] / 1e9 for row in rows]
    with plt.rc_context(STYLE):
        figure, (read, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        read.plot(x, [row["read"] / 1e6 for row in rows], "o-", label="lowbit")
        read.plot(x, [row["belady"] / 1e6 for row in rows], "k--", label="Belady, same memory")
        read.set(xlabel="max_ram, GB", ylabel="MB read per token", ylim=(0, None))
        at, size = zip(*rows[0]["curve"])
        memory.plot(at, [one / 1e9 for one in size], label="process, more than before")
        memory.axhline(x[0], color="k", ls="--", label="max_ram")
        memory.set(xlabel="seconds since loading began", ylabel="GB", ylim=(0, None))
        for axes in (read, memory):
            axes.legend(fontsize=7.5)
        figure.savefig(path, metadata={"Date": None})


def unpack() -> None:
    """Weights per second of processor time that one thread unpacks into 32 rows of 2,048, which its caches hold."""
    rows, cols, rounds = 32, 2048, 50
    rng = np.random.default_rng(1)
    for kind in STORED_TYPES:
        raw = rng.integers(0, 64, rows * cols // type_of(kind).block_elements * type_of(kind).block_bytes, np.uint8)
        form, options = UNPACKED_TYPES[kind]
        matrix = PackedMatrix(form, rows, cols, **options)
        best = float("inf")
        for _ in range(8):
            start = time.thread_time()
            for _ in range(rounds):
                matrix.fill_stored(stored_of(kind), raw, rows)
            best = min(best, (time.thread_time() - start) / rounds)
        print(f"{kind:8} {rows * cols / best / 1e9:.1f} billion weights per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GB", help="of the file, nearly")
    parser.add_argument("--budgets", default="0.5GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--skew", type=float, default=0.8)
    parser.add_argument("--check", action="store_true", help="compare with the resident model")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--unpack", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(**json.loads(args.child))))
        return
    if args.unpack:
        unpack()
        return
    hidden, size = widths(parse_size(args.size))
    path = write(args.folder / f"deepseek-{hidden}-{size}.gguf", parse_size(args.size), args.skew)
    rows = []
    for budget in args.budgets.split(","):
        one = measure(path, budget, args)
        memory, rates = one["memory"], one["memory"]["expert_hits"]
        print(f"{path.name}: {hidden} channels, experts of {size}, {one['file_bytes'] / 1e9:.2f} GB, in {budget}: "
              f"loaded in {one['loaded']:.1f} s, {one['isa']}, {args.threads} threads; "
              f"{one['tokens_per_second']:.2f} tokens/s, of each {one['waited']:.2f} s waiting for the disk; "
              f"{len(set(one['ids']))} different tokens of {len(one['ids'])}; "
              f"{one['read'] / 1e6:.0f} MB read per token, Belady {one['belady'] / 1e6:.0f} "
              f"({one['read'] / one['belady']:.2f} times), experts {one['experts'] / 1e6:.0f} and "
              f"{one['in_order'] / 1e6:.0f} of the others at least; hits {min(rates):.2f} to {max(rates):.2f}; "
              f"process grew by {one['peak'] / 1e6:.0f} MB of {memory['budget_bytes'] / 1e6:.0f}, cache "
              f"{memory['cache_bytes'] / 1e6:.0f} with {memory['lru_slots']} slots", flush=True)  # fmt: skip
        rows.append(one)
    if args.check:
        resident = measure(path, None, args)
        print(f"resident: {resident['tokens_per_second']:.2f} tokens/s, process {resident['peak'] / 1e6:.0f} MB; "
              f"the same text: {all(one['ids'] == resident['ids'] for one in rows)}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
