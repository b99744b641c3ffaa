"""Text and JSONL files to documents; documents to windows of token ids, in an order that the seed alone decides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer

__all__ = ["Windows", "encode", "read_documents"]

# A document ends at an end-of-text mark, a form feed, or two empty lines; one empty line only parts paragraphs.
SEPARATOR = re.compile(r"<\|endoftext\|>|\f|\n[ \t]*\n[ \t]*\n\s*")


def read_documents(paths: Sequence[str | Path]) -> list[str]:
    """Read documents from text and JSONL files.

    Parameters
    ----------
    paths : files; one ending in ``.jsonl`` holds an object with a ``text`` field per line, any other is UTF-8 text
        whose documents are parted by ``<|endoftext|>``, a form feed or two empty lines. A path that is named twice
        counts twice.

    Returns
    -------
    list of str
        In the order of the files, stripped, none empty.

    Raises
    ------
    FormatError
        If a file is missing, not UTF-8 text, or holds no text.
    """
    documents: list[str] = []
    for path in map(Path, paths):
        found = list(_jsonl(path) if path.suffix == ".jsonl" else _text(path))
        if not found:
            raise FormatError(f"{path}: no text in it to train on")
        documents += found
    return documents


def _decoded(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text (byte {error.start}); is it a binary file?") from None
    if "\0" in text:
        raise FormatError(f"{path}: holds NUL characters; is it a binary file?")
    return text.replace("\r\n", "\n")


def _text(path: Path) -> Iterator[str]:
    return (part.strip() for part in SEPARATOR.split(_decoded(path)) if part.strip())


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(f'{path}: line {number} is not a JSON object with a string "text"') from None
        if text:
            yield text


def encode(documents: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Encode each document to uint16 token ids, the beginning-of-text token first."""
    return [np.array(tokenizer.encode(document, add_bos=True), np.uint16) for document in documents]


class Windows:
    """The endless training stream, cut into windows; window n is a function of the seed and n alone.

    Each epoch lays the documents end to end in a new order. A window holds `length` inputs and, one to the right,
    their targets, so neighbouring windows share one token.

    Parameters
    ----------
    documents : token ids of each document
    length : inputs per window, in tokens
    seed : of the order

    Raises
    ------
    FormatError
        If all documents together do not fill one window.
    """

    def __init__(self, documents: list[np.ndarray], length: int, seed: int) -> None:
        self.documents, self.length, self.seed = documents, length, seed
        self.tokens = sum(len(ids) for ids in documents)
        self.per_epoch = (self.tokens - 1) // length
        if self.per_epoch < 1:
            raise FormatError(f"the corpus is too short: {self.tokens} tokens, and one window is {length + 1}")
        self._epoch, self._stream = -1, np.empty(0, np.uint16)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return window `index` (any whole number from 0 on), int64, `length` + 1 tokens."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))
            self._stream, self._epoch = np.concatenate([self.documents[i] for i in order]), epoch
        start = place * self.length
        return self._stream[start : start + self.length + 1].astype(np.int64)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Return windows `first` to `first + count - 1`, int64 (count, length + 1)."""
        return np.stack([self[first + i] for i in range(count)])
