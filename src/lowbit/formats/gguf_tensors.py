"""The tensor descriptions of a GGUF file: parsed, sized, and laid one behind the other inside the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import gguf_spec as spec
from lowbit.formats.base import TensorInfo
from lowbit.formats.gguf_cursor import Cursor, as_text
from lowbit.quantize.ggml_types import FORK_NUMBERS, GGMLType, refuse_unreadable, tensor_nbytes, type_from_number

MAX_NAME_BYTES = 63
"""ggml keeps tensor names in 64 bytes with a terminator."""


@dataclass(frozen=True)
class Entry:
    """A tensor description as it stands in the file."""

    name: str
    number: int
    shape: tuple[int, ...]
    offset: int


_TYPE_AND_OFFSET = struct.Struct("<iQ")
_DIMENSIONS = {n: struct.Struct(f"<{n}q") for n in (1, 2, 3, 4)}


def parse_entries(cursor: Cursor, n_tensors: int) -> list[Entry]:
    """Read the descriptions of all tensors, in file order."""
    entries: list[Entry] = []
    seen: set[str] = set()
    for _ in range(n_tensors):
        name = as_text(cursor.string(MAX_NAME_BYTES, "a tensor name"), "a tensor name")
        if not name or name in seen or not name.isprintable():
            raise FormatError(f"has an empty or unprintable tensor name, or two tensors named {name!r}")
        seen.add(name)
        n_dims = cursor.number(4, f"tensor {name!r}")
        if n_dims not in _DIMENSIONS:
            raise FormatError(f"tensor {name!r} has {n_dims} dimensions, expected 1 to 4")
        # The file counts the fastest dimension first.
        shape = cursor.numbers(_DIMENSIONS[n_dims], f"tensor {name!r}")[::-1]
        number, offset = cursor.numbers(_TYPE_AND_OFFSET, f"tensor {name!r}")
        entries.append(Entry(name, number, shape, offset))
    return entries


def lay_out(
    entries: list[Entry], data_start: int, alignment: int, file_size: int, architecture: str
) -> dict[str, TensorInfo]:
    """Give each tensor its place, reading the type numbers as the fork does whose sizes tile the file."""
    contested = any(entry.number in FORK_NUMBERS["llama.cpp"] for entry in entries)
    errors: list[FormatError | UnsupportedModelError] = []
    for fork in FORK_NUMBERS if contested else ("llama.cpp",):
        try:
            kinds = [_kind(entry, fork) for entry in entries]
            tensors, end = _walk(entries, kinds, data_start, alignment, file_size)
            # The end of the last tensor has no successor to confirm it. Only bitnet.cpp writes its own architectures,
            # so there the numbers are beyond doubt; elsewhere the file must end where this reading says.
            if (
                fork == "bitnet.cpp"
                and not architecture.startswith("bitnet")
                and spec.align_up(end, alignment) < file_size
            ):
                raise FormatError(f"has {file_size - end} bytes after its last tensor")
        except (FormatError, UnsupportedModelError) as error:
            errors.append(error)
            continue
        for entry, kind in zip(entries, kinds, strict=True):
            try:
                refuse_unreadable(kind)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"tensor {entry.name!r}: {error}") from None
        return tensors
    # No reading fits. llama.cpp never wrote 36 to 38 to files that are still about, so those speak for bitnet.cpp.
    if not contested or architecture.startswith("bitnet") or any(entry.number in (36, 37, 38) for entry in entries):
        raise errors[0]
    raise FormatError(f"{errors[-1]}; or else {errors[0]}")


def _kind(entry: Entry, fork: str) -> GGMLType:
    try:
        return type_from_number(entry.number, fork)
    except (FormatError, UnsupportedModelError) as error:
        raise type(error)(f"tensor {entry.name!r}: {error}") from None


def _walk(
    entries: list[Entry], kinds: list[GGMLType], data_start: int, alignment: int, file_size: int
) -> tuple[dict[str, TensorInfo], int]:
    """Check that the tensors lie one behind the other inside the file; return them and the end of the last."""
    tensors: dict[str, TensorInfo] = {}
    expected, end = 0, data_start
    for entry, kind in zip(entries, kinds, strict=True):
        try:
            nbytes = tensor_nbytes(kind, entry.shape)
        except (FormatError, UnsupportedModelError) as error:
            raise type(error)(f"tensor {entry.name!r}: {error}") from None
        if entry.offset != expected:
            raise FormatError(f"tensor {entry.name!r} is at offset {entry.offset}, expected {expected}")
        start = data_start + expected
        end = start + nbytes
        if end > file_size:
            raise FormatError(f"truncated: tensor {entry.name!r} ends at {end}, the file at {file_size}")
        tensors[entry.name] = TensorInfo(entry.name, kind.name, entry.shape, start, nbytes)
        expected = spec.align_up(expected + nbytes, alignment)
    return tensors, end
