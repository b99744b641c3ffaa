"""lowbit beside engines that come with llama.cpp's `llama-bench`, in turn.

    python bench/rivals.py --lowbit MODEL.gguf --rival NAME=LLAMA_BENCH:MODEL.gguf ... [--rounds 3]

A round gives each engine one turn of one run of prefill and one of decoding for each number of threads; the median of
the rounds counts, and the ratio is that of the medians. Rivals may read another file of the same weights, in the type
that suits them best. Options of the binary, or of `lowbit bench`, go behind the model:
`'ik=./llama-bench:model.gguf -fa 1 -rtr 1'`, `'model.gguf --pack dense'`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from statistics import median
from typing import Any

Turn = dict[tuple[str, int], float]
"""Tokens per second of ("prefill" or "decode", threads)."""


def lowbit_turn(model: str, args: argparse.Namespace) -> Turn:
    """One turn of lowbit."""
    model, *options = shlex.split(model)
    what = ["-m", model] if model.endswith(".gguf") else ["--random", model]
    command = [sys.executable, "-m", "lowbit", "bench", *what, "-p", str(args.prompt), "-n", str(args.tokens),
               "-t", args.threads, "--repeat", "1", "--json", *options]  # fmt: skip
    turn = {}
    for one in json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout):
        turn["prefill", one["threads"]] = one["prefill_tps"]
        turn["decode", one["threads"]] = one["decode_tps"]
    return turn


def rival_turn(rival: str, args: argparse.Namespace) -> Turn:
    """One turn of a `llama-bench`."""
    binary, _, rest = rival.partition(":")
    model, *options = shlex.split(rest)
    command = [binary, "-m", model, "-p", str(args.prompt), "-n", str(args.tokens), "-t", args.threads, "-r", "1",
               "-o", "json", *options]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    turn = {}
    for one in json.loads(out[out.index("[") :]):
        turn["prefill" if one["n_prompt"] else "decode", one["n_threads"]] = one["avg_ts"]
    return turn


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowbit", required=True, metavar="MODEL [OPTIONS]",
                        help="file, or a shape of `lowbit bench --random`")  # fmt: skip
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=LLAMA_BENCH:MODEL [OPTIONS]")
    parser.add_argument("-p", "--prompt", type=int, default=128, metavar="N")
    parser.add_argument("-n", "--tokens", type=int, default=32, metavar="N")
    parser.add_argument("-t", "--threads", default="1,2", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    rivals = dict(one.split("=", 1) for one in args.rival)
    turns: dict[str, list[Turn]] = {"lowbit": [], **{name: [] for name in rivals}}
    for i in range(args.rounds):
        turns["lowbit"].append(lowbit_turn(args.lowbit, args))
        for name, rival in rivals.items():
            turns[name].append(rival_turn(rival, args))
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr, flush=True)
    print("| | threads | lowbit |" + "".join(f" {name} | |" for name in rivals))
    print("|---|--:|--:|" + "--:|--:|" * len(rivals))
    middle: dict[str, Any] = {
        name: {key: median(t[key] for t in list_) for key in list_[0]} for name, list_ in turns.items()
    }
    for key, ours in sorted(middle["lowbit"].items(), reverse=True):
        cells = "".join(f" {middle[name][key]:,.1f} | **{ours / middle[name][key]:.2f}x** |" for name in rivals)
        print(f"| {key[0]} | {key[1]} | {ours:,.1f} |{cells}")


if __name__ == "__main__":
    main()
