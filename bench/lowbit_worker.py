"""Worker: lowbit, with the instruction set that LOWBIT_ISA names."""

from __future__ import annotations

import time
from typing import Any

from subject import Subject
from worker import memory, repeat, serve

import lowbit
from lowbit import isa
from lowbit._kernels import probe
from lowbit.formats import open_model

subject: Subject


def version() -> dict[str, Any]:
    """Name the engine."""
    return {"version": lowbit.__version__, "isa": isa.active()}


def load(path: str, context: int, threads: int, sequences: int = 1) -> dict[str, Any]:
    """Load a model for `prefill` and `decode`."""
    global subject
    with open_model(path) as file:
        subject = Subject(file, context, threads, sequences)
    return {
        "bytes_per_token": subject.decoder.graph.bytes_per_token,
        "macs_per_token": subject.macs_per_token,
        "head_macs": subject.head_macs,
    }


def prefill(prompt: list[int], threads: int, least_seconds: float) -> dict[str, Any]:
    """Time taking a prompt in."""
    seconds, token = repeat(lambda: subject.prefill(prompt, threads), least_seconds)
    return {"seconds": seconds, "ids": [token]}


def decode(prompt: list[int], n: int, threads: int, least_seconds: float) -> dict[str, Any]:
    """Time n tokens after a prompt, which is taken in first unless it is there already."""
    seconds, [ids] = batch([prompt], n, threads, least_seconds).values()
    return {"seconds": seconds, "ids": ids}


def batch(prompts: list[list[int]], n: int, threads: int, least_seconds: float) -> dict[str, Any]:
    """Time n tokens after each of several prompts, decoded together; `ids` is a list per prompt."""
    for i, prompt in enumerate(prompts):
        if subject.prompts[i] != prompt:
            subject.prefill(prompt, threads, i)
    seconds, ids = repeat(lambda: subject.decode(n, threads, len(prompts)), least_seconds)
    return {"seconds": seconds, "ids": ids}


def read_bandwidth(threads: int) -> dict[str, Any]:
    """Bytes per second that the memory gives now."""
    return {"rate": probe.read_bandwidth(threads)}


def dot_peak(threads: int) -> dict[str, Any]:
    """Multiply-adds per second that the instruction set reaches now."""
    return {"rate": probe.dot_peak(threads)}


def load_as_users_do(path: str, threads: int, prompt: list[int]) -> dict[str, Any]:
    """Load through the public API, and go on to the first token."""
    before = memory()
    start = time.perf_counter()
    model = lowbit.load(path, threads=threads, context=512)
    loaded = time.perf_counter()
    after = memory()
    ids = model.generate(prompt, max_tokens=1, temperature=0.0).tokens
    first = time.perf_counter()
    return {
        "load_seconds": loaded - start, "first_token_seconds": first - start, "ids": ids,
        "before": before, "after": after, "then": memory(),
    }  # fmt: skip


def story(path: str, threads: int, n: int, least_seconds: float) -> dict[str, Any]:
    """Time n greedy tokens after BOS, and tell the text."""
    model = lowbit.load(path, threads=threads)
    with open_model(path) as file:
        one = Subject(file, n, threads)
    one.prompts = [[1]]  # nothing is in the cache yet
    seconds, [ids] = repeat(lambda: one.decode(n, threads), least_seconds)
    return {"seconds": seconds, "ids": ids, "text": model.tokenizer.decode(ids)}


if __name__ == "__main__":
    serve({
        "version": version, "load": load, "prefill": prefill, "decode": decode, "batch": batch,
        "read_bandwidth": read_bandwidth, "dot_peak": dot_peak, "load_as_users_do": load_as_users_do, "story": story,
    })  # fmt: skip
