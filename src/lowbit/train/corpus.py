"""Text and JSONL files to documents; documents to windows of token ids, in an order that the seed alone decides."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..chat.templates import TEMPLATES, check_messages, render
from ..errors import FormatError
from ..formats.files import reading

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer

Document = str | tuple[tuple[str, str], ...]
"""A text; or a conversation, (role, content) each, that ends with the answer to learn."""
CHAT_TEMPLATE = "chatml"
"""How conversations are written; see `lowbit.chat`."""
MESSAGE = "<|im_start|>"
"""Where a message begins in it; the answer is the last one."""
IGNORED = -100
"""A target that does not count: torch's own mark."""
COMMON = 0.07
"""A token in a larger share of the requests is their wording, not what is asked for."""
OPEN_ROWS = 256
"""Rows that are still looked at for room while an epoch is packed."""

# A document ends at an end-of-text mark, a form feed, or two empty lines; one empty line only parts paragraphs.
SEPARATOR = re.compile(r"<\|endoftext\|>|\f|\n[ \t]*\n[ \t]*\n\s*")


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Read documents from text and JSONL files.

    Parameters
    ----------
    paths : files; one ending in ``.jsonl`` holds an object per line, with a ``text``, or with ``messages`` (``role``
        and ``content``) whose last one is the answer to learn. Any other is UTF-8 text whose documents are parted by
        ``<|endoftext|>``, a form feed or two empty lines. A path that is named twice counts twice.

    Returns
    -------
    list of documents
        In the order of the files, stripped, none empty.

    Raises
    ------
    FormatError
        If a file is missing, not UTF-8 text, or holds no text.
    """
    documents: list[Document] = []
    for path in map(Path, paths):
        found = list(_jsonl(path) if path.suffix == ".jsonl" else _text(path))
        if not found:
            raise FormatError(f"{path}: there is no text in it")
        documents += found
    return documents


def _decoded(path: Path) -> str:
    try:
        with reading(str(path)):
            text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text (byte {error.start}); is it a binary file?") from None
    if "\0" in text:
        raise FormatError(f"{path}: holds NUL characters; is it a binary file?")
    return text.replace("\r\n", "\n")


def _text(path: Path) -> Iterator[str]:
    return (part.strip() for part in SEPARATOR.split(_decoded(path)) if part.strip())


def _jsonl(path: Path) -> Iterator[Document]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            document: Document = _messages(entry["messages"]) if "messages" in entry else entry["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f'{path}: line {number} is not a JSON object with a string "text", or "messages" that end in an answer'
            ) from None
        if document:
            yield document


def _messages(given: Any) -> tuple[tuple[str, str], ...]:
    messages = check_messages(given)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise ValueError("no answer")
    return tuple((message["role"], message["content"].strip()) for message in messages)


def encode(documents: Sequence[Document], tokenizer: Tokenizer, end: bool = True) -> list[np.ndarray]:
    """Encode documents to uint16 token ids, first the token that begins a text, and last, if `end`, that of its end."""
    return [np.array(_ids(document, tokenizer, end), np.uint16) for document in documents]


def _ids(document: Document, tokenizer: Tokenizer, end: bool) -> list[int]:
    if isinstance(document, str):
        return tokenizer.encode(document, add_bos=True, add_eos=end)
    *before, (_, answer) = document
    messages = [{"role": role, "content": content} for role, content in before]
    return [
        *render(messages, {}, tokenizer, TEMPLATES[CHAT_TEMPLATE]),
        *tokenizer.encode_template(answer, {}),
        *([tokenizer.eos_id] if end and tokenizer.eos_id is not None else []),
    ]


def asked_for(documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Mark what an answer was asked for: the first time in it of each token that its request has and few others have.

    Returns
    -------
    list of ndarray
        Of bool, as long as the documents; all False in a document without messages.
    """
    begin = tokenizer.encode(MESSAGE, add_bos=False, parse_special=True)
    known = len(begin) == 1  # or the vocabulary has no messages
    answers = [max(np.flatnonzero(ids == begin[0]).tolist(), default=0) if known else 0 for ids in documents]
    requests = [np.unique(ids[:at]) for ids, at in zip(documents, answers, strict=True)]
    count = np.bincount(np.concatenate([np.empty(0, np.int64), *requests]).astype(np.int64), minlength=1)
    rare = count <= COMMON * np.count_nonzero(answers)
    marks = []
    for ids, at, request in zip(documents, answers, requests, strict=True):
        mark = np.zeros(len(ids), bool)
        found, places = np.unique(ids[at:], return_index=True)
        mark[at + places[np.isin(found, request[rare[request]])]] = True
        marks.append(mark)
    return marks


def plain_text(document: Document) -> str:
    """Return what a document says, without roles."""
    return document if isinstance(document, str) else "\n".join(text for _, text in document)


