"""Measure prefill and decode speed, against the memory speed of the same minute.

Each figure is the best of several runs. decode_gbps is the weight bytes that decoding reads per second, and
memory_read_gbps what the machine can read with as many threads: their ratio says how much is left to gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .common import InputError, print_json, print_table, share_or_file, whole

_COLUMNS = {
    "threads": ("threads", "d"),
    "isa": ("isa", "s"),
    "prefill_tps": ("prefill tok/s", ",.1f"),
    "decode_tps": ("decode tok/s", ",.1f"),
    "weight_bytes_per_token": ("weight bytes/token", ",d"),
    "decode_gbps": ("decode GB/s", ".2f"),
    "memory_read_gbps": ("memory GB/s", ".2f"),
    "load_seconds": ("load s", ".2f"),
    "rss_mb": ("RSS MB", ",.0f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-m", "--model", metavar="FILE", help="model file (default: the embedded model)")
    source.add_argument("--random", metavar="SHAPE", help="random ternary weights: 13M, 15M, 110M, 0.7B, 1B or 2.4B")
    add("-p", "--prompt-tokens", type=whole(1), default=128, metavar="N", help="prompt length (default: 128)")
    add("-n", "--decode-tokens", type=whole(1), default=32, metavar="N", help="tokens to decode (default: 32)")
    add("-t", "--threads", type=_counts, default=(1, 2), metavar="N,N", help="thread counts (default: 1,2)")
    add("--context", type=whole(1), metavar="N", help="tokens to make room for (default: what the run needs)")
    add("--repeat", type=whole(1), default=3, metavar="N", help="runs, of which the best counts (default: 3)")
    add("--sparsity", type=share_or_file, default=0.0, metavar="F", help="share of activations to skip while decoding")
    add("--json", action="store_true", help="print a JSON list with one object per thread count")


def run(args: argparse.Namespace) -> int:
    from .. import benchmark
    from ..errors import LowbitError

    try:
        with _progress_bar() as progress:
            results = benchmark.run(
                path=args.model,
                random=args.random,
                prompt_tokens=args.prompt_tokens,
                decode_tokens=args.decode_tokens,
                threads=args.threads,
                context=args.context,
                repeat=args.repeat,
                progress=progress,
                sparsity=args.sparsity,
            )
    except LowbitError:
        raise
    except ValueError as error:  # an unknown shape, say
        raise InputError(str(error)) from None
    if args.json:
        print_json(results)
    else:
        print_table([[title for title, _ in _COLUMNS.values()], *map(_row, results)], numeric=True)
    return 0


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many of all runs are done."""
    from tqdm import tqdm

    with tqdm(unit="run", delay=1, disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _row(result: dict[str, Any]) -> list[str]:
    return [format(result[key], form) for key, (_, form) in _COLUMNS.items()]


def _counts(text: str) -> tuple[int, ...]:
    return tuple(whole(1)(word) for word in text.split(","))
