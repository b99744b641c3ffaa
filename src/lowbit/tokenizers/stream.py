"""Text that arrives token by token: whole characters only, and nothing that may become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Container, Mapping, Sequence
from typing import Protocol

# Python's own "replace" writes one U+FFFD for several bytes of a broken character; SentencePiece writes one each.
EACH_BYTE = "lowbit.replace-each-byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


class Bytes(Protocol):
    """What a tokenizer is here (`lowbit.tokenizers.Tokenizer`)."""

    @property
    def control_ids(self) -> Container[int]:
        """Tokens that have no text."""

    def token_bytes(self, token: int, first: bool = False) -> bytes:
        """Return the bytes a token stands for."""


class StreamDecoder:
    """Decode one token at a time.

    What all `push` calls and `flush` return, joined, is what the tokenizer's `decode` returns for all the ids.

    Parameters
    ----------
    tokenizer : Tokenizer
    shown : mapping of int to bytes, optional
        Control tokens that have a text here. If there is such a mapping, a space at the beginning is no exception.
    first : bool
        Whether the tokens begin a text; those that go on with one keep the space before the first of them.
    """

    def __init__(self, tokenizer: Bytes, shown: Mapping[int, bytes] | None = None, first: bool = True) -> None:
        self._tokenizer, self._shown = tokenizer, shown or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(EACH_BYTE)
        self._first = first and shown is None

    def push(self, token: int) -> str:
        """Take a token and return the characters that are complete with it."""
        data = self._shown.get(token) or self._tokenizer.token_bytes(token, self._first)
        self._first = self._first and token in self._tokenizer.control_ids
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Return what is left of an unfinished character, one U+FFFD per byte."""
        return self._utf8.decode(b"", final=True)


class StopBuffer:
    """Cut text at the first stop string to be completed, however the text is split into pieces.

    Parameters
    ----------
    stops : sequence of str
        Non-empty strings; may be no strings at all.

    Attributes
    ----------
    met : str
        The stop string that was met.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        if isinstance(stops, str) or not all(self._stops):
            raise ValueError(f"stops must be a sequence of non-empty strings, not {stops!r}")
        self._longest = max(map(len, self._stops), default=0)
        self._held = self.met = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take text; return what can be shown by now, and whether a stop string was met.

        The end of the text is held back as long as it may be the beginning of a stop string.
        """
        if self.met:
            return "", True
        text = self._held + text
        # (end, start) of each stop's first place; of those that end together the longest one counts.
        found = min(((at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self._held, self.met = "", text[found[1] : found[0]]
            return text[: found[1]], True
        for size in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size], False
        self._held = ""
        return text, False

    def flush(self) -> str:
        """Return the text still held back, once no more will come."""
        held, self._held = self._held, ""
        return held
