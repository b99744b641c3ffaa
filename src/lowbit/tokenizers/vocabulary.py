"""A SentencePiece vocabulary, wherever it came from, and its translation into SentencePiece's own model format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from ..errors import FormatError
from .base import MAX_TOKEN_BYTES, MAX_VOCAB_SIZE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens: the same numbers in SentencePiece and in GGUF."""

SPACE = "▁".encode()
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Specs:
    """How SentencePiece treats the text before it looks for pieces."""

    add_dummy_prefix: bool = True
    """Put one space before the text."""
    remove_extra_whitespaces: bool = False
    """Drop spaces at both ends, and join neighbouring ones."""
    escape_whitespaces: bool = True
    """Tokens write a space as U+2581."""


class Texts(Sequence[bytes]):
    """Some texts that cannot be changed, in one piece of memory: objects of their own take five times as much."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._joined = b"".join(texts)
        self._ends = np.cumsum([0, *map(len, texts)], dtype=np.int32 if len(self._joined) < 1 << 31 else np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self._joined[self._ends[i] : self._ends[i + 1]]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in order of their ids; made by `checked`, which is what makes it safe to use."""

    tokens: Sequence[bytes]
    scores: np.ndarray
    """float32, one per token; of two possible merges the higher score wins."""
    types: np.ndarray
    """uint8, one per token."""

    @classmethod
    def checked(cls, tokens: list[bytes], scores: np.ndarray, types: np.ndarray, path: str) -> Vocabulary:
        """Return a vocabulary whose every token has a sound score and type, or raise FormatError."""
        n = len(tokens)
        if not 0 < n <= MAX_VOCAB_SIZE:
            raise FormatError(f"{path}: the vocabulary has {n} tokens, not 1 to {MAX_VOCAB_SIZE}")
        for name, array in (("scores", scores), ("token types", types)):
            if array.shape != (n,):
                raise FormatError(f"{path}: the vocabulary has {n} tokens, but {array.size} {name}")
        if not np.isfinite(scores).all():
            raise FormatError(f"{path}: token {int(np.argmin(np.isfinite(scores)))} has a score that is not finite")
        if max(map(len, tokens)) > MAX_TOKEN_BYTES:
            raise FormatError(f"{path}: a token is longer than {MAX_TOKEN_BYTES} bytes")
        if types.min() < 0 or types.max() > BYTE:
            raise FormatError(f"{path}: a token has type {int(types.max() if types.max() > BYTE else types.min())}")
        types = types.astype(np.uint8)
        types[types == 0] = NORMAL  # "undefined", from converters that know no better
        for i in np.flatnonzero(types == BYTE).tolist():
            # Exactly two hex digits: "<0x-1>" would become an index of -1.
            if not looks_like_byte(tokens[i]):
                raise FormatError(
                    f"{path}: token {i} is a byte, but its text {tokens[i][:20]!r} is not <0x00> to <0xFF>"
                )
        return cls(tokens, scores.astype(np.float32), types)

    def with_types(self, ids: list[int], token_type: int) -> Vocabulary:
        """Return the vocabulary with some tokens of another type."""
        types = self.types.copy()
        types[ids] = token_type
        return replace(self, types=types)

    def ids_of(self, token_type: int) -> list[int]:
        """Return the ids of all tokens of a type."""
        ids: list[int] = np.flatnonzero(self.types == token_type).tolist()
        return ids

    def decoded(self, token: int, unk_surface: bytes, escape_whitespaces: bool) -> bytes:
        """Return the bytes that a token decodes to."""
        token_type, text = self.types[token], self.tokens[token]
        if token_type == CONTROL:
            return b""
        if token_type == UNKNOWN:
            return unk_surface
        if token_type == BYTE:
            return bytes([int(text[3:5], 16)])
        return text.replace(SPACE, b" ") if escape_whitespaces else text

    def encodable(self) -> tuple[list[bytes], np.ndarray]:
        """Return texts and types as SentencePiece wants them: unique, never empty, bytes all or none, one unknown.

        A token that text must never become turns into a control piece with a text that is not UTF-8: SentencePiece
        would give out a control piece for text that equals it, when it is one character or an ordinary piece too.
        Where texts repeat, the last token is used, as in llama.cpp. An unknown piece is appended if there is none.
        """
        texts, types = list(self.tokens), self.types.copy()
        hidden = set(self.ids_of(CONTROL)) | set(self.ids_of(UNKNOWN)[1:])
        byte_ids = self.ids_of(BYTE)
        for i in byte_ids:
            texts[i] = b"<0x%02X>" % int(texts[i][3:5], 16)
        last_byte = {texts[i]: i for i in byte_ids}
        if len(last_byte) < 256:
            last_byte = {}
        text_ids = np.flatnonzero(np.isin(types, (NORMAL, USER_DEFINED, UNUSED))).tolist()
        last_text = {texts[i]: i for i in text_ids}
        for name in last_byte.keys() & last_text.keys():
            del last_text[name]  # sentencepiece would give out the byte for it
        if len(last_byte) + len(last_text) < len(byte_ids) + len(text_ids):
            hidden.update({*byte_ids, *text_ids} - {*last_byte.values(), *last_text.values()})
        if b"" in texts or not _all_plain(texts):
            hidden.update(i for i, text in enumerate(texts) if not text or not _all_plain([text]))
        for i in hidden:
            texts[i], types[i] = b"\xff%d" % i, CONTROL
        unknown = np.flatnonzero(types == UNKNOWN).tolist()
        if unknown:
            texts[unknown[0]] = b"\xffunk"
        else:
            texts.append(b"\xffunk")
            types = np.append(types, np.uint8(UNKNOWN))
        return texts, types


def looks_like_byte(token: bytes) -> bool:
    """Tell whether a token's text is that of a byte token, ``<0x`` two hexadecimal digits ``>``."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def _all_plain(texts: list[bytes]) -> bool:
    # The separator is ASCII, so two broken halves cannot make a whole character across it.
    joined = b"\n".join(texts)
    if b"\0" in joined:
        return False
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return True
