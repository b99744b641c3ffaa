"""Text and JSONL files to documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowbit.errors import FormatError

__all__ = ["read_documents"]

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
