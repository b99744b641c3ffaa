"""First token of a prompt whose blocks are on disk, in a new process, beside computing it.

    python bench/kv_disk.py 0.7B --tokens 2000        # a file, or a shape of random weights

Each turn is a process of its own: one computes the prompt, one computes and writes it, one reads it from the page
cache, and one from the disk itself. The first token is timed in it, loading is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from random_gguf import write_random_gguf

import lowbit
from lowbit.benchmark import SHAPES


class Cost:
    """Processor time of calls."""

    seconds, calls = 0.0, 0

    def of(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.thread_time()
            out = call(*args)
            self.seconds += time.thread_time() - start
            self.calls += 1
            return out

        return timed


def turn(path: str, tokens: int, seed: int, folder: str | None) -> dict[str, float]:
    """Load the model, and time the first token of a prompt."""
    start = time.perf_counter()
    model = lowbit.load(path, context=tokens + 64, kv_disk=folder)
    loaded = time.perf_counter() - start
    cost = Cost()
    if folder is not None:
        disk = model._decoder.pool.disk
        disk.put, disk.get = cost.of(disk.put), cost.of(disk.get)
    prompt = np.random.default_rng(seed).integers(3, model.config.vocab_size, tokens).tolist()
    model.generate(prompt[-40:], max_tokens=2, temperature=0)  # wakes up threads and page cache
    out = model.generate(prompt, max_tokens=1, temperature=0)
    return {
        "load": loaded, "disk": cost.seconds, "calls": cost.calls, "first": out.timings.first_token_seconds,
        "known": out.timings.reused_tokens, "token": out.tokens[0] if out.tokens else -1,
    }  # fmt: skip


def forget(folder: str) -> None:
    """Write the files to the disk, and let the system forget what is in them."""
    for path in Path(folder).iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(turn(args.model, *json.loads(args.one))))
        return
    path = str(write_random_gguf(args.model, Path("build/bench")) if args.model in SHAPES else args.model)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.rounds):
        with tempfile.TemporaryDirectory(dir="build") as folder:
            for name in ("computed", "computed and written", "read", "read from the disk itself"):
                if name.endswith("itself"):
                    forget(folder)
                one = json.dumps([args.tokens, seed, None if name == "computed" else folder])
                command = [sys.executable, __file__, path, "--one", one]
                found.setdefault(name, []).append(json.loads(subprocess.check_output(command)))
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
        assert len({turns[-1]["token"] for turns in found.values()}) == 1
    first = {name: statistics.median(one["first"] for one in turns) for name, turns in found.items()}
    record = {
        "uptime": os.getloadavg(), "isa": lowbit.isa.active(), "folder_bytes": size,
        "known": found["read"][-1]["known"],
        "disk_ms_per_block": {
            name: 1e3 * statistics.median(one["disk"] / one["calls"] for one in turns)
            for name, turns in found.items() if turns[-1]["calls"]
        },
        "load_seconds": {n: statistics.median(one["load"] for one in turns) for n, turns in found.items()},
        "first_token_seconds": first, "ratio": {name: seconds / first["computed"] for name, seconds in first.items()},
    }  # fmt: skip
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