def texts(document: Document) -> list[str]:
    """Return the parts of a document between special tokens, as the vocabulary is to know them."""
    return [document] if isinstance(document, str) else [f"{role}\n{text}" for role, text in document]


class Batch(NamedTuple):
    """Rows of documents, each (rows, length)."""

    tokens: np.ndarray
    """int64"""
    targets: np.ndarray
    """int64: the token that follows, or `IGNORED` where nothing does."""
    first: np.ndarray
    """int32: place of the first token of the same document in the row."""
    asked: np.ndarray
    """bool: whether the target is marked."""


class Rows:
    """The endless training stream: whole documents, packed into rows; row n is a function of the seed and n alone.

    Each epoch takes the documents in a new order and puts each into the fullest of the open rows that has room for it.
    A document longer than a row is cut. Neighbours in a row do not see each other.

    Parameters
    ----------
    documents : token ids of each document
    length : tokens per row
    seed : of the order
    weights : how often each document comes in an epoch, 1 if not given; 0.5 is every other epoch
    marks : of the tokens of each document, as `asked_for` makes them; none if not given

    Raises
    ------
    FormatError
        If there is nothing to learn from.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        length: int,
        seed: int,
        weights: Sequence[float] | None = None,
        marks: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.length, self.seed = length, seed
        # One token overlaps: it is the last target of the one part and the first token of the next.
        self.parts = [ids[i : i + length + 1] for ids in documents for i in range(0, len(ids) - 1, length)]
        marks = [np.zeros(len(ids), bool) for ids in documents] if marks is None else marks
        self._marks = [m[i : i + length + 1] for m in marks for i in range(0, len(m) - 1, length)]
        given = np.ones(len(documents)) if weights is None else np.asarray(weights, float)
        per_document = [len(range(0, len(ids) - 1, length)) for ids in documents]
        self.weights = np.repeat(given, per_document)
        if not self.parts or not self.weights.any():
            raise FormatError("the corpus holds nothing to learn from")
        self.tokens = round(float(sum(w * (len(part) - 1) for w, part in zip(self.weights, self.parts, strict=True))))
        """Of an epoch, on average."""
        # Where in the cycle of its weight each part begins, so that rare ones do not all come in the same epoch.
        self._phase = np.random.default_rng((seed, 1 << 32)).random(len(self.parts))
        self._ends = [0]  # of the epochs seen so far, in rows
        self._epoch, self._rows = -1, list[list[int]]()

    def epoch_of(self, index: int) -> float:
        """Return how many epochs have passed before row `index`."""
        epoch = self._find(index)
        return epoch + (index - self._ends[epoch]) / (self._ends[epoch + 1] - self._ends[epoch])

    def batch(self, first: int, count: int) -> Batch:
        """Return rows `first` to `first + count - 1`."""
        tokens = np.zeros((count, self.length), np.int64)
        targets = np.full((count, self.length), IGNORED, np.int64)
        start = np.tile(np.arange(self.length, dtype=np.int32), (count, 1))  # what fills a row sees itself
        asked = np.zeros((count, self.length), bool)
        for row in range(count):
            epoch = self._find(first + row)
            self._pack(epoch)
            place = 0
            for part in self._rows[first + row - self._ends[epoch]]:
                ids = self.parts[part]
                end = place + len(ids) - 1
                tokens[row, place:end], targets[row, place:end], start[row, place:end] = ids[:-1], ids[1:], place
                asked[row, place:end] = self._marks[part][1:]
                place = end
        return Batch(tokens, targets, start, asked)

    def _find(self, index: int) -> int:
        """Return the epoch of a row."""
        while self._ends[-1] <= index:
            self._pack(len(self._ends) - 1)
        return bisect_right(self._ends, index) - 1

    def _pack(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        times = np.floor((epoch + 1) * self.weights + self._phase) - np.floor(epoch * self.weights + self._phase)
        order = np.random.default_rng((self.seed, epoch)).permutation(
            np.repeat(np.arange(len(self.parts)), times.astype(int))
        )
        rows: list[list[int]] = []
        open_rows: list[tuple[int, int]] = []  # (room, row), ascending
        for part in order.tolist():
            size = len(self.parts[part]) - 1
            at = bisect_left(open_rows, (size, -1))
            if at < len(open_rows):
                room, row = open_rows.pop(at)
                rows[row].append(part)
            else:
                room, row = self.length, len(rows)
                rows.append([part])
            if room > size:
                insort(open_rows, (room - size, row))
                if len(open_rows) > OPEN_ROWS:
                    del open_rows[0]
        self._epoch, self._rows = epoch, rows or [[]]
        if epoch + 1 == len(self._ends):
            self._ends.append(self._ends[-1] + len(self._rows))
