"""Measure how well a model predicts a text.

Each text is scored with the begin-of-text token before it. With --separator the file is cut there, spaces around
the pieces are dropped, each piece is scored alone, and the result counts every predicted token once.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from .common import (
    InputError,
    add_model_arguments,
    load_model,
    print_json,
    print_table,
    read_file,
    unescaped,
    whole,
)

if TYPE_CHECKING:
    from ..model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="UTF-8 text; - or none reads a pipe")
    parser.add_argument(
        "--separator", type=unescaped, metavar="S", help=r"score the pieces between S one by one; \n is a line end"
    )
    parser.add_argument("--stride", type=whole(1), metavar="N", help="tokens between the windows of a text that is "
                        "longer than the context (default: half of the context)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.file == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError("no text: name a file, or pipe it in")
    texts = _split(read_file(args.file), args.separator)
    name = "standard input" if args.file == "-" else args.file
    if not texts:
        raise InputError(f"{name}: no text to score")
    result = _score(load_model(args), texts, name, args.stride)
    if args.json:
        print_json(result)
    else:
        digits = {"nats_per_token": 4, "bits_per_byte": 4, "perplexity": 3}
        print_table((key, f"{value:,.{digits.get(key, 0)}f}") for key, value in result.items())
    return 0


def _split(text: str, separator: str | None) -> list[str]:
    if separator is None:
        return [text] if text else []
    if not separator:
        raise InputError("the separator is empty")
    return [piece for part in text.split(separator) if (piece := part.strip())]


def _score(model: Model, texts: list[str], name: str, stride: int | None) -> dict[str, float]:
    from tqdm import tqdm

    nats, tokens, size = 0.0, 0, 0
    total = sum(len(text.encode("utf-8")) for text in texts)
    with tqdm(total=total, unit="B", unit_scale=True, delay=1, disable=None, leave=False) as bar:
        for number, text in enumerate(texts, 1):
            try:
                score = model.perplexity(text, stride)
            except ValueError as error:  # nothing in it to predict, or a stride beyond the context
                raise InputError(f"{name}: text {number} of {len(texts)}: {error}") from None
            nats += score.nats_per_token * score.tokens
            tokens += score.tokens
            size += (nbytes := len(text.encode("utf-8")))
            bar.update(nbytes)
    mean = nats / tokens
    return {
        "nats_per_token": mean,
        "bits_per_byte": nats / (math.log(2) * size),
        "perplexity": math.exp(mean),
        "tokens": tokens,
        "bytes": size,
        "texts": len(texts),
    }
