"""Weights in blocks at their own width, beside weights in 8 bits.

    python bench/blocks.py                                          # products, on every instruction set
    python bench/blocks.py --model SmolLM2-135M-Instruct.Q4_1.gguf  # a model: speed, and distance from float32

Turns are interleaved and the best counts, in processor time of one thread, so that other work on the machine changes
little. The model is written twice beside itself, as float32 and as Q8_0, in a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lowbit
from lowbit import isa
from lowbit._kernels.matrix import BLOCK_TYPES, UNPACKED_TYPES
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.kernels import PackedMatrix, matmul
from lowbit.loading.paging import stored_of
from lowbit.quantize import quantize
from lowbit.quantize.ggml_types import type_of

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types of models."""
UNPACKED = tuple(kind for kind, (form, _) in UNPACKED_TYPES.items() if form != "u8")
"""Other types that keep their width, whose products are measured."""
SHAPES = ((1536, 576), (576, 1536), (2560, 2560))
RING_BYTES = 192 << 20
"""One token goes round copies of the weights, more than a last-level cache holds."""
TEXTS = (
    "The capital of Japan is Tokyo, a city of fourteen million people. It was a fishing village called Edo until the "
    "shogun made it his seat in 1603, and it has been rebuilt after the fire of 1657 and the earthquake of 1923.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    a, b = 0, 1\n    for _ in range(n - 1):\n"
    "        a, b = b, a + b\n    return b\n",
    "Once upon a time there was a small fox who lived at the edge of a forest. Every morning it went down to the river "
    "to drink, and every morning the heron told it that the water was too cold for foxes.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. In the first stage chlorophyll "
    "absorbs photons and splits water; in the second, the Calvin cycle fixes carbon with the energy that was stored.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file with weights in blocks of 32")
    parser.add_argument(
        "--peer-python", default=os.environ.get("LOWBIT_PEER_PYTHON"),
        help="a Python with llama-cpp-python, whose distance from float32 is measured too",
    )  # fmt: skip
    parser.add_argument("--isa", nargs="+", choices=isa.available(), default=isa.available())
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    if args.model:
        compare_models(args.model, args.turns, args.peer_python)
        return
    for name in args.isa:
        isa.use(name)
        for (n, k), m in itertools.product(SHAPES, (1, 16, 128)):
            compare_products(name, n, k, m, args.turns)


