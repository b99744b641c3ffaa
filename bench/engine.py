"""The engine under load: requests that arrive at random, a long prompt beside running answers, prompts that are known.

    python bench/engine.py 0.7B --out build/bench/engine.json      # a file, or a shape of random weights
    python bench/engine.py --draw build/bench/engine.json          # docs/serving-engine.svg

Arrivals are Poisson, from a seed. The engine's figure is compared with a static batch in the same process, in turns;
all times are of the wall, so nothing else should run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from random_gguf import write_random_gguf

import lowbit
from lowbit import Engine
from lowbit.benchmark import SHAPES

DOCS = Path(__file__).resolve().parents[1] / "docs"
REQUESTS, AT_ONCE = 64, 8
PROMPT, LEAST, MOST = 48, 16, 48
"""Tokens of a prompt, and of an answer."""
LONG = 2000
KNOWN, WHOLE = 960, 1000


def requests(vocab: int, seed: int = 1) -> list[tuple[list[int], int]]:
    """Prompts of random tokens, and how long each answer is."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, vocab, PROMPT).tolist(), int(rng.integers(LEAST, MOST + 1))) for _ in range(REQUESTS)]


def static(model: lowbit.Model, wanted: list[tuple[list[int], int]]) -> float:
    """Tokens per second of batches of `AT_ONCE`, each run until its longest answer is done."""
    start, tokens = time.perf_counter(), 0
    for first in range(0, len(wanted), AT_ONCE):
        group = wanted[first : first + AT_ONCE]
        longest = max(n for _, n in group)
        model.generate([prompt for prompt, _ in group], max_tokens=longest, temperature=0)
        tokens += sum(n for _, n in group)
    return tokens / (time.perf_counter() - start)


