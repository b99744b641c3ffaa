"""Reading GGUF, versions 2 and 3, from files that nobody vouches for.

The parse is one pass over the mapped header that checks everything and copies almost nothing: every length is compared
with the bytes that are left before it is used, numbers are Python integers, and strings and arrays stay in the file
until somebody asks for them. Layout facts: llama.cpp `ggml/include/gguf.h`, `ggml/src/gguf.cpp`.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import gguf_spec as spec
from lowbit.formats.base import TensorInfo
from lowbit.formats.files import named
from lowbit.formats.gguf_cursor import U64, Cursor, as_text, shown
from lowbit.formats.gguf_tensors import lay_out, parse_entries
from lowbit.formats.mapped import MappedFile

# Limits far above every real model, so that no header can ask for much work or memory.
MAX_KEYS = 8192
"""Real files hold tens of keys."""
MAX_TENSORS = 16384
"""The largest models have about two thousand tensors."""
MAX_KEY_BYTES = 65535
MAX_ARCHITECTURE = 64
MAX_STRING_BYTES = 64 << 20
"""Chat templates and embedded tokenizer files: a few MiB."""
MAX_STRINGS = 1 << 20
"""Strings in one array; the largest vocabularies have about 2**18 tokens and 2**19 merges."""
MAX_ALL_STRINGS = 1 << 21
"""Strings in all arrays together, so that walking them stays well under a second."""
MAX_ARRAY = 1 << 30
"""Numbers in one array, as in llama.cpp."""


@dataclass(frozen=True)
class _Deferred:
    """A checked string or array that is still in the file."""

    type: int
    offset: int
    """First byte of the elements; for one string, of its text."""
    count: int
    """Elements; for one string, bytes."""
    is_array: bool


class _Metadata(Mapping[str, Any]):
    """Values by key; strings and arrays are copied out of the map when they are asked for.

    Arrays are copied each time: a vocabulary as Python objects takes several times its bytes in the file.
    """

    def __init__(self, buffer: mmap.mmap, values: dict[str, Any]) -> None:
        self._buffer = buffer
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Deferred):
            value, deferred = self._materialise(value), value
            if not deferred.is_array:
                self._values[key] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def _materialise(self, value: _Deferred) -> Any:
        buffer, position = self._buffer, value.offset
        if not value.is_array:
            return str(buffer[position : position + value.count], "utf-8")
        if value.type != spec.STRING:
            dtype = spec.DTYPES[value.type]
            if dtype == np.bool_:
                return np.frombuffer(buffer, np.uint8, value.count, position) != 0
            return np.frombuffer(buffer, dtype, value.count, position).copy()
        strings = []
        unpack = U64.unpack_from
        for _ in range(value.count):
            start = position + 8
            position = start + unpack(buffer, position)[0]
            strings.append(buffer[start:position])
        return strings


class GGUFFile(MappedFile):
    """An open GGUF file (`lowbit.formats.base.ModelFile`).

    Parameters
    ----------
    path : str or os.PathLike
    part_of : str, optional
        Architecture of the model that this file is a further part of; such files state none themselves.

    Attributes
    ----------
    parts : int
        Files that the model consists of; 1 for most. `lowbit.formats.gguf_split` puts several together.
    metadata_types : dict of str to str
        Name of each value's stored type (``u32``, ``string``, ...); for arrays, that of the elements. With it a
        file's metadata can be written again as it was.

    Raises
    ------
    FormatError
        If the file breaks a rule of the format.
    UnsupportedModelError
        If it is sound, but of another version, or holds a tensor type that no file alone can describe.
    """

    format = "gguf"

    def __init__(self, path: str | os.PathLike[str], part_of: str | None = None) -> None:
        super().__init__(path)
        self._part_of = part_of
        self.metadata_types: dict[str, str] = {}
        with named(self.path):
            self._parse(Cursor(self._map, 0))

    def _parse(self, cursor: Cursor) -> None:
        cursor.need(24, "the header")
        magic, version, n_tensors, n_keys = struct.unpack_from("<4sIqq", cursor.buffer, 0)
        cursor.position = 24
        if magic != spec.MAGIC:
            raise FormatError("is no GGUF file")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedModelError("is a big-endian GGUF file")
        if version not in (2, 3):
            raise UnsupportedModelError(f"is GGUF version {version}; lowbit reads 2 and 3")
        # The smallest entries: a key of one byte with a one-byte value, a tensor of one dimension and a one-byte name.
        for what, count, limit, smallest in (("keys", n_keys, MAX_KEYS, 14), ("tensors", n_tensors, MAX_TENSORS, 33)):
            if not 0 <= count <= limit:
                raise FormatError(f"claims {count} {what}, limit {limit}")
            cursor.need(count * smallest, f"a header of {count} {what}")

        self.metadata: Mapping[str, Any] = _Metadata(cursor.buffer, self._parse_metadata(cursor, n_keys))
        self.architecture = self._typed("general.architecture", "string", self._part_of)
        if not self.architecture or len(self.architecture) > MAX_ARCHITECTURE or not self.architecture.isprintable():
            raise FormatError("has no general.architecture, or one that is no name")
        alignment = self._typed("general.alignment", "u32", spec.DEFAULT_ALIGNMENT)
        if not 0 < alignment <= spec.MAX_ALIGNMENT or alignment & (alignment - 1):
            raise FormatError(f"general.alignment is {alignment}, no power of two up to {spec.MAX_ALIGNMENT}")
        parts = self.metadata.get("split.count", 1)
        if not isinstance(parts, int) or isinstance(parts, bool) or parts < 0:
            raise FormatError("split.count is no number of files")
        self.parts = parts

        entries = parse_entries(cursor, n_tensors)
        data_start = spec.align_up(cursor.position, alignment)
        self.tensors: Mapping[str, TensorInfo] = lay_out(entries, data_start, alignment, cursor.size, self.architecture)

    def _typed(self, key: str, type_name: str, default: Any) -> Any:
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        if self.metadata_types[key] != type_name or isinstance(value, (list, np.ndarray)):
            raise FormatError(f"{key} must be of type {type_name}")
        return value

    def _parse_metadata(self, cursor: Cursor, n_keys: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        strings_left = MAX_ALL_STRINGS
        for _ in range(n_keys):
            key = as_text(cursor.string(MAX_KEY_BYTES, "a key"), "a key")
            quoted = shown(key)
            if not key:
                raise FormatError("has an empty key")
            if key in values:
                raise FormatError(f"has the key {quoted} twice")
            value_type = cursor.number(5, f"the type of {quoted}")
            element_type = value_type
            if value_type == spec.ARRAY:
                element_type = cursor.number(5, f"the element type of {quoted}")
            if element_type == spec.ARRAY or element_type not in spec.NAMES:
                raise FormatError(f"{quoted} has an unknown value type {element_type}")
            self.metadata_types[key] = spec.NAMES[element_type]

            if value_type == spec.ARRAY:
                count = cursor.number(10, f"the length of {quoted}")
                is_text = element_type == spec.STRING
                if is_text:
                    limit = min(MAX_STRINGS, strings_left)
                    smallest = 8
                else:
                    limit, smallest = MAX_ARRAY, spec.DTYPES[element_type].itemsize
                if count > limit:
                    raise FormatError(f"{quoted} has {count} elements, limit {limit}")
                cursor.need(count * smallest, f"{quoted} of {count} elements")
                values[key] = _Deferred(element_type, cursor.position, count, is_array=True)
                if is_text:
                    strings_left -= count
                    cursor.skip_strings(count, quoted)
                else:
                    cursor.position += count * smallest
            elif value_type == spec.STRING:
                raw = cursor.string(MAX_STRING_BYTES, quoted)
                as_text(raw, quoted)
                values[key] = _Deferred(spec.STRING, cursor.position - len(raw), len(raw), is_array=False)
            else:
                values[key] = cursor.number(value_type, quoted)
        return values
