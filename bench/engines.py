"""lowbit beside its peers and the machine's limits, on the same files, in turn.

    python bench/engines.py --peer-python PATH [--only decode,prefill,context,batch,busy,load,story] [--sizes 13M,...]

Every engine runs in a process of its own and stays loaded. A round gives each of them one turn after the other; of all
turns the best counts. The machine's read bandwidth and dot-product peak are measured before and after each turn of
lowbit. Results are checked: lowbit's tokens must be the same on every instruction set and for any number of threads.
A run is appended to the output after every figure, so nothing is lost if it is cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from environment import environment
from random_gguf import FIRST_WORD, write_random_gguf
from worker import Worker

from lowbit import isa
from lowbit.benchmark import SHAPES
from lowbit.formats import open_model

PARTS = ("decode", "prefill", "context", "batch", "busy", "load", "story")
PEER = "llama.cpp"
REAL = {"3M": "tinystories-3m.TQ2_0.gguf"}
"""A trained model of the test data, beside the random ones; its words begin where theirs do."""


class Run:
    """The figures of this run, and the file that they go to."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.figures: list[dict[str, Any]] = []
        self.before = json.loads(path.read_text()) if path.exists() else []
        self.about = {"environment": environment(), "settings": settings}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, figure: dict[str, Any]) -> None:
        """Keep a figure, and say it in a line."""
        self.figures.append(figure)
        runs = [*self.before, {**self.about, "figures": self.figures}]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(runs, indent=1) + "\n")
        temporary.replace(self.path)
        where = " ".join(
            f"{key} {figure[key]}" for key in ("size", "context", "batch", "spinners", "threads") if key in figure
        )
        what = [f"{name} {_short(engine)}" for name, engine in figure["engines"].items()]
        print(f"{figure['part']}: {where}: " + "; ".join(what), file=sys.stderr, flush=True)


def _short(engine: dict[str, Any]) -> str:
    words = [f"{engine['tps']:.4g} tok/s" if "tps" in engine else f"{engine['load_seconds']:.3g} s"]
    words += [f"{engine['fraction']:.0%} of the limit"] if "fraction" in engine else []
    return " ".join(words)


# --- engines -----------------------------------------------------------------------------------------------------


def start_engines(args: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Worker]:
    """Start the engines that take turns: lowbit, lowbit on plainer instruction sets, the peer."""
    workers = {"lowbit": stack.enter_context(Worker(sys.executable, "lowbit_worker.py"))}
    for name in args.isa:
        workers[f"lowbit {name}"] = stack.enter_context(Worker(sys.executable, "lowbit_worker.py", LOWBIT_ISA=name))
    if args.peer_python:
        workers[PEER] = stack.enter_context(Worker(args.peer_python, "llama_worker.py"))
    return workers


@contextlib.contextmanager
def loaded(args: argparse.Namespace, size: str, context: int) -> Iterator[dict[str, Worker]]:
    """The engines, each with the same file loaded."""
    path = file_of(args, size)
    with contextlib.ExitStack() as stack:
        workers = start_engines(args, stack)
        for worker in workers.values():
            worker.facts = worker.ask("load", path=str(path), context=context, threads=max(args.threads))
        yield workers


def file_of(args: argparse.Namespace, size: str) -> Path:
    """The model file of a size, written now if it is a random one that is not there yet."""
    if size in REAL:
        return Path(os.environ["LOWBIT_TEST_DATA"]) / "models" / REAL[size]
    return write_random_gguf(size, args.cache)


def vocab_of(size: str) -> int:
    """Number of tokens."""
    return 512 if size in REAL else SHAPES[size]["vocab"]


def prompt_of(size: str, n: int) -> list[int]:
    """The same random words for every engine."""
    return np.random.default_rng(1).integers(FIRST_WORD, vocab_of(size), n).tolist()


def check_ids(answers: dict[str, list[int]], size: str, n: int) -> None:
    """Refuse figures of an engine that did not compute: all lowbit's tokens are equal, all are n words."""
    for name, ids in answers.items():
        if len(ids) != n or not all(0 <= i < vocab_of(size) for i in ids):
            raise SystemExit(f"{name} gave {ids} where {n} tokens of {size} belong")
    ours = {name: ids for name, ids in answers.items() if name != PEER}
    if len({tuple(ids) for ids in ours.values()}) > 1:
        raise SystemExit(f"lowbit's tokens of {size} differ between instruction sets: {ours}")


