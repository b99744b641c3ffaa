"""A position in a mapped GGUF header that cannot leave the file, whatever lengths the file claims."""

from __future__ import annotations

import mmap
import struct
from typing import Any

from lowbit.errors import FormatError
from lowbit.formats import gguf_spec as spec

MAX_TOKEN_BYTES = 1 << 20
"""Strings in arrays: vocabulary entries and merges."""

U64 = struct.Struct("<Q")


class Cursor:
    """A position in the map that never passes the end: every read asks `need` first."""

    def __init__(self, buffer: mmap.mmap, position: int) -> None:
        self.buffer = buffer
        self.position = position
        self.size = len(buffer)

    def need(self, n_bytes: int, what: str) -> None:
        """Raise FormatError if fewer bytes are left."""
        if n_bytes > self.size - self.position:
            raise FormatError(f"truncated: {what} needs {n_bytes} bytes, {self.size - self.position} are left")

    def number(self, value_type: int, what: str) -> Any:
        """Read a number of one of the metadata value types."""
        scalar = spec.SCALARS[value_type]
        self.need(scalar.size, what)
        (value,) = scalar.unpack_from(self.buffer, self.position)
        self.position += scalar.size
        return value

    def numbers(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        """Read several integers."""
        self.need(layout.size, what)
        values: tuple[int, ...] = layout.unpack_from(self.buffer, self.position)
        self.position += layout.size
        return values

    def string(self, limit: int, what: str) -> bytes:
        """Read a string of at most `limit` bytes."""
        length = self.number(spec.NUMBERS["u64"], what)
        if length > limit:
            raise FormatError(f"{what} of {length} bytes is longer than {limit}")
        self.need(length, what)
        start = self.position
        self.position += length
        return self.buffer[start : self.position]

    def skip_strings(self, count: int, what: str) -> None:
        """Check an array of strings and pass it, copying nothing; large vocabularies spend their time here."""
        position, size, unpack = self.position, self.size, U64.unpack_from
        last = size - 8
        for _ in range(count):
            if position > last:
                raise FormatError(f"truncated: {what} runs past the end of the file")
            length = unpack(self.buffer, position)[0]
            if length > MAX_TOKEN_BYTES:
                raise FormatError(f"{what} holds a string of {length} bytes, more than {MAX_TOKEN_BYTES}")
            position += 8 + length
        if position > size:
            raise FormatError(f"truncated: {what} runs past the end of the file")
        self.position = position


def as_text(raw: bytes, what: str) -> str:
    """Decode UTF-8, or raise FormatError."""
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what} is not valid UTF-8") from None


def shown(name: str) -> str:
    """Quote a name from a file for an error message: one line, of bounded length."""
    return f"{name[:80]!r}"
