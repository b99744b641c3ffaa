"""IQ4_NL: 32 codes of a table of 16 values that lie closer around 0, with one float16 scale."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, exponents, in_columns, nibble_pairs, scale_bytes, scaled

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
TRIES = 7
"""The largest magnitude is mapped to -127 and to as many values on either side of it."""
AT_ONCE = 2048
# Borders between two values are halves, so that twice a number, rounded down, tells which value is nearest.
_NEAREST = np.searchsorted((VALUES[1:] + VALUES[:-1]) / 2, np.arange(-512, 512) / 2, side="right").astype(np.uint8)


def encode_iq4_nl(weights: np.ndarray) -> np.ndarray:
    """Encode as IQ4_NL: per block the scale with the least error, in which large weights count more.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 18)
        Per block: float16 d; 16 bytes, the low nibbles elements 0..15, the high ones 16..31. A value is d times that of
        the code (llama.cpp `quantize_row_iq4_nl_impl`).

    Raises
    ------
    FormatError
        If a scale does not fit float16.
    """
    blocks = blocks_of(weights, 32)
    scales = np.empty((len(blocks), 1), np.float32)
    for start in range(0, len(blocks), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        scales[part, 0] = _fitted(blocks[part])
    return np.concatenate([scale_bytes(scales), nibble_pairs(_codes(scaled(blocks, scales)))], axis=1)


def _codes(multiples: np.ndarray) -> np.ndarray:
    """The codes of the nearest values, the upper one of two equally near."""
    return _NEAREST[np.clip(np.floor(2 * multiples), -512, 511).astype(np.int32) + 512]


def _fitted(blocks: np.ndarray) -> np.ndarray:
    """The d of each block that makes sum(x^2 (x - d v)^2) least, over those tried: (n, 32) -> (n,)."""
    exponent = exponents(blocks)
    x = in_columns(blocks, exponent)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    largest[largest == 0] = 1  # a block of zeros, of which no square is above 0
    w = x * x
    d = best = np.zeros_like(largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverses = [(np.float32(i) + VALUES[0]) / largest for i in range(-TRIES, TRIES + 1)]
        for inverse in (np.float32(1) / (largest / -VALUES[0]), *inverses):  # once with the sign turned around
            v = VALUES[_codes(inverse * x)]
            wv = w * v
            against, square = (wv * x).sum(axis=0), (wv * v).sum(axis=0)
            better = (square > 0) & (against * against > best * square)
            d = np.where(better, against / square, d)
            best = np.where(better, d * against, best)
    return np.ldexp(d, exponent)