class Expected:
    """Tokens that lowbit gave before, for any number of threads."""

    def __init__(self) -> None:
        self._ids: dict[tuple[Any, ...], list[int]] = {}

    def check(self, key: tuple[Any, ...], answers: dict[str, list[int]]) -> None:
        """Refuse tokens that differ from those of the same prompt on another number of threads."""
        if self._ids.setdefault(key, answers["lowbit"]) != answers["lowbit"]:
            raise SystemExit(f"lowbit's tokens of {key} depend on the number of threads")


def take_turns(
    workers: dict[str, Worker], rounds: int, turn: Callable[[Worker, float], dict[str, Any]], seconds: float,
    limit: Callable[[Worker], float] | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Warm every engine up, then let each have its turn, round after round.

    Returns
    -------
    dict by engine
        seconds (of each turn), ids, and for lowbit limits: (before, after) of each turn.
    """
    out: dict[str, dict[str, Any]] = {name: {"seconds": [], "limits": []} for name in workers}
    for worker in workers.values():
        turn(worker, 0.0)
    for _ in range(rounds):
        for name, worker in workers.items():
            ours = limit is not None and name != PEER
            before = limit(worker) if ours and limit else 0.0
            answer = turn(worker, seconds)
            if ours and limit:
                out[name]["limits"].append((before, limit(worker)))
            out[name]["seconds"].append(answer["seconds"])
            if out[name].setdefault("ids", answer["ids"]) != answer["ids"]:
                raise SystemExit(f"{name} gave other tokens for the same prompt")
    return out


def summary(turns: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Tokens per second: the best turn, and all of them."""
    each = [tokens / s for s in turns["seconds"]]
    return {"tps": max(each), "turns": each, "ids": turns["ids"]}


def against_limit(turns: dict[str, Any], amount: float, unit: str) -> dict[str, Any]:
    """The rate of the best turn beside the limit, and what part of the limit around it a turn reached (median)."""
    rates = [amount / s for s in turns["seconds"]]
    limits = [max(pair) for pair in turns["limits"]]
    return {
        f"{unit}_per_second": max(rates),
        "limit": max(limits),
        "fraction": median(rate / limit for rate, limit in zip(rates, limits)),
        "limits": turns["limits"],
    }


# --- parts -------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace, run: Run) -> None:
    """Prefill and decode of every size and number of threads."""
    for size in args.sizes:
        prompt, expected = prompt_of(size, args.prompt), Expected()
        with loaded(args, size, args.prompt + args.tokens) as workers:
            facts = workers["lowbit"].facts
            for part in (p for p in ("prefill", "decode") if p in args.only):
                for threads in args.threads:
                    run.add(_speed(args, part, size, prompt, threads, workers, facts, expected))


def _speed(
    args: argparse.Namespace, part: str, size: str, prompt: list[int], threads: int, workers: dict[str, Worker],
    facts: dict[str, int], expected: Expected,
) -> dict[str, Any]:  # fmt: skip
    n, limited = (len(prompt), "dot_peak") if part == "prefill" else (args.tokens, "read_bandwidth")

    def turn(worker: Worker, seconds: float) -> dict[str, Any]:
        more = {} if part == "prefill" else {"n": n}
        return worker.ask(part, prompt=prompt, threads=threads, least_seconds=seconds, **more)

    turns = take_turns(
        workers, args.rounds, turn, args.seconds, lambda worker: worker.ask(limited, threads=threads)["rate"]
    )
    answers = {name: t["ids"] for name, t in turns.items()}
    check_ids(answers, size, 1 if part == "prefill" else n)
    expected.check((part, size), answers)
    engines = {name: summary(t, n) for name, t in turns.items()}
    macs = n * facts["macs_per_token"] + facts["head_macs"]
    for name, worker in workers.items():
        if name != PEER:
            amount, unit = (macs, "macs") if part == "prefill" else (n * facts["bytes_per_token"], "bytes")
            engines[name] |= against_limit(turns[name], amount, unit) | {"isa": worker.ask("version")["isa"]}
    return {
        "part": part, "size": size, "threads": threads, "prompt": len(prompt), "tokens": n, **facts, "engines": engines,
    }  # fmt: skip


def context(args: argparse.Namespace, run: Run) -> None:
    """Prefill of n tokens, and decode after them."""
    size, tokens = args.context_size, 16
    with loaded(args, size, max(args.contexts) + tokens) as workers:
        for n in args.contexts:
            prompt, expected = prompt_of(size, n), Expected()
            for threads in args.threads:
                for part in ("prefill", "decode"):
                    count = n if part == "prefill" else tokens
                    more = {} if part == "prefill" else {"n": tokens}

                    def turn(
                        worker: Worker, seconds: float, part: str = part, prompt: list[int] = prompt,
                        threads: int = threads, more: dict[str, int] = more,
                    ) -> dict[str, Any]:  # fmt: skip
                        return worker.ask(part, prompt=prompt, threads=threads, least_seconds=seconds, **more)

                    rounds = 2 if n > 2048 else args.rounds
                    turns = take_turns(workers, rounds, turn, min(args.seconds, 0.1), None)
                    answers = {name: t["ids"] for name, t in turns.items()}
                    check_ids(answers, size, 1 if part == "prefill" else tokens)
                    expected.check((part, size, n), answers)
                    run.add({
                        "part": f"context {part}", "size": size, "context": n, "threads": threads,
                        "engines": {name: summary(t, count) for name, t in turns.items()},
                    })  # fmt: skip


def batch(args: argparse.Namespace, run: Run) -> None:
    """Tokens of all sequences together, when several are decoded at once; each must say what it says alone."""
    size, tokens = args.batch_size, min(args.tokens, 16)
    path = file_of(args, size)
    prompts = [prompt_of(size, 32 + i)[i:] for i in range(max(args.batches))]
    alone: dict[int, list[int]] = {}
    with Worker(sys.executable, "lowbit_worker.py") as worker:
        room = {"context": 32 + tokens, "threads": max(args.threads), "sequences": len(prompts)}
        worker.ask("load", path=str(path), **room)
        for threads in args.threads:
            settings = {"n": tokens, "threads": threads, "least_seconds": args.seconds}
            found: dict[int, list[float]] = {n: [] for n in args.batches}
            for _ in range(args.rounds):
                for n in args.batches:
                    answer = worker.ask("batch", prompts=prompts[:n], **settings)
                    found[n].append(n * tokens / answer["seconds"])
                    for i, ids in enumerate(answer["ids"]):
                        if alone.setdefault(i, ids) != ids:
                            raise SystemExit(f"sequence {i} of {size} says something else in a batch of {n}")
            for n, each in found.items():
                engines = {"lowbit": {"tps": max(each), "turns": each}}
                run.add({"part": "batch", "size": size, "batch": n, "threads": threads, "engines": engines})


@contextlib.contextmanager
def spinning(n: int) -> Iterator[None]:
    """Keep n other processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def busy(args: argparse.Namespace, run: Run) -> None:
    """Decode while two other processes want the cores, beside one thread that has the machine for itself."""
    tokens = min(args.tokens, 16)
    for size in args.sizes:
        prompt, expected = prompt_of(size, args.prompt), Expected()
        with loaded(args, size, args.prompt + tokens) as workers:
            for spinners, threads in ((0, 1), (0, 2), (2, 1), (2, 2)):

                def turn(
                    worker: Worker, seconds: float, prompt: list[int] = prompt, threads: int = threads
                ) -> dict[str, Any]:
                    return worker.ask("decode", prompt=prompt, n=tokens, threads=threads, least_seconds=seconds)

                with spinning(spinners):
                    turns = take_turns(workers, args.rounds, turn, args.seconds, None)
                answers = {name: t["ids"] for name, t in turns.items()}
                check_ids(answers, size, tokens)
                expected.check((size,), answers)
                # a lucky moment says nothing about a busy machine: the median counts here
                engines = {
                    name: summary(t, tokens) | {"tps": tokens / median(t["seconds"])} for name, t in turns.items()
                }
                run.add({"part": "busy", "size": size, "spinners": spinners, "threads": threads, "engines": engines})


def load(args: argparse.Namespace, run: Run) -> None:
    """Seconds to load from the page cache and to the first token, and memory over the bytes of the tensors."""
    for size in args.sizes:
        path, prompt = file_of(args, size), prompt_of(size, 8)
        with open_model(path) as file:
            tensors = sum(info.nbytes for info in file.tensors.values())
        with open(path, "rb") as raw:  # into the page cache
            while raw.read(1 << 24):
                pass
        answers: dict[str, list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for script, python, name in (
                ("lowbit_worker.py", sys.executable, "lowbit"), ("llama_worker.py", args.peer_python, PEER),
            ):  # fmt: skip
                if python:
                    with Worker(python, script) as worker:
                        worker.ask("version")
                        answers.setdefault(name, []).append(
                            worker.ask("load_as_users_do", path=str(path), threads=max(args.threads), prompt=prompt)
                        )
        check_ids({name: a[0]["ids"] for name, a in answers.items()}, size, 1)
        engines = {}
        for name, many in answers.items():
            engines[name] = {key: min(a[key] for a in many) for key in ("load_seconds", "first_token_seconds")}
            if many[0]["before"]:
                engines[name] |= {
                    "memory_ratio": median((a["then"]["now"] - a["before"]["now"]) / tensors for a in many),
                    "peak_ratio": median((a["then"]["most"] - a["before"]["now"]) / tensors for a in many),
                }
        run.add({
            "part": "load", "size": size, "threads": max(args.threads), "tensor_bytes": tensors, "engines": engines,
        })  # fmt: skip


def story(args: argparse.Namespace, run: Run) -> None:
    """llama2.c's program and lowbit tell the same story with the same 260K parameters, on one thread."""
    if not args.llama2c or "LOWBIT_TEST_DATA" not in os.environ:
        print("story: left out: it needs --llama2c and LOWBIT_TEST_DATA", file=sys.stderr)
        return
    models = Path(os.environ["LOWBIT_TEST_DATA"]) / "models"
    command = [args.llama2c, str(models / "stories260K.bin"), "-z", str(models / "tok512.bin"), "-t", "0", "-n", "256"]
    theirs, ours = [], []
    with Worker(sys.executable, "lowbit_worker.py") as worker:
        for _ in range(10 * args.rounds):  # the clock of llama2.c has milliseconds, and 256 tokens take about 20
            told = subprocess.run(command, capture_output=True, text=True, check=True)
            theirs.append(float(told.stderr.split("achieved tok/s:")[1]))
            ours.append(worker.ask("story", path=str(models / "stories260K.bin"), threads=1, n=256, least_seconds=0.02))
    text = ours[0]["text"]
    if text.strip() != told.stdout.strip():
        raise SystemExit(f"the stories differ:\n{text}\n---\n{told.stdout}")
    each = [len(o["ids"]) / o["seconds"] for o in ours]
    run.add({
        "part": "story", "size": "stories260K", "threads": 1, "text": text,
        "engines": {
            "lowbit": {"tps": max(each), "median": median(each)},
            "llama2.c": {"tps": max(theirs), "median": median(theirs)},
        },
    })  # fmt: skip


# --- command line ------------------------------------------------------------------------------------------------


def _names(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    sets = isa.available()
    sizes = [*(REAL if "LOWBIT_TEST_DATA" in os.environ else ()), *SHAPES]
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--only", type=_names(PARTS), default=list(PARTS), help=f"parts: {','.join(PARTS)}")
    p.add_argument("--sizes", type=_names(tuple(sizes)), default=sizes, help=f"models: {','.join(sizes)}")
    p.add_argument("--threads", type=_numbers, default=[1, 2])
    p.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    p.add_argument("--seconds", type=float, default=0.3, help="least length of a turn; short runs are repeated in it")
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--contexts", type=_numbers, default=[128, 256, 512, 1024, 2048, 4096, 8192])
    p.add_argument("--context-size", choices=list(SHAPES), default="110M", help="model of the part `context`")
    p.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8, 16])
    p.add_argument("--batch-size", choices=list(SHAPES), default="0.7B", help="model of the part `batch`")
    p.add_argument("--isa", type=_names(tuple(sets)), default=[s for s in sets[:-1] if s == "avx2"],
                   help="plainer instruction sets of lowbit that take part")  # fmt: skip
    p.add_argument("--peer-python", default=os.environ.get("LOWBIT_PEER_PYTHON"),
                   help="a Python that has llama-cpp-python and numpy")  # fmt: skip
    p.add_argument("--llama2c", help="the program `run` of llama2.c")
    p.add_argument("--cache", type=Path, default=Path("build/bench-cache"), help="folder for the model files")
    p.add_argument("--output", type=Path, default=Path("build/bench/engines.json"))
    return p.parse_args()


def main() -> None:
    """Measure what the command line asks for."""
    args = parse_arguments()
    shown = ("only", "sizes", "threads", "rounds", "seconds", "prompt", "tokens", "isa")
    settings = {name: getattr(args, name) for name in shown}
    run = Run(args.output, settings)
    if args.peer_python:
        with Worker(args.peer_python, "llama_worker.py") as peer:
            run.about["peer"] = peer.ask("version")
    else:
        print("llama.cpp: left out: name its Python with --peer-python or LOWBIT_PEER_PYTHON", file=sys.stderr)
    parts = {"context": context, "batch": batch, "busy": busy, "load": load, "story": story}
    if {"prefill", "decode"} & set(args.only):
        speed(args, run)
    for name in args.only:
        if name in parts:
            parts[name](args, run)


if __name__ == "__main__":
    main()
