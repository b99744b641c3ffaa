"""Convert a model to GGUF.

Linear layers become the type asked for, embedding and output head the type of --head, norms F32. The ternary types
(tq2_0, tq1_0, i2_s) take ternary weights only. q4_k_m, q5_k_m, q6_k, q4_1 and iq4_nl are llama.cpp's mixtures, which
choose a type for each tensor. The tokenizer and the chat template of a folder come along. The new file
gets its name when it is complete, and replaces one that has this name already.
"""

from __future__ import annotations

import argparse
import sys

from .common import print_json, printable, progress_bar

# As in lowbit.convert, which is too heavy to be imported for a help text.
TARGET_TYPES = ("tq2_0", "tq1_0", "i2_s", "q8_0", "q4_0", "f16", "q4_1", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl")
HEAD_TYPES = ("q8_0", "q6_k", "f16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="model file")
    parser.add_argument("target", metavar="DST", help="GGUF file to write")
    add = parser.add_argument
    add("--type", required=True, type=str.lower, choices=TARGET_TYPES, help="type of the linear layers, or mixture")
    add("--head", type=str.lower, choices=HEAD_TYPES,
        help="type of embedding and head (default: q8_0, or as the mixture has it)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from ..convert import convert

    with progress_bar("w", scale=True) as progress:
        done = convert(args.source, args.target, args.type, args.head, progress)
    for name, kind in done.instead.items():
        print(f"{name}: its rows are no whole blocks of the type asked for; stored as {kind}", file=sys.stderr)
    if done.no_tokenizer is not None:
        print(f"without a tokenizer: {printable(done.no_tokenizer)}", file=sys.stderr)
    if args.json:
        names = ("path", "types", "instead", "no_tokenizer")
        print_json({"bytes": done.nbytes, **{name: getattr(done, name) for name in names}})
    else:
        print(f"{done.path}: {done.nbytes:,} bytes, {', '.join(f'{k} x {n}' for k, n in done.types.items())}")
    return 0
