"""What is fuzzed: one row per parser, with valid files, ways to break them, and what must hold of any file."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import seeds
from mutation import Below, mutate, mutate_json

import lowbit
from lowbit.chat.templates import find_template
from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.safetensors import SafetensorsFile
from lowbit.loading.memory import Budget
from lowbit.tokenizers import load_tokenizer, tiktoken

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # outside of pytest too
from work import LITTLE, Work

__all__ = ["TARGETS", "Target", "check"]

ROOM = 1 << 30
"""Bytes that a model is given whose weights stay in the file: no limit to any that is this small."""
MAX_MESSAGE = 1000
TEXTS = ("ab é 日 12\n\n<tool></s><0x41>", "a" * 300, "\x00 \u202e\U0001f999")


def consume_model(path: Path) -> None:
    """Touch everything that a model file offers, then run the model, with its weights in memory and in the file."""
    if not _touch(path):
        return
    resident = _outcome(path)
    with mock.patch.object(Budget, "holds", return_value=False):  # though there would be room for all of it
        paged = _outcome(path, max_ram=ROOM)
    if isinstance(resident, Exception):
        assert type(paged) is type(resident), (resident, paged)
        raise resident
    assert isinstance(paged, np.ndarray), paged
    assert np.array_equal(resident.view(np.uint32), paged.view(np.uint32))


def _outcome(path: Path, **options: Any) -> np.ndarray | Exception:
    """Logits of every token of the vocabulary, or the error: the same at every call."""
    try:
        model = lowbit.load(path, threads=1, **options)
    except (FormatError, UnsupportedModelError) as error:
        return error
    size = model.config.vocab_size
    outcomes: list[np.ndarray | FormatError] = []
    for _ in range(2):
        try:
            rows = [model.logits([token]) for token in {*range(min(size, 16)), size - 1}]
            assert {row.shape for row in rows} == {(1, size)}
            outcomes.append(np.concatenate(rows))
        except FormatError as error:
            outcomes.append(error)
    first, second = outcomes
    if isinstance(first, FormatError) or isinstance(second, FormatError):
        assert str(path) in str(first)
        assert str(first) == str(second)
    else:
        assert np.array_equal(first.view(np.uint32), second.view(np.uint32))
    return first


def _touch(path: Path) -> bool:
    """Look at every key and tensor of a container; tell whether it may be a model."""
    with open_model(path) as file:
        for key in file.metadata:
            assert file.metadata[key] is not None
        for info in file.tensors.values():
            raw = file.read(info.name)
            assert raw.nbytes == info.nbytes or file.format == "huggingface"
            with contextlib.suppress(FormatError, UnsupportedModelError):  # these do not know the file's name
                assert dequantize(info.type, raw, info.shape).shape == info.shape
        if file.format == "gguf":
            with contextlib.suppress(UnsupportedModelError):  # the model has none
                find_template(file.metadata, None)
        return "token_embd.weight" in file.tensors


def consume_safetensors(path: Path) -> None:
    """Read every tensor."""
    with SafetensorsFile(path) as file:
        assert sum(len(file.read(name)) for name in file.tensors) <= path.stat().st_size


def consume_tokenizer(path: Path) -> None:
    """Encode and decode; nothing leads out of the vocabulary, and no text becomes a control token."""
    tokenizer = load_tokenizer(path)
    size = tokenizer.vocab_size
    for text in TEXTS:
        ids = tokenizer.encode(text, add_bos=False)
        assert all(0 <= i < size for i in ids)
        assert not set(ids) & tokenizer.control_ids
        tokenizer.decode(ids)
        assert all(0 <= i < size for i in tokenizer.encode(text, parse_special=True))
    for i in {0, min(1, size - 1), size // 2, size - 1}:
        tokenizer.piece(i).encode()
        tokenizer.token_bytes(i)


def consume_ranks(path: Path) -> None:
    """As a tokenizer, with as many ranks taken for Llama 3's as the seed has: the real number would take too long."""
    ranks = tiktoken._LLAMA3_RANKS
    tiktoken._LLAMA3_RANKS = seeds.RANKS
    try:
        consume_tokenizer(path)
    finally:
        tiktoken._LLAMA3_RANKS = ranks


