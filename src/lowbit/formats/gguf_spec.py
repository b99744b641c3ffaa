"""The constants of GGUF that its reader and its writer share.

Facts from llama.cpp `ggml/include/gguf.h`: all numbers little-endian; a string is a u64 length and bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 65536
"""Padding serves memory pages and vector registers: nothing needs more than 64 KiB, and a huge one hides data."""

STRING = 8
ARRAY = 9

_FIXED = {
    0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"), 6: ("f32", "f"),
    7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d"),
}  # fmt: skip
"""Names of the metadata value types of fixed size, by number, and their letters in `struct` and NumPy."""

NAMES = {**{number: name for number, (name, _) in _FIXED.items()}, STRING: "string", ARRAY: "array"}
"""Names of all metadata value types, by number."""
NUMBERS = {name: number for number, name in NAMES.items()}
SCALARS = {number: struct.Struct(f"<{letter}") for number, (_, letter) in _FIXED.items()}
DTYPES: dict[int, np.dtype[Any]] = {number: np.dtype(f"<{letter}") for number, (_, letter) in _FIXED.items()}
"""Stored form of the value types of fixed size, by number."""


def align_up(position: int, alignment: int) -> int:
    """Round a file position up to the next multiple of `alignment`."""
    return -(-position // alignment) * alignment
