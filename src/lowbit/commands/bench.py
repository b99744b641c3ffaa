"""Measure prefill and decode speed, against the memory speed of the same minute.

Each figure is the best of several runs. decode_gbps is the weight bytes that decoding reads per second, and
memory_read_gbps what the machine can read with as many threads: their ratio says how much is left to gain.

With --profile each operation is measured too, beside what the machine can read, in 1 to 16 streams at a time, and
multiply.
"""

from __future__ import annotations

import argparse
from typing import Any

from .common import (
    InputError,
    check_plot,
    print_json,
    print_table,
    progress_bar,
    refused,
    save_figure,
    share_or_file,
    whole,
)

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

_PARTS = ("decode", "prefill")
_OPERATION = {
    "operation": ("operation", "s"),
    "calls": ("calls", ",d"),
    "us_per_call": ("us/call", ",.1f"),
    "us_per_token": ("us/token", ",.1f"),
    "share": ("time", ".1%"),
    "gbps": ("GB/s", ".1f"),
    "of_read": ("of memory", ".0%"),
    "gmacs": ("GMAC/s", ".1f"),
    "of_peak": ("of peak", ".0%"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-m", "--model", metavar="FILE", help="model file (default: the embedded model)")
    source.add_argument(
        "--random", metavar="SHAPE", help="random ternary weights: 13M, 15M, 110M, 0.7B, 1B, 2.4B or qwen35-0.8B"
    )
    add("-p", "--prompt-tokens", type=whole(1), default=128, metavar="N", help="prompt length (default: 128)")
    add("-n", "--decode-tokens", type=whole(1), default=32, metavar="N", help="tokens to decode (default: 32)")
    add("-t", "--threads", type=_counts, default=(1, 2), metavar="N,N", help="thread counts (default: 1,2)")
    add("--context", type=whole(1), metavar="N", help="tokens to make room for (default: what the run needs)")
    add("--batch", type=whole(1), default=1, metavar="N", help="texts to decode at once (default: 1)")
    add(
        "--pack",
        default="auto",
        metavar="TYPE",
        help="ternary weights in memory: auto (four to a byte, default) or dense (five)",
    )
    add("--kv-type", default="auto", metavar="TYPE", help="keys and values in memory: auto (default), f32, f16 or int8")
    add("--repeat", type=whole(1), default=3, metavar="N", help="runs, of which the best counts (default: 3)")
    add("--sparsity", type=share_or_file, default=0.0, metavar="F", help="share of activations to skip while decoding")
    add("--profile", action="store_true", help="measure each operation, against the limits of the machine")
    add("--plot", metavar="FILE", help="draw the profile as SVG or PNG (needs matplotlib)")
    add("--json", action="store_true", help="print a JSON list with one object per thread count")


def run(args: argparse.Namespace) -> int:
    from .. import benchmark

    if args.plot:
        if not args.profile:
            raise InputError("--plot draws what --profile measures")
        check_plot(args.plot)
    with refused(), progress_bar("run") as progress:
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
            profile=args.profile,
            batch=args.batch,
            pack=args.pack,
            kv_type=args.kv_type,
        )
    if args.json:
        print_json(results)
    else:
        print_table([[title for title, _ in _COLUMNS.values()], *(_row(_COLUMNS, result) for result in results)], True)
        for result in results if args.profile else ():
            _print_profile(result)
    if args.plot:
        _plot(args.plot, results)
    return 0


def _row(columns: dict[str, tuple[str, str]], result: dict[str, Any]) -> list[str]:
    """Return the cells of a row; a rate of nothing is a dash."""
    return [format(result[key], form) if result[key] else "-" for key, (_, form) in columns.items()]


def _print_profile(result: dict[str, Any]) -> None:
    measured, threads = result["profile"], _threads(result)
    streams = ", ".join(f"{n}: {rate:.1f}" for n, rate in measured["read_gbps"].items())
    print(f"\n{threads}: memory gives {streams} GB/s in so many streams per thread;")
    print(f"int8 products in registers: {measured['peak_gmacs']:.0f} GMAC/s")
    for part in _PARTS:
        print(f"\n{part}, {threads}")
        head = [title for title, _ in _OPERATION.values()]
        print_table([head, *(_row(_OPERATION, operation) for operation in measured[part])], numeric=True)


def _threads(result: dict[str, Any]) -> str:
    return f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"


def _plot(path: str, results: list[dict[str, Any]]) -> None:
    """Draw, for each number of threads, the time of each operation and its rate under the limits of the machine."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(o["operation"] for r in results for p in _PARTS for o in r["profile"][p]))
    figure = Figure(figsize=(13, len(results) * (0.24 * len(names) + 1.1)), layout="constrained")
    grid = figure.subplots(len(results), 4, squeeze=False)
    for row, result in zip(grid, results, strict=True):
        measured = result["profile"]
        read = measured["read_gbps"]
        for at, (part, rate, limit, unit) in enumerate(
            [("decode", "gbps", max(read.values()), "GB/s"), ("prefill", "gmacs", measured["peak_gmacs"], "GMAC/s")]
        ):
            found = {operation["operation"]: operation for operation in measured[part]}
            times, rates = row[2 * at : 2 * at + 2]
            for axes, key, label in (times, "us_per_token", "microseconds per token"), (rates, rate, unit):
                values = [found[name][key] if name in found else 0.0 for name in names]
                axes.bar_label(
                    axes.barh(names, values, color="#0072B2" if axes is times else "#56B4E9"),
                    [f"{value:.3g}" if value else "" for value in values], fontsize=7, padding=2,
                )  # fmt: skip
                axes.set(title=f"{part}, {_threads(result)}", xlabel=label)
                axes.invert_yaxis()
                axes.margins(x=0.18)
                axes.tick_params(labelsize=7)
            rates.set_yticklabels([])
            rates.axvline(limit, color="black", linewidth=1.2)
            times.set_xlim(left=0)
        for streams, rate in read.items():
            row[1].axvline(rate, color="#E69F00", linewidth=0.8, linestyle=":")
            row[1].annotate(f"{streams}", (rate, -0.9), fontsize=6, color="#E69F00", ha="center", annotation_clip=False)
    save_figure(figure, path)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(whole(1)(word) for word in text.split(","))