@dataclass(frozen=True)
class Target:
    """One parser."""

    file: str
    """What the bytes are written to, in a folder of their own."""
    consume: Callable[[Path], None]
    valid: tuple[bytes, ...]
    broken: Callable[[Below], bytes]
    """A valid file that choices have changed."""
    beside: tuple[tuple[str, bytes], ...] = ()
    """Other files that must lie in the folder; then the folder is what is opened."""


def _tree(name: str, file: str, consume: Callable[[Path], None]) -> Target:
    trees = seeds.TREES[name]
    return Target(
        file, consume, tuple(t.encode() for t in trees), lambda below: mutate(trees[below(len(trees))], below)
    )


def _json(
    value: Any, file: str, consume: Callable[[Path], None], beside: tuple[tuple[str, bytes], ...] = (), *more: Any
) -> Target:
    values = (value, *more)
    return Target(
        file,
        consume,
        tuple(json.dumps(v).encode() for v in values),
        lambda below: mutate_json(values[below(len(values))], below),
        beside,
    )


_HEADERS = (seeds.SAFETENSORS, {**seeds.SAFETENSORS, "__metadata__": None})


def _broken_safetensors(below: Below) -> bytes:
    value = _HEADERS[below(len(_HEADERS))]
    good = json.dumps(value).encode()
    header = mutate_json(value, below) if below(4) else good
    tree = seeds.safetensors(header)
    return tree.encode() if header is not good and below(4) else mutate(tree, below)


_SHARDS = tuple((name, seeds.weights(name).encode()) for name in ("model-1.safetensors", "model-2.safetensors"))
_CONFIG = ("config.json", json.dumps(seeds.CONFIG).encode())
_INDEX = ("model.safetensors.index.json", json.dumps(seeds.INDEX).encode())

TARGETS = {
    "gguf": _tree("gguf", "model.gguf", consume_model),
    "gguf_tokenizer": _tree("gguf_tokenizer", "vocabulary.gguf", consume_tokenizer),
    "safetensors": Target(
        "model.safetensors",
        consume_safetensors,
        tuple(seeds.safetensors(json.dumps(header).encode()).encode() for header in _HEADERS),
        _broken_safetensors,
    ),
    "llama2c": _tree("llama2c", "model.bin", consume_model),
    "config_json": _json(seeds.CONFIG, "config.json", consume_model, (_INDEX, *_SHARDS), *seeds.CONFIGS[1:]),
    "index_json": _json(seeds.INDEX, "model.safetensors.index.json", consume_model, (_CONFIG, *_SHARDS)),
    "tokenizer_json": _json(
        seeds.TOKENIZER_JSON, "tokenizer.json", consume_tokenizer, (), seeds.TOKENIZER_JSON_LACKING
    ),
    "tokenizer_model": _tree("tokenizer_model", "tokenizer.model", consume_tokenizer),
    "tokenizer_bin": _tree("tokenizer_bin", "tokenizer.bin", consume_tokenizer),
    "tiktoken": _tree("tiktoken", "tokenizer.model", consume_ranks),
}


def check(target: Target, folder: Path, data: bytes) -> bool:
    """Give a parser a file; AssertionError if more than one clear error comes of it.

    Parameters
    ----------
    target : Target
    folder : Path
        Empty at the first call, and the same target's at every other.
    data : bytes

    Returns
    -------
    bool
        Whether the file was taken.
    """
    for name, content in target.beside:
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    (folder / target.file).write_bytes(data)
    message = None
    with Work() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.consume(folder if target.beside else folder / target.file)
        except (FormatError, UnsupportedModelError) as error:
            message = str(error)
    assert work.steps < LITTLE
    if message is None:
        return True
    assert str(folder) in message, message
    assert message.isprintable(), ascii(message)  # one line, and nothing that a terminal would obey
    assert len(message) < MAX_MESSAGE + 2 * len(str(folder)), f"{len(message)} characters"
    return False
