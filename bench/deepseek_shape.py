"""A random model of DeepSeek-R1's shape under a memory budget: speed, what it reads per token, memory.

    python bench/deepseek_shape.py --size 1GB --max-ram 0.25GB --tokens 32

It has R1's 61 layers, 256 experts in 8 groups of which 8 work, the layout of its files of January 2025 and the types of
the smallest of these: experts in IQ1_S (the first six down projections in IQ2_XXS), everything else in Q4_K to Q6_K.
Its widths are smaller, so that the file has about the size that was asked for. The bias of the router makes some
experts more frequent than others: the share of an expert falls as rank**-skew.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import lowbit
from lowbit.families import find_family
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.memory import parse_size, resident_bytes
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1GB", help="of the file, nearly")
    parser.add_argument("--max-ram", help="budget; without it all weights stay in memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--skew", type=float, default=0.8)
    parser.add_argument("--check", action="store_true", help="compare with the resident model")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    hidden, size = widths(parse_size(args.size))
    path = write(args.folder / f"deepseek-{hidden}-{size}.gguf", parse_size(args.size), args.skew)
    start = time.perf_counter()
    model = lowbit.load(path, threads=args.threads, max_ram=args.max_ram, context=512)
    info = model.info()
    print(f"{path.name}: {hidden} channels, experts of {size}, {info['file_bytes'] / 1e9:.2f} GB; "
          f"loaded in {time.perf_counter() - start:.1f} s, {info['isa']}, weights {info['weight_bytes'] / 1e6:.0f} MB, "
          f"{info['kv_bytes_per_token']} bytes of latents per token")  # fmt: skip
    model.generate([5, 6, 7], max_tokens=4, temperature=0)
    before = (model.info()["memory"] or {}).get("bytes_read", 0)
    start = time.perf_counter()
    made = model.generate([7, 8, 9], max_tokens=args.tokens, temperature=0).tokens
    seconds = time.perf_counter() - start
    print(f"{len(made) / seconds:.2f} tokens/s, {len(set(made))} different of {len(made)}; "
          f"{model._decoder.graph.bytes_per_token / 1e6:.1f} MB of weights per token; "
          f"process {resident_bytes() / 1e6:.0f} MB")  # fmt: skip
    memory = model.info()["memory"]
    if memory is not None:
        read, hits = (memory["bytes_read"] - before) / len(made), memory["expert_hits"]
        print(f"{read / 1e6:.1f} MB read per token; hits of experts {min(hits):.2f} to {max(hits):.2f}; "
              f"cache {memory['cache_bytes'] / 1e6:.0f} MB of {memory['budget_bytes'] / 1e6:.0f}")  # fmt: skip
    if args.check:
        resident = lowbit.load(path, threads=args.threads, context=512)
        same = resident.generate([7, 8, 9], max_tokens=args.tokens, temperature=0).tokens == made
        print("the text is that of the resident model:", same)


if __name__ == "__main__":
    main()