def poisson(model: lowbit.Model, wanted: list[tuple[list[int], int]], rate: float) -> dict[str, Any]:
    """Submit at random times, `rate` requests per second on average; measure times to and between tokens."""
    waits = np.random.default_rng(2).exponential(1 / rate, len(wanted))
    first: list[float] = []
    between: list[float] = []
    made: list[int] = []

    def read(stream: Any, asked: float) -> None:
        before = None
        while not stream._request.over or stream._request.made > seen(stream):
            with engine.changed:
                engine.changed.wait(0.05)
            now, n = time.perf_counter(), stream._request.made
            if n > seen(stream):
                if before is None:
                    first.append(now - asked)
                else:
                    between.extend([(now - before) / (n - seen(stream))] * (n - seen(stream)))
                before, stream.seen = now, n
        made.append(stream._request.made)

    def seen(stream: Any) -> int:
        return getattr(stream, "seen", 0)

    with Engine(model, max_sequences=AT_ONCE) as engine:
        start, readers = time.perf_counter(), []
        for (prompt, n), wait in zip(wanted, waits):
            time.sleep(wait)
            stream = engine.submit(prompt, max_tokens=n, temperature=0)
            reader = threading.Thread(target=read, args=(stream, time.perf_counter()))
            reader.start()
            readers.append(reader)
        for reader in readers:
            reader.join()
        seconds = time.perf_counter() - start
    return {
        "tokens_per_second": sum(made) / seconds,
        **{f"first_{name}": value for name, value in spread(first).items()},
        **{f"between_{name}": value for name, value in spread(between).items()},
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    return {"p50": 1e3 * float(np.percentile(seconds, 50)), "p99": 1e3 * float(np.percentile(seconds, 99)),
            "max": 1e3 * max(seconds)}  # fmt: skip


def gaps(model: lowbit.Model, step_ms: float, vocab: int) -> dict[str, Any]:
    """Times between the tokens of a running answer, before and while a prompt of `LONG` tokens is read."""
    rng = np.random.default_rng(3)
    model._decoder.pool.clear()
    with Engine(model, step_ms=step_ms) as engine:
        never = {int(token): -1000.0 for token in model._ends}
        running = engine.submit(rng.integers(3, vocab, 16).tolist(), max_tokens=900, temperature=0, logit_bias=never)
        running._request.collecting = True  # as if it were read at once
        times: list[tuple[float, int]] = []
        newcomer = None
        while not running._request.over:
            with engine.changed:
                engine.changed.wait(0.05)
            made = running._request.made
            if made and (not times or made > times[-1][1]):
                times.append((time.perf_counter(), made))
            if made >= 60 and newcomer is None:
                arrival, newcomer = time.perf_counter(), engine.submit(
                    rng.integers(3, vocab, LONG).tolist(), max_tokens=1, temperature=0
                )  # fmt: skip
            if newcomer is not None and newcomer._request.over:
                break
        end = time.perf_counter()
        running.cancel()
    steps = [(b[0] - a[0], b[1] - a[1], b[0]) for a, b in itertools.pairwise(times)]
    quiet = [gap / n for gap, n, at in steps if at <= arrival]
    # one token per step while a prompt is read
    disturbed = [gap for gap, n, at in steps if at > arrival and n == 1]
    return {
        "step_ms": step_ms, "plain_ms": 1e3 * statistics.median(quiet), "longest_ms": 1e3 * max(disturbed, default=0),
        "prompt_seconds": end - arrival, "gaps_ms": [round(1e3 * gap, 2) for gap, _, _ in steps],
    }  # fmt: skip


def prefix(model: lowbit.Model, vocab: int, repeat: int = 3) -> dict[str, float]:
    """Time to the first token of a prompt of which most is known, and of one of which nothing is."""
    rng = np.random.default_rng(4)
    known, new = [], []
    for _ in range(repeat):
        model._decoder.pool.clear()
        prompt = rng.integers(3, vocab, WHOLE).tolist()
        model.generate(prompt[:KNOWN], max_tokens=0)
        for found, tokens in ((known, prompt), (new, rng.integers(3, vocab, WHOLE).tolist())):
            found.append(model.generate(tokens, max_tokens=1, temperature=0).timings.first_token_seconds)
    return {"known_ms": 1e3 * min(known), "new_ms": 1e3 * min(new), "ratio": min(known) / min(new)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.draw.read_text()))
        return
    path = write_random_gguf(args.model, Path("build/bench")) if args.model in SHAPES else args.model
    model = lowbit.load(path, context=4096)
    vocab = model.config.vocab_size
    wanted = requests(vocab)
    model.generate(wanted[0][0], max_tokens=4)
    fixed, rates, served = [], [], []
    for _ in range(args.rounds):
        model._decoder.pool.clear()
        fixed.append(static(model, wanted))
        # so many that there are always some waiting
        model._decoder.pool.clear()
        served.append(poisson(model, wanted, 3 * fixed[-1] / ((LEAST + MOST) / 2)))
        rates.append(served[-1]["tokens_per_second"] / fixed[-1])
    record = {
        "uptime": os.getloadavg(), "cores": len(os.sched_getaffinity(0)), "isa": lowbit.isa.active(),
        "static": statistics.median(fixed), "ratio": statistics.median(rates),
        "poisson": sorted(served, key=lambda one: one["tokens_per_second"])[len(served) // 2],
        "gaps": [gaps(model, step_ms, vocab) for step_ms in (50.0, 60_000.0)],
        "prefix": prefix(model, vocab),
    }  # fmt: skip
    print(json.dumps({**record, "gaps": [{**g, "gaps_ms": len(g["gaps_ms"])} for g in record["gaps"]]}, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record))


def draw(record: dict[str, Any]) -> None:
    """The gaps between the tokens of a running answer, with and without the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from plots import STYLE

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
        for found, label in zip(record["gaps"], ("step_ms=50", "no budget")):
            axes.plot(np.cumsum(found["gaps_ms"]) / 1e3, found["gaps_ms"], ".-", label=label, markersize=3)
        axes.set(xlabel="seconds", ylabel="ms between tokens", yscale="log")
        axes.legend()
        figure.savefig(DOCS / "serving-engine.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
