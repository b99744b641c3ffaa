"""Make the weights of a model smaller, without training.

With --type all linear layers get one type, embedding and output head that of --head, and --tensor makes exceptions;
q4_k_m, q5_k_m, q6_k, q4_1 and iq4_nl are llama.cpp's mixtures, which choose a type for each tensor:

    lowbit quantize model.gguf small.gguf --type q4_k_m
    lowbit quantize model.gguf small.gguf --type ternary --tensor 'blk.0.*=int8' --tensor '*.ffn_down.*=int4'

With --policy dynamic each tensor's sensitivity is measured on a text, and bits go where they matter, within a budget:

    lowbit quantize model.gguf small.gguf --policy dynamic --bits 4.5 --text stories.txt

A model that was not trained to be ternary loses nearly everything when it is made ternary throughout: train it so
(lowbit train), or give it the bits it needs. With --text, bits per byte are measured before and after.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from .common import InputError, at_most_cores, check_plot, print_json, print_table, printable, save_figure, whole

if TYPE_CHECKING:
    from ..convert.requantize import Quantized

# As in lowbit.convert.source, which is too heavy to be imported for a help text.
TYPES = (
    "ternary", "int4", "int8", "f16", "q4_1", "q5_0", "q5_1", "iq4_nl", "q4_k", "q5_k", "q6_k"
)  # fmt: skip
COLOURS = {"TQ2_0": "tab:green", "Q2_0": "tab:green", "Q4_0": "tab:blue", "Q8_0": "tab:orange", "F16": "tab:red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="GGUF file or llama2.c checkpoint")
    add("target", metavar="DST", help="GGUF file to write")
    add("--type", type=str.lower, choices=(*TYPES, "q4_k_m", "q5_k_m"), metavar="TYPE",
        help=f"of the linear layers (default: ternary), or a mixture: {', '.join(TYPES)}, q4_k_m, q5_k_m")  # fmt: skip
    add("--head", type=str.lower, choices=TYPES, metavar="TYPE",
        help="of embedding and output head (default: int8, or as the mixture has it)")  # fmt: skip
    add("--tensor", action="append", default=[], metavar="PATTERN=TYPE", help="type of tensors whose names fit")
    add("--policy", choices=("uniform", "dynamic"), default="uniform", help="(default: %(default)s)")
    add("--bits", type=float, metavar="F", help="budget of --policy dynamic: bits per weight over the whole file")
    add("--text", metavar="FILE", help="calibration text or JSONL; documents as in lowbit train")
    add("--tokens", type=whole(1), default=4096, metavar="N", help="of the text to read (default: %(default)s)")
    add("-t", "--threads", type=whole(1), metavar="N", help="threads to measure with (default: one per core)")
    add("--plot", metavar="FILE", help="draw the bits of each tensor as SVG or PNG (needs matplotlib)")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..convert.requantize import quantize_model

    dynamic = args.policy == "dynamic"
    if dynamic and (args.bits is None or args.text is None):
        raise InputError("--policy dynamic needs --bits and --text")
    if dynamic and (args.type or args.head or args.tensor):
        raise InputError("--policy dynamic chooses all types itself; leave out --type, --head and --tensor")
    if not dynamic and args.bits is not None:
        raise InputError("--bits is the budget of --policy dynamic")
    if args.bits is not None and not 0 < args.bits <= 32:
        raise InputError(f"--bits must be above 0 and at most 32, not {args.bits:g}")
    if args.plot:
        check_plot(args.plot)
    with tqdm(unit_scale=True, delay=1, disable=None, leave=False) as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.set_description(what, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        done = quantize_model(
            args.source, args.target, method=args.type or "ternary", head=args.head,
            rules=[_rule(text) for text in args.tensor], bits=args.bits, text=args.text, tokens=args.tokens,
            threads=at_most_cores(args.threads), progress=progress,
        )  # fmt: skip
    if args.plot:
        _plot(args.plot, done)
    _summary(done)
    if args.json:
        print_json(asdict(done))
    else:
        _table(done)
    return 0


def _rule(text: str) -> tuple[str, str]:
    pattern, _, method = text.rpartition("=")
    method = method.lower()
    if not pattern or method not in TYPES:
        raise InputError(f"--tensor must be PATTERN=TYPE with one of {', '.join(TYPES)}, not {printable(text)!r}")
    return pattern, method


def _summary(done: Quantized) -> None:
    print(f"{done.path}: {done.nbytes:,} bytes, {done.bits_per_weight:.3f} bits per weight", file=sys.stderr)
    if done.before is not None and done.after is not None:
        change = 100 * (done.after / done.before - 1)
        print(
            f"bits/byte on the text: {done.before:.4f} before, {done.after:.4f} after ({change:+.2f} %)",
            file=sys.stderr,
        )


def _table(done: Quantized) -> None:
    measured = list(dict.fromkeys(kind for tensor in done.tensors for kind in tensor.losses))
    rows = [["tensor", "shape", "type", "bits", "error", *(f"loss {kind}" for kind in measured)]]
    for tensor in done.tensors:
        losses = [f"{tensor.losses[kind]:+.4f}" if kind in tensor.losses else "-" for kind in measured]
        shape = " x ".join(map(str, tensor.shape))
        rows.append([printable(tensor.name), shape, tensor.type, f"{tensor.bits:.3f}", f"{tensor.error:.4f}", *losses])
    print_table(rows)


def _plot(path: str, done: Quantized) -> None:
    from matplotlib.figure import Figure

    names = [tensor.name.removesuffix(".weight") for tensor in done.tensors]
    figure = Figure(figsize=(max(6.0, 0.18 * len(names) + 1.5), 3.6), layout="constrained")
    axes = figure.add_subplot(ylabel="bits per weight")
    bars = axes.bar(
        names, [tensor.bits for tensor in done.tensors], color=[COLOURS.get(t.type, "tab:gray") for t in done.tensors]
    )
    used = {tensor.type: bar for tensor, bar in zip(done.tensors, bars, strict=True)}
    axes.axhline(done.bits_per_weight, color="0.3", linewidth=0.8, linestyle="--")
    axes.tick_params(axis="x", rotation=90, labelsize=6)
    axes.margins(x=0.01)
    axes.legend(used.values(), used.keys(), frameon=False, ncols=len(used), loc="lower center", bbox_to_anchor=(0.5, 1))
    save_figure(figure, path)
