"""Show how a model cuts a text into tokens, or turn token ids back into text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .common import InputError, add_tokenizer_argument, print_json, print_table, read_text

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="?", metavar="TEXT", help="text, or ids with --decode; - or none reads a pipe")
    add("-m", "--model", metavar="FILE", help="model or tokenizer file (default: the embedded model)")
    add_tokenizer_argument(add)
    add("--bos", action=argparse.BooleanOptionalAction, help="begin with the begin-of-text token, or do not")
    add("--parse-special", action="store_true", help="read the names of special tokens in the text as these tokens")
    add("--decode", action="store_true", help="turn ids, with spaces or commas between them, into text")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print the bare ids on one line")
    form.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    text = read_text(args.text, "text")
    ids = _parse_ids(text) if args.decode else None
    tokenizer = _tokenizer(args.model, args.tokenizer)
    if ids is not None:
        return _decode(tokenizer, ids, args)
    ids = [int(i) for i in tokenizer.encode(text, add_bos=args.bos, parse_special=args.parse_special)]
    if args.ids:
        print(*ids)
        return 0
    pieces = [tokenizer.piece(i) for i in ids]
    if args.json:
        print_json({"ids": ids, "pieces": pieces})
    elif ids:
        print_table((str(i), repr(piece)) for i, piece in zip(ids, pieces, strict=True))
        print(f"[{len(ids)} tokens, {len(text.encode('utf-8'))} bytes]", file=sys.stderr)
    return 0


def _decode(tokenizer: Tokenizer, ids: list[int], args: argparse.Namespace) -> int:
    for i in ids:
        if i >= tokenizer.vocab_size:
            raise InputError(f"token id {i} is not below the vocabulary size {tokenizer.vocab_size}")
    text = tokenizer.decode(ids)
    if args.json:
        print_json({"ids": ids, "text": text})
    else:
        print(text)
    return 0


def _parse_ids(text: str) -> list[int]:
    words = text.translate(str.maketrans("[],", "   ")).split()
    for word in words:
        if not word.isdecimal():
            raise InputError(f"token ids must be whole numbers, not {word!r}")
    return [int(word) for word in words]


def _tokenizer(path: str | None, other: str | None) -> Tokenizer:
    import lowbit

    if other is not None:
        return lowbit.load_tokenizer(other) if path is None else _checked(path, other)
    return lowbit.load().tokenizer if path is None else lowbit.load_tokenizer(path)


def _checked(model: str, path: str) -> Tokenizer:
    """Another tokenizer for a model; it must not have more tokens."""
    import os

    from ..families import plan_of
    from ..formats import open_model
    from ..formats.files import named
    from ..loading.load import tokenizer_of

    path = os.path.normpath(path)
    with open_model(model) as file, named(file.path, path):
        tokenizer = tokenizer_of(file, plan_of(file), path)
    assert tokenizer is not None
    return tokenizer