def best(turns: int, calls: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each call, the least of interleaved turns."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def compare_products(name: str, n: int, k: int, m: int, turns: int) -> None:
    """Print products per second of each type, and how many times those of the same weights in 8 bits that is."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((m, k), np.float32)
    calls: dict[str, Callable[[], object]] = {}
    for kind in ("8 bits", *KINDS, *(kind for kind in UNPACKED if k % type_of(kind).block_elements == 0)):
        matrices = [packed(kind, n, k)]
        if m == 1:
            matrices += [packed(kind, n, k) for _ in range(RING_BYTES // matrices[0].nbytes)]
        turn = itertools.cycle(matrices)
        calls[kind] = lambda turn=turn: [matmul(next(turn), x) for _ in range(max(1, 20_000_000 // (n * k * m)))]
    seconds = best(turns, calls, time.thread_time)
    macs = n * k * m * max(1, 20_000_000 // (n * k * m))
    print(f"{name:11} {n} x {k}, {m:3} tokens:", end="")
    for kind, s in seconds.items():
        print(f"  {kind} {macs / s / 1e9:.1f} G/s ({seconds['8 bits'] / s:.2f}x)", end="")
    print(flush=True)


def packed(kind: str, n: int, k: int) -> PackedMatrix:
    """A matrix of random weights of a type, or rounded to 8 bits."""
    rng = np.random.default_rng(k)
    if kind == "8 bits":
        matrix = PackedMatrix("u8", n, k, group_cols=32, scales_f16=True)
        matrix.fill_rounded("F32", rng.standard_normal(n * k, np.float32).view(np.uint8), n)
        return matrix
    if kind in UNPACKED:
        form, options = UNPACKED_TYPES[kind]
        matrix = PackedMatrix(form, n, k, **options)
        blocks = n * k // type_of(kind).block_elements
        raw = rng.integers(0, 64, (blocks, type_of(kind).block_bytes), np.uint8)
        if kind == "MXFP4":
            raw[:, 0] = 127  # a scale of 1; those of 2**-64 and less are slow to compute with
        matrix.fill_stored(stored_of(kind), raw.reshape(-1), n)
        return matrix
    raw = rng.integers(0, 256, (n * k // 32, type_of(kind).block_bytes), np.uint8)
    raw[:, 1] = raw[:, 3] = 0x2C  # scales and minima of about 1/16
    matrix = PackedMatrix(BLOCK_TYPES[kind][0], n, k, group_cols=32, scales_f16=True)
    matrix.fill_blocks(kind, raw.reshape(-1), n)
    return matrix


def rewrite(source: Path, target: Path, kind: str, floats: bool) -> Path:
    """Write a model again, with its blocks of 32 in another type; the exact copy has no blocks at all."""
    with open_model(source) as file, GGUFWriter(target, file.architecture) as out:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                kept = file.metadata_types[key]
                out.add_metadata(key, value, None if kept == "array" else kept)
        changed = {n for n, i in file.tensors.items() if i.type in KINDS or (floats and i.type != "F32")}
        for name, info in file.tensors.items():
            out.add_tensor_info(name, kind if name in changed else info.type, info.shape)
        out.write_header()
        for name, info in file.tensors.items():
            raw = file.read(name)
            out.write_tensor(name, quantize(kind, dequantize(info.type, raw, info.shape)) if name in changed else raw)
    return target


LLAMA_CPP = """
import json, sys
import llama_cpp, numpy as np
path, out, texts = json.loads(sys.argv[1])
model = llama_cpp.Llama(path, n_ctx=512, n_threads=1, logits_all=True, verbose=False)
for i, ids in enumerate(texts):
    model.reset()
    model.eval(ids)
    np.save(f"{out}/{i}.npy", model.scores[: len(ids)])
"""


def peer_logits(python: str, path: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """The logits of llama.cpp behind every token of each text."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-c", LLAMA_CPP, json.dumps([str(path), folder, texts])], check=True)
        return [np.load(Path(folder, f"{i}.npy")) for i in range(len(texts))]


def compare_models(path: Path, turns: int, peer_python: str | None) -> None:
    """Print tokens per second, memory, and the mean KL divergence from the same weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        exact = rewrite(path, Path(folder, "f32.gguf"), "F32", True)
        rounded = rewrite(path, Path(folder, "q8_0.gguf"), "Q8_0", False)
        model = lowbit.load(exact, head="file", weights="file")
        texts = [model.tokenizer.encode(text) for text in TEXTS]
        want = [log_softmax(model.logits(ids)) for ids in texts]
        del model
        models = {"own width": lowbit.load(path, threads=1), "8 bits": lowbit.load(rounded, threads=1)}
    if peer_python:
        kl = [kl_divergence(w, log_softmax(logits)) for w, logits in zip(want, peer_logits(peer_python, path, texts))]
        print(f"llama.cpp: KL {' '.join(f'{v:.4f}' for v in kl)}, mean {np.mean(kl):.4f}")
    prompt, starts = [token for ids in texts * 2 for token in ids][:255], itertools.count(1000)
    for name, model in models.items():
        kl = [kl_divergence(w, log_softmax(model.logits(ids))) for w, ids in zip(want, texts)]
        print(f"{name}: {model.info()['weight_bytes'] / 1e6:.1f} MB, KL {' '.join(f'{v:.4f}' for v in kl)}", end=", ")
        print(f"mean {np.mean(kl):.4f}")
    for what, call in (
        ("256 tokens of a prompt that is new", lambda m: m.generate([next(starts), *prompt], max_tokens=1)),
        ("64 tokens decoded", lambda m: m.generate(prompt[:8], max_tokens=64, temperature=0, stop=())),
    ):
        seconds = best(turns, {name: lambda m=m, c=call: c(m) for name, m in models.items()}, time.process_time)
        print(f"{what}: {seconds['8 bits'] / seconds['own width']:.2f}x the speed of 8 bits", seconds)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean over the positions, both given as logarithms."""
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


if __name__ == "__main__":
    main()
