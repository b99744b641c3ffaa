"""Floating point: float32, IEEE half, and bfloat16."""

from __future__ import annotations

import numpy as np

from lowbit.errors import FormatError


def encode_f32(weights: np.ndarray) -> np.ndarray:
    """Store float32 as it is."""
    return weights.astype("<f4", copy=False)


def encode_f16(weights: np.ndarray) -> np.ndarray:
    """Round float32 to half precision, ties to even.

    Raises
    ------
    FormatError
        If a value is beyond 65504, the largest half.
    """
    with np.errstate(over="ignore"):
        halves = weights.astype("<f2")
    if not np.isfinite(halves).all():
        raise FormatError(f"a weight of {np.abs(weights).max():g} does not fit F16; use BF16 or F32")
    return halves


def encode_bf16(weights: np.ndarray) -> np.ndarray:
    """Round float32 to its upper 16 bits, ties to even.

    Raises
    ------
    FormatError
        If a value is within half a step of float32's largest, and would round to infinity.
    """
    bits = weights.view(np.uint32)
    # Adding just under half, plus one where the kept part is odd, carries exactly the ties that go up.
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    if ((upper & 0x7F80) == 0x7F80).any():
        raise FormatError(f"a weight of {np.abs(weights).max():g} does not fit BF16; use F32")
    return upper.astype("<u2")
