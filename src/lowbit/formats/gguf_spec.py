"""The constants of GGUF that its reader and its writer share.

Facts from llama.cpp `ggml/include/gguf.h`: all numbers little-endian; a string is a u64 length and bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ARRAY", "DEFAULT_ALIGNMENT", "DTYPES", "MAGIC", "MAX_ALIGNMENT", "NAMES", "NUMBERS", "STRING", "align_up"]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 65536
"""Padding serves memory pages and vector registers: nothing needs more than 64 KiB, and a huge one hides data."""

STRING = 8
ARRAY = 9

NAMES = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    7: "bool",
    STRING: "string",
    ARRAY: "array",
    10: "u64",
    11: "i64",
    12: "f64",
}
"""Names of the metadata value types, by number."""

NUMBERS = {name: number for number, name in NAMES.items()}

DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Stored form of the value types of fixed size, by number."""


def align_up(position: int, alignment: int) -> int:
    """Round a file position up to the next multiple of `alignment`."""
    return -(-position // alignment) * alignment
