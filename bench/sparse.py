"""Measure activation sparsity: the kernel, whole decoding, and what it costs in quality.

    python bench/sparse.py kernel decode             times, into docs/sparsity.json
    python bench/sparse.py quality --data FOLDER     bits per byte of a real model (needs the test data)
    python bench/sparse.py plot                      docs/sparsity-speed.svg and docs/sparsity-quality.svg

Times are the least of many short repetitions, dense and sparse in turn, so that what else the machine does hits both.
The kernel goes round copies of its matrix that no cache holds; every sum is checked against NumPy. Its limit is the
time in which the same cores read the weights of the channels that count and compute nothing (pieces.c, needs cc).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import lowbit
from lowbit import isa
from lowbit._kernels import dispatch
from lowbit._kernels.decoder import Decoder
from lowbit._kernels.sampler import Sampler
from lowbit._kernels.sequence import Sequence
from lowbit._kernels.sparse import SparseScratch
from lowbit.benchmark import RandomModel
from lowbit.convert.calibration import calibrate
from lowbit.kernels import channel_major, pack_ternary, sparse_ternary_matmul, ternary_matmul
from lowbit.loading.load import build
from lowbit.loading.sparsity import parse
from lowbit.plan import LINEARS

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROWS, COLS = 2560, 6912
RING_BYTES = 160 << 20
AHEAD = (0, 8, 16, 32)  # pieces
SHARES = [0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]
DECODE_SHARES = [0.0, 0.25, 0.5, 0.75, 0.9]
QUALITY_SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
FIRST_WORDS = r"\n\s*\n(?=Once upon a time|One day|Once there|There once|In a |A long)"


def seconds(call: Callable[..., Any], *args: Any, **options: Any) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call(*args, **options)
    return time.perf_counter() - start


def piece_reader(folder: str) -> Callable[[np.ndarray, np.ndarray, int], None] | None:
    """Build pieces.c, and return what reads chosen channels with some prefetch distance; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = Path(__file__).with_name("pieces.c"), Path(folder, "pieces.so")
    subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).read_pieces
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]

    def read(memory: np.ndarray, chosen: np.ndarray, ahead: int) -> None:
        function(memory.ctypes.data, memory.nbytes // COLS, chosen.ctypes.data, len(chosen), ahead)

    return read


def limit(
    reader: Callable[[np.ndarray, np.ndarray, int], None], memory: list[np.ndarray], active: np.ndarray, threads: int
) -> float:
    """Return the least seconds in which threads, each with a share of the channels, read those that are active."""
    shares = np.array_split(active.astype(np.int32), threads)
    best = math.inf
    with ThreadPoolExecutor(threads) as pool:
        for ahead in AHEAD:

            def work(mine: np.ndarray, ahead: int = ahead) -> None:
                for one in memory:  # all copies at once, so that starting a thread does not count
                    reader(one, mine, ahead)

            for _ in range(5):
                best = min(best, seconds(lambda: list(pool.map(work, shares))) / len(memory))
    return best


def kernel(repeat: int) -> list[dict[str, Any]]:
    """The 2560 x 6912 product of one token from memory, for every share of zeros and one and two threads."""
    rng = np.random.default_rng(1)
    w = rng.integers(-1, 2, (ROWS, COLS), np.int8)
    copies = RING_BYTES // (ROWS * COLS // 4) + 1
    dense = [pack_ternary(w) for _ in range(copies)]
    sparse = [channel_major(d) for d in dense]
    x = rng.integers(1, 128, COLS, dtype=np.int8) * rng.choice(np.array([-1, 1], np.int8), COLS)
    scratch = SparseScratch()
    memory = [np.ones(ROWS // 4 * COLS + 64, np.uint8) for _ in range(copies)]
    memory = [one[-one.ctypes.data % 64 :][: ROWS // 4 * COLS] for one in memory]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        reader = piece_reader(folder)
    for threads in (1, 2):
        for share in SHARES:
            y = np.where(rng.permutation(COLS) < share * COLS, np.int8(0), x)
            want = w.astype(np.int32) @ y
            assert np.array_equal(ternary_matmul(dense[0], y, threads), want)
            assert np.array_equal(sparse_ternary_matmul(sparse[0], y, threads=threads, scratch=scratch), want)
            best = np.full((2, copies), np.inf)  # of each copy, so that one lucky repetition is not enough
            for _ in range(repeat):
                for i in range(copies):
                    best[0, i] = min(best[0, i], seconds(ternary_matmul, dense[i], y, threads))
                for i in range(copies):
                    took = seconds(sparse_ternary_matmul, sparse[i], y, threads=threads, scratch=scratch)
                    best[1, i] = min(best[1, i], took)
            times = best.mean(1)
            results.append(
                {
                    "threads": threads,
                    "sparsity": share,
                    "dense_us": times[0] * 1e6,
                    "sparse_us": times[1] * 1e6,
                    "ratio": times[0] / times[1],
                    "limit_us": limit(reader, memory, np.flatnonzero(y), threads) * 1e6 if reader else None,
                }
            )
            print(json.dumps(results[-1]), flush=True)
    return results


def decode(shape: str, repeat: int, tokens: int = 4) -> list[dict[str, Any]]:
    """Tokens per second of a model of random weights, for every share and one and two threads."""
    models: dict[float, Decoder] = {
        share: build(RandomModel(shape, 4096), 2, 256, sparse=parse(share))[0] for share in DECODE_SHARES
    }
    results = []
    for threads in (1, 2):
        best = dict.fromkeys(DECODE_SHARES, math.inf)
        for _ in range(4 * repeat):
            for share, model in models.items():
                model.threads = threads
                sampler = Sampler(model.graph.vocab, 0.0, 0, 1.0, 0.0, 1.0, 0)
                ids = np.arange(1, 10, dtype=np.int32)
                text = Sequence(model.pool, ids, 256, sampler=sampler, most=len(ids) + tokens)
                model.read(text, "nothing", text.pending - 1)
                best[share] = min(best[share], seconds(model.make, [text], tokens))
                text.close()
        for share in DECODE_SHARES:
            result = {
                "shape": shape,
                "threads": threads,
                "sparsity": share,
                "tps": tokens / best[share],
                "ratio": best[0.0] / best[share],
            }
            results.append(result)
            print(json.dumps(result), flush=True)
    return results


def quality(data: Path) -> list[dict[str, Any]]:
    """Bits per byte of tinystories-3m on 60 stories, with top-k and with thresholds calibrated on other stories."""
    path = data / "models/tinystories-3m.TQ2_0.gguf"
    text = (data / "corpora/tinystories/valid.txt").read_text("utf-8")
    pieces = [piece.strip() for piece in re.split(FIRST_WORDS, text)[1:]]
    stories = [piece for piece in pieces if 200 < len(piece) < 1100][:60]
    training = (data / "corpora/tinystories/train.txt").read_text("utf-8")[:60000]
    size = sum(len(story.encode()) for story in stories)

    def score(sparsity: float | dict[str, float] | str) -> float:
        model = lowbit.load(path, sparsity=sparsity)
        scores = [model.perplexity(story) for story in stories]
        return sum(s.nats_per_token * s.tokens for s in scores) / math.log(2) / size

    dense = score(0.0)
    results: list[dict[str, Any]] = [{"sparsity": 0.0, **dict.fromkeys(("top_k", "thresholds", *LINEARS), dense)}]
    with tempfile.TemporaryDirectory() as folder:
        for share in QUALITY_SHARES:
            thresholds = f"{folder}/{share}.json"
            calibrate(path, training, share, thresholds)
            results.append({"sparsity": share, "top_k": score(share), "thresholds": score(thresholds)})
            print(json.dumps(results[-1]), flush=True)
    for result in results[1:]:
        result |= {name: score({name: result["sparsity"]}) for name in LINEARS}
        print(json.dumps(result), flush=True)
    return results


def plot(figures: dict[str, Any]) -> None:
    """Draw what was measured."""
    import matplotlib.pyplot as plt
    from plots import STYLE

    colors = {1: "#0072B2", 2: "#D55E00"}
    with plt.rc_context(STYLE):
        if "kernel" in figures or "decode" in figures:
            fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
            for ax, part, title in (
                (axes[0], "kernel", f"product {ROWS} x {COLS}, from memory"),
                (axes[1], "decode", "decoding, 0.7B"),
            ):
                for threads, color in colors.items():
                    here = [f for f in figures.get(part, []) if f["threads"] == threads]
                    ax.plot(
                        [f["sparsity"] for f in here], [f["ratio"] for f in here], "o-", color=color,
                        label=f"{threads} thread{'s' * (threads > 1)}",
                    )  # fmt: skip
                    if part == "kernel" and all(f.get("limit_us") for f in here):
                        ax.plot(
                            [f["sparsity"] for f in here], [f["dense_us"] / f["limit_us"] for f in here], "--",
                            color=color, lw=1, label="only reading what counts",
                        )  # fmt: skip
                ax.axhline(1, color="#999999", lw=0.8)
                ax.set_title(title)
                ax.set_xlabel("share of inputs that is skipped")
            axes[0].set_ylabel("times as fast as dense")
            axes[0].legend()
            fig.tight_layout()
            fig.savefig(DOCS / "sparsity-speed.svg", metadata={"Date": None})
        if "quality" in figures:
            fig, ax = plt.subplots(figsize=(5.2, 3.2))
            for name, label, style in (
                ("top_k", "all linear layers, top-k", "o-"), ("thresholds", "all, calibrated thresholds", "s-"),
                ("qkv", "only qkv", ":"), ("attn_output", "only attn_output", ":"), ("gate_up", "only gate_up", ":"),
                ("ffn_down", "only ffn_down", ":"),
            ):  # fmt: skip
                here = [(f["sparsity"], f[name]) for f in figures["quality"] if name in f]
                ax.plot(*zip(*here), style, label=label)
            ax.set_xlabel("share of inputs that is skipped")
            ax.set_ylabel("bits per byte")
            ax.legend(fontsize=7)
            fig.tight_layout()
            fig.savefig(DOCS / "sparsity-quality.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["kernel", "decode", "quality", "plot"])
    parser.add_argument("--data", type=Path, help="folder of the test data, for quality")
    parser.add_argument("--shape", default="0.7B", help="random model for decode (default: 0.7B)")
    parser.add_argument("--repeat", type=int, default=12, help="repetitions, of which the least time counts")
    args = parser.parse_args()
    path = DOCS / "sparsity.json"
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if "kernel" in args.parts:
        figures["kernel"] = kernel(args.repeat)
    if "decode" in args.parts:
        figures["decode"] = decode(args.shape, args.repeat)
    if "quality" in args.parts:
        if args.data is None:
            parser.error("quality needs --data")
        figures["quality"] = quality(args.data)
    figures["machine"] = {"isa": isa.active(), "cores": dispatch.cores()}
    path.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if "plot" in args.parts:
        plot(figures)


if __name__ == "__main__":
    main()
