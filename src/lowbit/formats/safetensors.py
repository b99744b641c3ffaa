"""Reading safetensors: a JSON header that describes the tensors, and their bytes one behind the other.

Everything is checked before any tensor is touched: the tensors have to tile the file from the end of the header to the
last byte, so that none lies outside, overlaps another, or leaves room for hidden bytes. Layout facts: huggingface
safetensors `README.md` and `src/tensor.rs`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from typing import Any

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import TensorInfo
from lowbit.formats.files import named
from lowbit.formats.mapped import MappedFile
from lowbit.formats.strict_json import MAX_BYTES, parse_object

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per value of the types that can be sized; others (most of 8 bits and less per float, complex) are refused."""
MAX_TENSORS = 16384
MAX_DIMS = 8
MAX_NAME = 512
MAX_SIZE = 2**63 - 1


class SafetensorsFile(MappedFile):
    """An open safetensors file: named arrays, and nothing that says what they are.

    Attributes
    ----------
    tensors : mapping of str to TensorInfo
        `type` is the name of the safetensors type, such as ``BF16`` or ``U8``.

    Raises
    ------
    FormatError
        If the file breaks a rule of the format.
    UnsupportedModelError
        If a tensor has a type that is not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        with named(self.path):
            self.tensors: Mapping[str, TensorInfo] = self._parse(len(self._map))

    def _parse(self, size: int) -> dict[str, TensorInfo]:
        if size < 10:
            raise FormatError(f"truncated: {size} bytes hold no header")
        header_bytes = struct.unpack_from("<Q", self._map)[0]
        if header_bytes > MAX_BYTES:
            raise FormatError(f"claims a header of {header_bytes} bytes, limit {MAX_BYTES}")
        if 8 + header_bytes > size:
            raise FormatError(f"truncated: a header of {header_bytes} bytes in a file of {size}")
        header = parse_object(self._map[8 : 8 + header_bytes], "the header")
        metadata = header.pop("__metadata__", None)
        if metadata is None:  # as the safetensors library reads a null
            metadata = {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError("has __metadata__ that is no object of strings")
        if not 1 <= len(header) <= MAX_TENSORS:
            raise FormatError(f"has {len(header)} tensors, expected 1 to {MAX_TENSORS}")
        infos = sorted((_info(name, entry) for name, entry in header.items()), key=lambda info: info.offset)
        expected = 0
        for info in infos:
            if info.offset != expected:
                raise FormatError(f"tensor {info.name!r} begins at {info.offset}, expected {expected}")
            expected += info.nbytes
        start = 8 + header_bytes
        if start + expected != size:
            raise FormatError(f"is {size} bytes long, its header leads to {start + expected}")
        return {
            info.name: TensorInfo(info.name, info.type, info.shape, start + info.offset, info.nbytes) for info in infos
        }


def _info(name: str, entry: Any) -> TensorInfo:
    """Check one description; its offset counts from the end of the header."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise FormatError(f"has a tensor with an impossible name of {len(name)} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise FormatError(f"tensor {name!r} has a dtype that is no name")
    if not _whole_numbers(shape, 1) or len(shape) > MAX_DIMS:
        raise FormatError(f"tensor {name!r} has a shape that is none")
    if not _whole_numbers(offsets, 0) or len(offsets) != 2:
        raise FormatError(f"tensor {name!r} has data_offsets that are no pair of numbers")
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(f"tensor {name!r} is of type {dtype[:40]!r}; lowbit reads {', '.join(DTYPE_BYTES)}")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if nbytes > MAX_SIZE or offsets[1] - offsets[0] != nbytes:
        raise FormatError(f"tensor {name!r} takes {offsets[1] - offsets[0]} bytes, its shape leads to {nbytes}")
    return TensorInfo(name, dtype, tuple(shape), offsets[0], nbytes)


def _whole_numbers(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= MAX_SIZE for value in values)
