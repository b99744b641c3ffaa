"""Models with experts: speed of Maple's shape, with and without a memory budget, and how good the cache's choice is.

    python bench/experts.py speed --layers 8 --llama-bench PATH_OF_LLAMA_BENCH
    python bench/experts.py paged --layers 8 --share 0.25
    python bench/experts.py trace

`speed` and `paged` run a random ternary model of Maple's shape (2,048 channels, 256 experts of 512 of which 8 work) of
fewer layers. For `paged` its router has a bias that makes some experts more frequent than others, as they are in real
models; llama.cpp knows no such bias in this family, so `speed` does without, and takes turns with llama.cpp's program.

`trace` asks a `BlockCache` for the experts of a made-up text, and counts what it reads beside the least that any policy
could read, which knows the future (Belady, 1966), beside well-known policies, and beside one that is told the odds by
which the text was made, which no policy can know. In the text, the experts of a layer
have popularities of rank**-skew, and a share of each token's choice is the choice of the token before, as neighbours in
a text have more in common than the popularities say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import lowbit
from lowbit import MemoryBudgetError
from lowbit._kernels.blockcache import BlockCache
from lowbit.families import find_family
from lowbit.formats.gguf_writer import GGUFWriter

HIDDEN, SIZE, EXPERTS, CHOSEN, VOCAB = 2048, 512, 256, 8, 151936
PREFIX = "maple."
SEED = 3


def write(path: Path, layers: int, skew: float | None) -> Path:
    """Write the random model, unless it is there; without a skew its router has no bias."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {
        "vocab_size": VOCAB, "context_length": 8192, "embedding_length": HIDDEN, "block_count": layers,
        "attention.head_count": 16, "attention.head_count_kv": 4, "attention.key_length": 128,
        "attention.value_length": 128, "attention.sliding_window": 512, "rope.dimension_count": 64,
        "expert_count": EXPERTS, "expert_used_count": CHOSEN, "expert_feed_forward_length": SIZE,
    }  # fmt: skip
    metadata = {PREFIX + key: value for key, value in numbers.items()}
    metadata[PREFIX + "attention.layer_norm_rms_epsilon"] = 1e-6
    metadata[PREFIX + "swiglu_clamp_exp"] = 7.0
    pattern = [layer % 4 != 3 for layer in range(layers)]  # three layers with a window to one without
    metadata[PREFIX + "attention.sliding_window_pattern"] = np.array(pattern)
    names = ["output.weight", *(["x.exp_probs_b.bias"] if skew is not None else [])]
    plan = find_family("maple").plan(metadata, "maple", names)
    kinds = {"linear": "TQ2_0", "embedding": "Q4_0", "head": "Q4_0"}
    rng = np.random.default_rng(1)
    crumbs = rng.integers(0, 3, (1_000_003, 4), np.uint8)
    ternary = crumbs[:, 0] | crumbs[:, 1] << 2 | crumbs[:, 2] << 4 | crumbs[:, 3] << 6
    nibbles = rng.integers(0, 256, 1_000_003, np.uint8)
    with GGUFWriter(path, "maple") as out:
        for key, value in metadata.items():
            out.add_metadata(key, value, "u32" if isinstance(value, int) else None)
        out.add_metadata("tokenizer.ggml.model", "none")
        for weight in plan.weights():
            out.add_tensor_info(weight.name, kinds.get(weight.kind, "F32"), weight.shape)
        out.write_header()
        for weight in plan.weights():
            kind, n = kinds.get(weight.kind, "F32"), int(np.prod(weight.shape, dtype=np.int64))
            if weight.kind == "bias":
                popular = rng.permutation(np.arange(1, EXPERTS + 1) ** -skew)
                values = (popular / popular.sum()).astype(np.float32)
            elif weight.kind == "norm":
                values = np.ones(weight.shape, np.float32)
            elif kind == "F32":
                values = (rng.standard_normal(weight.shape) / np.sqrt(HIDDEN)).astype(np.float32)
            else:
                block, cols, at, scale = {"TQ2_0": (66, 256, 64, 1.2 / np.sqrt(weight.shape[-1])),
                                          "Q4_0": (18, 32, 0, 1 / 8)}[kind]  # fmt: skip
                values = np.resize(
                    np.roll(ternary if kind == "TQ2_0" else nibbles, rng.integers(1 << 19)), n // cols * block
                )
                values.reshape(-1, block)[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
            out.write_tensor(weight.name, values.reshape(-1).view(np.uint8))
    return path


def run(model: lowbit.Model, prompt: int, tokens: int) -> tuple[float, float, list[int]]:
    """Tokens per second of the prompt and of the text, and the text."""
    ids = np.random.default_rng(2).integers(0, VOCAB, prompt).tolist()
    model.generate(ids[:9], max_tokens=2, temperature=0)
    model._decoder.pool.clear()  # nothing of the prompt is known
    start = time.perf_counter()
    model.generate(ids, max_tokens=1, temperature=0)
    middle = time.perf_counter()
    first = model.generate(ids[:5], max_tokens=1, temperature=0)
    before = time.perf_counter()
    text = model.generate(ids[:5], max_tokens=tokens + 1, temperature=0).tokens
    assert text[:1] == first.tokens
    return prompt / (middle - start), tokens / (time.perf_counter() - before), text


def speed(args: argparse.Namespace) -> None:
    path = write(args.folder / f"maple-{args.layers}-plain.gguf", args.layers, None)
    start = time.perf_counter()
    model = lowbit.load(path, threads=args.threads)
    seconds, info = time.perf_counter() - start, model.info()
    print(f"{path.name}: {info['file_bytes'] / 1e9:.2f} GB, loaded in {seconds:.1f} s, {info['isa']}")
    turns = []
    for _ in range(args.turns):
        turns.append(run(model, args.prompt, args.tokens)[:2])
        if args.llama_bench:
            turns[-1] += llama(args, path)
    prefill, decode, *peer = (max(speeds) for speeds in zip(*turns))
    each = model._decoder.graph.bytes_per_token
    print(f"{args.threads} threads: prompt {prefill:.1f} tokens/s, text {decode:.1f} tokens/s; "
          f"{each / 1e6:.0f} MB per token, {each * decode / 1e9:.1f} GB/s")  # fmt: skip
    if peer:
        rounded = [[round(speed, 1) for speed in turn] for turn in turns]
        print(f"llama.cpp: prompt {peer[0]:.1f}, text {peer[1]:.1f}; lowbit {prefill / peer[0]:.2f} and "
              f"{decode / peer[1]:.2f} times that; turns: {rounded}")  # fmt: skip


def llama(args: argparse.Namespace, path: Path) -> tuple[float, float]:
    """The same speeds of llama.cpp."""
    words = ["-m", path, "-t", args.threads, "-p", args.prompt, "-n", args.tokens, "-r", 1, "-o", "json"]
    result = subprocess.run([args.llama_bench, *map(str, words)], capture_output=True, check=True)
    prefill, decode = (row["avg_ts"] for row in json.loads(result.stdout))
    return prefill, decode


def paged(args: argparse.Namespace) -> None:
    path = write(args.folder / f"maple-{args.layers}.gguf", args.layers, args.skew)
    budget = int(path.stat().st_size * args.share)
    model = lowbit.load(path, threads=args.threads, max_ram=budget)
    prefill, decode, text = run(model, args.prompt, args.tokens)
    memory = model.info()["memory"]
    start = memory["bytes_read"]
    model.generate([7, 8, 9], max_tokens=args.tokens, temperature=0)
    memory = model.info()["memory"]
    each = (memory["bytes_read"] - start) / args.tokens
    rates = ", ".join(f"{rate:.2f}" for rate in memory["expert_hits"])
    used = sum(layer.used_bytes for layer in model._decoder.graph.experts)
    print(f"{path.name} in {budget / 1e6:.0f} MB of {path.stat().st_size / 1e6:.0f}: prompt {prefill:.1f} tokens/s, "
          f"text {decode:.1f} tokens/s, {each / 1e6:.1f} MB read per token of {used / 1e6:.0f}")  # fmt: skip
    print(f"hits by layer: {rates}; peak {memory['peak_memory'] / 1e6:.0f} MB of {memory['cache_bytes'] / 1e6:.0f}")
    if args.check:
        resident = lowbit.load(path, threads=args.threads)
        same = run(resident, args.prompt, args.tokens)[2] == text
        print("the text is that of the resident model:", same)


# --- a trace -----------------------------------------------------------------------------------------------------


def odds_of(layers: int, skew: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """How likely each expert of each layer is to be drawn; those of `made_up` unless another generator is given."""
    rng = rng or np.random.default_rng(SEED)
    odds = np.stack([rng.permutation(np.arange(1, EXPERTS + 1) ** -skew) for _ in range(layers)])
    return odds / odds.sum(1, keepdims=True)


def made_up(tokens: int, layers: int, skew: float, repeat: float) -> np.ndarray:
    """Experts by token and layer, shape (tokens, layers, CHOSEN)."""
    rng = np.random.default_rng(SEED)
    odds = odds_of(layers, skew, rng)
    trace = np.empty((tokens, layers, CHOSEN), np.int64)
    for t in range(tokens):
        for layer in range(layers):
            kept = trace[t - 1, layer][rng.random(CHOSEN) < repeat] if t else np.empty(0, np.int64)
            fresh = odds[layer].copy()
            fresh[kept] = 0
            more = rng.choice(EXPERTS, CHOSEN - len(kept), replace=False, p=fresh / fresh.sum())
            trace[t, layer] = np.sort(np.concatenate([kept, more]))
    return trace


def belady(uses: np.ndarray, slots: int) -> int:
    """Fewest misses of any policy with this many slots."""
    import heapq

    following, last = np.full(len(uses), 1 << 60), {}
    for i in range(len(uses) - 1, -1, -1):
        following[i] = last.get(uses[i], 1 << 60)
        last[uses[i]] = i
    resident: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    misses = 0
    for i, block in enumerate(uses.tolist()):
        if block not in resident:
            misses += 1
            while len(resident) >= slots:
                far, old = heapq.heappop(heap)
                if resident.get(old) == -far:
                    del resident[old]
        resident[block] = int(following[i])
        heapq.heappush(heap, (-int(following[i]), block))
    return misses


def adaptive(uses: list[int], slots: int) -> list[bool]:
    """Which uses miss under ARC (Megiddo and Modha, 2003)."""
    recent, often, recent_ghosts, often_ghosts = (OrderedDict[int, None]() for _ in range(4))
    share, misses = 0, []

    def make_room(block: int) -> None:
        too_many = len(recent) > share or (block in often_ghosts and len(recent) == share)
        kept, ghosts = (recent, recent_ghosts) if recent and (too_many or not often) else (often, often_ghosts)
        ghosts[kept.popitem(last=False)[0]] = None

    for block in uses:
        misses.append(block not in recent and block not in often)
        if not misses[-1]:
            recent.pop(block, None)
            often[block] = None
            often.move_to_end(block)
        elif block in recent_ghosts or block in often_ghosts:
            a, b = max(1, len(recent_ghosts)), max(1, len(often_ghosts))
            share = min(slots, share + max(1, b // a)) if block in recent_ghosts else max(0, share - max(1, a // b))
            make_room(block)
            recent_ghosts.pop(block, None)
            often_ghosts.pop(block, None)
            often[block] = None
        else:
            if len(recent) + len(often) >= slots:
                if len(recent) == slots:
                    recent.popitem(last=False)
                else:
                    make_room(block)
            while len(recent) + len(recent_ghosts) >= slots and recent_ghosts:
                recent_ghosts.popitem(last=False)
            while len(often) + len(often_ghosts) >= 2 * slots and often_ghosts:
                often_ghosts.popitem(last=False)
            recent[block] = None
    return misses


def least_worth(uses: Iterable[int], slots: int, worth: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[bool]:
    """Which uses miss where the block is evicted of which `worth` says the least, by its number and its age in uses."""
    last, misses = {}, []
    for i, block in enumerate(uses):
        misses.append(block not in last)
        if misses[-1] and len(last) >= slots:
            blocks, times = np.array(list(last)), np.array(list(last.values()))
            del last[int(blocks[worth(blocks, i - times).argmin()])]
        last[block] = i
    return misses


class Zeros:
    """A source of nothing."""

    name = "zeros"

    def read_at(self, offset: int, n: int) -> bytes:
        return bytes(n)


def trace(args: argparse.Namespace) -> None:
    block = 4096
    uses = made_up(args.tokens, args.layers, args.skew, args.repeat)
    flat = (uses + EXPERTS * np.arange(args.layers)[:, None]).reshape(-1)
    table = [(0, i * block, block) for i in range(EXPERTS * args.layers)]
    slots = int(len(table) * args.share)
    try:
        BlockCache([Zeros()], table, 1, readers=0)
    except MemoryBudgetError as error:
        budget = error.smallest + (slots - 2) * block
    warm = len(flat) // 2  # counted from here on
    found = {}
    for name in ("last use", "frequency"):
        cache = BlockCache([Zeros()], table, budget, readers=0)
        if name == "frequency":
            cache.count_uses()
        for i, one in enumerate(flat.tolist()):
            if i == warm:
                before = cache.stats()["reads"]
            cache.get(one)
        stats = cache.stats()
        assert stats["lru_slots"] == slots
        found[name] = stats["reads"] - before
    counts = np.zeros(len(table))

    def by_count(blocks: np.ndarray, ages: np.ndarray) -> np.ndarray:
        return counts[blocks] - 1e-9 * ages

    def counted() -> Iterator[int]:
        for one in flat.tolist():
            yield one
            counts[one] += 1

    chances, each = odds_of(args.layers, args.skew).reshape(-1) * CHOSEN, args.layers * CHOSEN
    told = least_worth(
        flat.tolist(), slots, lambda b, ages: (1 - args.repeat) * chances[b] + args.repeat * (ages <= each)
    )
    found["all uses"] = sum(least_worth(counted(), slots, by_count)[warm:])
    found["ARC"] = sum(adaptive(flat.tolist(), slots)[warm:])
    found["told odds"] = sum(told[warm:])
    best = belady(flat, slots) - belady(flat[:warm], slots)
    token = len(flat[warm:]) / (args.layers * CHOSEN)
    bytes_of = 3 * HIDDEN * SIZE * 66 // 256
    print(f"{args.layers} layers, skew {args.skew}, repeated {args.repeat}, {slots} of {len(table)} experts in memory")
    for name, misses in {"Belady": best, **found}.items():
        print(f"  {name:10} {misses / token:6.2f} experts, {misses / token * bytes_of / 1e6:6.1f} MB per token; "
              f"{misses / best:.2f} of the least; hits {1 - misses / len(flat[warm:]):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "paged", "trace"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.25, help="of the file, or of the experts, that memory holds")
    parser.add_argument("--skew", type=float, default=0.8)
    parser.add_argument("--repeat", type=float, default=0.25)
    parser.add_argument("--turns", type=int, default=3, help="of which the best counts")
    parser.add_argument("--llama-bench", help="llama.cpp's program of this name, built for this machine")
    parser.add_argument("--check", action="store_true", help="compare with the resident model")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    {"speed": speed, "paged": paged, "trace": trace}[args.part](args)


if __name__ == "__main__":
    main()
