"""The arithmetic that block encoders share, in the order in which ggml does it: the last bit depends on it."""

from __future__ import annotations

import numpy as np

from lowbit.errors import FormatError


def blocks_of(weights: np.ndarray, n: int) -> np.ndarray:
    """Cut rows into blocks: (rows, cols) -> (rows * cols / n, n)."""
    return weights.reshape(-1, n)


def round_half_away(x: np.ndarray) -> np.ndarray:
    """Round to the nearest integer, ties away from zero, as C's roundf; exact for every float32."""
    magnitude = np.abs(x)
    whole = np.floor(magnitude)
    # Not floor(|x| + 0.5): that sum rounds 0.49999997 up to 1.
    return np.copysign(whole + (magnitude - whole >= 0.5), x)


def exponents(blocks: np.ndarray) -> np.ndarray:
    """Return the power of two above the largest magnitude of each block: (n, width) -> (n,)."""
    exponent: np.ndarray = np.frexp(np.abs(blocks).max(axis=1))[1]
    return exponent


def in_columns(blocks: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Return blocks as columns, divided by powers of two, so that squares and products keep their bits.

    (n, width) -> (width, n): sums over a block then go value by value, for many blocks at a time.
    """
    return np.ldexp(np.ascontiguousarray(blocks.T), -exponent)


def nibble_pairs(nibbles: np.ndarray) -> np.ndarray:
    """(n, 32) -> (n, 16): the first half in the low nibbles."""
    return nibbles[:, :16] | nibbles[:, 16:] << 4


def scaled(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Multiply each block by the reciprocal of its scale; blocks without a usable reciprocal become zero.

    The reciprocal overflows for scales below 2**-128, which are zero once stored as float16.
    """
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse[~np.isfinite(inverse)] = 0
    return blocks * inverse


def scale_bytes(scales: np.ndarray) -> np.ndarray:
    """Store scales as float16: (n_blocks, 1) float32 -> (n_blocks, 2) uint8.

    Raises
    ------
    FormatError
        If a scale is beyond float16.
    """
    with np.errstate(over="ignore"):
        halves = scales.astype("<f2")
    if not np.isfinite(halves).all():
        raise FormatError(f"a block's scale of {np.abs(scales).max():g} does not fit float16")
    return halves.view(np.uint8)
