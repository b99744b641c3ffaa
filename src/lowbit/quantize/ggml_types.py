"""The tensor types of ggml and its forks: one row each, and the one function that computes stored sizes.

The forks share the numbers from 36 on, so a number alone names no type: `FORK_NUMBERS` holds each reading, and the
GGUF reader takes the one whose sizes tile the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit.errors import FormatError, UnsupportedModelError

INT64_MAX = 2**63 - 1
MAX_DIMS = 4


@dataclass(frozen=True)
class GGMLType:
    """How a tensor of one type is cut into blocks."""

    name: str
    number: int
    """Number in a GGUF file; -1 for a type that no GGUF file holds."""
    block_elements: int
    """Values per block; a row holds a whole number of blocks."""
    block_bytes: int
    """Stored bytes per block; 0 for types whose size the file alone does not tell."""
    tail_bytes: int = 0
    """Stored bytes after the last block of the tensor."""


_ROWS = (
    GGMLType("F32", 0, 1, 4),
    GGMLType("F16", 1, 1, 2),
    GGMLType("Q4_0", 2, 32, 18),
    GGMLType("Q4_1", 3, 32, 20),
    GGMLType("Q5_0", 6, 32, 22),
    GGMLType("Q5_1", 7, 32, 24),
    GGMLType("Q8_0", 8, 32, 34),
    GGMLType("Q2_K", 10, 256, 84),
    GGMLType("Q3_K", 11, 256, 110),
    GGMLType("Q4_K", 12, 256, 144),
    GGMLType("Q5_K", 13, 256, 176),
    GGMLType("Q6_K", 14, 256, 210),
    GGMLType("Q8_K", 15, 256, 292),
    GGMLType("IQ2_XXS", 16, 256, 66),
    GGMLType("IQ2_XS", 17, 256, 74),
    GGMLType("IQ3_XXS", 18, 256, 98),
    GGMLType("IQ1_S", 19, 256, 50),
    GGMLType("IQ4_NL", 20, 32, 18),
    GGMLType("IQ3_S", 21, 256, 110),
    GGMLType("IQ2_S", 22, 256, 82),
    GGMLType("IQ4_XS", 23, 256, 136),
    GGMLType("I8", 24, 1, 1),
    GGMLType("I16", 25, 1, 2),
    GGMLType("I32", 26, 1, 4),
    GGMLType("I64", 27, 1, 8),
    GGMLType("F64", 28, 1, 8),
    GGMLType("IQ1_M", 29, 256, 56),
    GGMLType("BF16", 30, 1, 2),
    GGMLType("TQ1_0", 34, 256, 54),
    GGMLType("TQ2_0", 35, 256, 66),
    # bitnet.cpp: 32 bytes hold 128 codes; behind the last one stand a float32 scale and 28 bytes of padding.
    GGMLType("I2_S", 36, 128, 32, tail_bytes=32),
    GGMLType("MXFP4", 39, 32, 17),
    GGMLType("NVFP4", 40, 64, 36),
    GGMLType("Q1_0", 41, 128, 18),
    GGMLType("Q2_0", 42, 64, 18),
    # PrismML's Q2_0 with groups of 128. Its first files gave it the number 42 too.
    GGMLType("PQ2_0", 142, 128, 34),
    GGMLType("PTQ1_0", 143, 128, 28),
    # Three of four weights are not 0. Tencent's files give it the number 42.
    GGMLType("STQ1_0", 43, 256, 42),
    # Repacked layouts that llama.cpp once wrote and has removed.
    GGMLType("IQ4_NL_4_4", 36, 32, 18),
    GGMLType("IQ4_NL_4_8", 37, 32, 18),
    GGMLType("IQ4_NL_8_8", 38, 32, 18),
    # bitnet.cpp types that cannot be sized or decoded from the file alone.
    GGMLType("I8_S", 37, 1, 0),
    GGMLType("TL1", 38, 1, 0),
    GGMLType("TL2", 39, 1, 0),
    # llama2.c version 2: all int8 values of the tensor, then one float32 scale per group of flat values.
    # The group size is in the file's header (metadata `llama2c.group_size`).
    GGMLType("Q8_L2C", -1, 1, 1),
)

TYPES = {row.name: row for row in _ROWS}

_NOT_HERE = {
    "IQ4_NL_4_4": "was removed from llama.cpp",
    "IQ4_NL_4_8": "was removed from llama.cpp",
    "IQ4_NL_8_8": "was removed from llama.cpp",
    "I8_S": "is an activation format of bitnet.cpp and has no stored size",
    "TL1": "is permuted by tile sizes that are fixed when bitnet.cpp is built and are not in the file",
    "TL2": "is permuted by tile sizes that are fixed when bitnet.cpp is built and are not in the file",
}
_REMOVED_NUMBERS = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}

DECODABLE = frozenset(
    {
        *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4"),
        *("TQ1_0", "TQ2_0", "I2_S", "Q1_0", "Q2_0", "PQ2_0", "PTQ1_0", "STQ1_0", "Q8_L2C"),
    }
)
"""Types whose values `lowbit.formats.blocks` can decode."""

FORK_NUMBERS = {
    "bitnet.cpp": {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2", 42: "TL2"},
    "llama.cpp": {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 42: "Q2_0"},
    "PrismML": {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 42: "PQ2_0"},
    "Tencent": {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 42: "STQ1_0"},
}
"""What the numbers that the forks gave away twice mean in each of them. bitnet.cpp used 39 for TL2 until it followed
llama.cpp, and 42 since; PrismML's first files used 42 for groups of 128 where llama.cpp's have 64, and Tencent's use it
for STQ1_0. Larger blocks come first, so that no tensor at the end of a file is read as one that ends before it."""

_CONTESTED = frozenset(FORK_NUMBERS["llama.cpp"])
_BY_NUMBER = {row.number: row for row in _ROWS if row.number >= 0 and row.number not in _CONTESTED}


def type_of(name: str) -> GGMLType:
    """Look a type up by name.

    Raises
    ------
    UnsupportedModelError
        If there is no such type.
    """
    try:
        return TYPES[name]
    except KeyError:
        raise UnsupportedModelError(f"unknown tensor type {name!r}") from None


def type_from_number(number: int, fork: str) -> GGMLType:
    """Name the type that a number in a GGUF file stands for.

    Parameters
    ----------
    number : int
    fork : str
        Key of `FORK_NUMBERS`: whose numbering the file follows.

    Raises
    ------
    FormatError
        If no fork could have written the number.
    UnsupportedModelError
        If the type is unknown or removed.
    """
    if number in _CONTESTED:
        return TYPES[FORK_NUMBERS[fork][number]]
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    if number in _REMOVED_NUMBERS:
        raise UnsupportedModelError(f"type {_REMOVED_NUMBERS[number]} ({number}) was removed from llama.cpp")
    # The forks number their own types up to a few hundred; beyond that the field is not a type.
    if not 0 <= number < 1024:
        raise FormatError(f"type number {number} is out of range")
    raise UnsupportedModelError(f"unknown type number {number}")


def refuse_unreadable(kind: GGMLType) -> None:
    """Raise UnsupportedModelError, with the reason, for types that are known by name only."""
    if kind.name in _NOT_HERE:
        raise UnsupportedModelError(f"type {kind.name} ({kind.number}) {_NOT_HERE[kind.name]}")


def tensor_nbytes(kind: str | GGMLType, shape: Sequence[int], group_size: int | None = None) -> int:
    """Compute the stored size of a tensor; nothing else in lowbit does.

    Parameters
    ----------
    kind : str or GGMLType
    shape : sequence of int
        Row-major, slowest dimension first.
    group_size : int, optional
        Values per scale; needed for, and only for, ``Q8_L2C``.

    Returns
    -------
    int
        Size in bytes, without padding; exact, since Python integers do not overflow.

    Raises
    ------
    FormatError
        If the shape is none, or rows do not hold whole blocks.
    UnsupportedModelError
        If the type is unknown, or its size is not in the file.
    """
    kind = type_of(kind) if isinstance(kind, str) else kind
    if not 1 <= len(shape) <= MAX_DIMS:
        raise FormatError(f"has {len(shape)} dimensions, expected 1 to {MAX_DIMS}")
    if min(shape) < 1:
        raise FormatError(f"has a dimension below 1: {tuple(shape)}")
    n_elements = math.prod(int(n) for n in shape)
    if n_elements > INT64_MAX:
        raise FormatError(f"has too many elements: {tuple(shape)}")
    if kind.block_bytes == 0:
        refuse_unreadable(kind)
    if shape[-1] % kind.block_elements:
        raise FormatError(
            f"rows of {shape[-1]} values are no multiple of the {kind.name} block of {kind.block_elements}"
        )
    if kind.name == "Q8_L2C":
        if group_size is None or group_size < 1 or n_elements % group_size:
            raise FormatError(f"{n_elements} values cannot be cut into groups of {group_size}")
        return n_elements + n_elements // group_size * 4
    return n_elements // kind.block_elements * kind.block_bytes + kind.tail_bytes
