"""Ternary weights: from float to codes and scales, and from those to TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0 and I2_S.

A code is a weight plus one: 0, 1, 2 mean -1, 0, +1. Layouts: llama.cpp `ggml-quants.c`, microsoft/BitNet
`src/ggml-bitnet-mad.cpp`; they are pictured in `lowbit.formats.blocks`.
"""

from __future__ import annotations

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.quantize.rounding import blocks_of, round_half_away, scale_bytes, scaled

ABSMEAN_FLOOR = 1e-5
"""Smallest scale that BitNet's weight quantisation gives a tensor."""
I2_S_ZERO = 1e-6
"""bitnet.cpp takes smaller magnitudes for zero."""


def absmean(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Quantise a linear layer as BitNet b1.58 does: round to multiples of the mean magnitude, clip to -1, 0, +1.

    Parameters
    ----------
    weights : ndarray of float, any shape
        Float master weights.

    Returns
    -------
    codes : ndarray of uint8, same shape
        0, 1 or 2.
    scale : float
        max(mean |W|, 1e-5), in float32; the weights become (codes - 1) * scale.

    Raises
    ------
    FormatError
        If a weight is infinite or not a number.

    Notes
    -----
    "The Era of 1-bit LLMs" (arXiv:2402.17764), equations 1 to 3; ties round to even.
    """
    weights = np.asarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise FormatError("weights are infinite or not a number")
    scale = max(np.float32(np.abs(weights).mean(dtype=np.float64)), np.float32(ABSMEAN_FLOOR))
    return (np.clip(np.rint(weights / scale), -1, 1) + 1).astype(np.uint8), float(scale)


def nearest_ternary(weights: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the ternary weights that are nearest in squared error, with a scale for each block of a row.

    If k values are kept, their best scale is their mean magnitude, and the k largest are the ones to keep: the error
    is then sum(x^2) - (sum of the k largest |x|)^2 / k, and k is tried from 1 to the size of the block. Weights that
    are ternary already come back as they are.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), finite
    block : int
        Weights per scale; divides cols.

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
        0, 1 or 2 for -1, 0 and +1.
    scales : ndarray of float32, shape (rows, cols / block)
    """
    blocks = blocks_of(np.asarray(weights, np.float32), block)
    magnitudes = np.abs(blocks)
    largest_first = -np.sort(-magnitudes, axis=1)
    counts = np.arange(1, block + 1)
    means = np.cumsum(largest_first, axis=1, dtype=np.float64) / counts
    kept = (means * means * counts).argmax(axis=1)[:, None]
    smallest = np.take_along_axis(largest_first, kept, axis=1)
    scales = np.take_along_axis(means, kept, axis=1).astype(np.float32)
    codes = np.where(magnitudes >= smallest, np.sign(blocks), 0) + 1
    rows, cols = weights.shape
    return codes.astype(np.uint8).reshape(rows, cols), scales.reshape(rows, cols // block)


def encode_tq1_0(weights: np.ndarray) -> np.ndarray:
    """Encode as TQ1_0: d = max|x| of 256 values, codes round(x / d) + 1.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 256

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 256, 54)
    """
    return _pack_tq1_0(*_absmax(weights))


def encode_tq2_0(weights: np.ndarray) -> np.ndarray:
    """Encode as TQ2_0: d = max|x| of 256 values, codes round(x / d) + 1.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 256

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 256, 66)
    """
    return _pack_tq2_0(*_absmax(weights))


def encode_i2_s(weights: np.ndarray) -> np.ndarray:
    """Encode as I2_S weights that are ternary already: -s, 0 and +s for one s.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 128

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 4 + 32,)

    Raises
    ------
    FormatError
        If a weight differs from -s, 0 and +s by more than a thousandth of s. bitnet.cpp keeps only its sign then.
    """
    scale = np.abs(weights).max()
    signs = np.where(np.abs(weights) < I2_S_ZERO, np.float32(0), np.sign(weights))
    if (np.abs(weights - signs * scale) > 1e-3 * scale).any() and scale >= I2_S_ZERO:
        raise FormatError("I2_S holds ternary weights of one scale only, and these are not; quantise them first")
    return pack_codes("I2_S", (signs + 1).astype(np.uint8), scale)


def pack_codes(type_name: str, codes: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    """Store codes and scales, the inverse of `lowbit.formats.blocks.ternary_codes`.

    Parameters
    ----------
    type_name : str
        ``TQ1_0``, ``TQ2_0``, ``Q2_0``, ``PQ2_0``, ``PTQ1_0`` or ``I2_S``.
    codes : ndarray of uint8, shape (rows, cols)
        0, 1 or 2.
    scales : float, or ndarray of float32 that broadcasts to (rows, n_blocks)
        For I2_S one number.

    Returns
    -------
    ndarray of uint8, shape (n_bytes,)

    Raises
    ------
    FormatError
        If a code exceeds 2, rows do not hold whole blocks, or a scale cannot be stored.
    UnsupportedModelError
        If the type is not ternary.
    """
    if type_name not in _BLOCK:
        raise UnsupportedModelError(f"type {type_name} is not ternary")
    codes = np.ascontiguousarray(codes, np.uint8)
    if codes.size == 0 or codes.max() > 2:
        raise FormatError("codes must be 0, 1 or 2, and at least one")
    rows, cols = codes.reshape(-1, codes.shape[-1]).shape
    if cols % _BLOCK[type_name]:
        raise FormatError(f"rows of {cols} codes are no multiple of the {type_name} block of {_BLOCK[type_name]}")
    given = np.asarray(scales, np.float32)
    if not np.isfinite(given).all():
        raise FormatError("a scale is infinite or not a number")
    if type_name == "I2_S":
        if given.size != 1:
            raise FormatError(f"I2_S has one scale, not {given.size}")
        tail = np.zeros(32, np.uint8)
        tail[:4] = given.astype("<f4").reshape(1).view(np.uint8)
        return np.concatenate([_crumbs(codes.reshape(-1, 4, 32), (6, 4, 2, 0)).reshape(-1), tail])
    size = _BLOCK[type_name]
    per_block = np.broadcast_to(given, (rows, cols // size)).reshape(-1, 1)
    return _PACKERS[type_name](blocks_of(codes, size), per_block).reshape(-1)


_BLOCK = {"TQ1_0": 256, "TQ2_0": 256, "Q2_0": 64, "PQ2_0": 128, "PTQ1_0": 128, "I2_S": 128}


def _absmax(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise blocks of 256 by their largest magnitude: codes (n_blocks, 256), scales (n_blocks, 1)."""
    blocks = blocks_of(weights, 256)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    return (round_half_away(scaled(blocks, scales)) + 1).astype(np.uint8), scales


def _crumbs(codes: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Put four runs of 32 codes into the bit pairs of 32 bytes: (n, 4, 32) -> (n, 32)."""
    return np.bitwise_or.reduce(codes << np.array(shifts, np.uint8)[:, None], axis=1)


def _pack_tq2_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    packed = _crumbs(codes.reshape(-1, 4, 32), (0, 2, 4, 6)).reshape(-1, 64)
    return np.concatenate([packed, scale_bytes(scales)], axis=1)


def _pack_tq1_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _pack_trits(scales, (codes[:, :160], 5), (codes[:, 160:240], 5), (codes[:, 240:], 4))


def _pack_ptq1_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _pack_trits(scales, (codes[:, :80], 5), (codes[:, 80:120], 5), (codes[:, 120:], 4))


def _pack_trits(scales: np.ndarray, *coded: tuple[np.ndarray, int]) -> np.ndarray:
    """Parts of a block with so many digits in a byte, then the scale."""
    weights = np.array([81, 27, 9, 3, 1], np.uint8)[:, None]
    parts = [
        (part.reshape(len(part), n_digits, -1) * weights[:n_digits]).sum(axis=1, dtype=np.uint16)
        for part, n_digits in coded
    ]
    # q <= 242, so the product fits 16 bits. Rounding up makes the decoder's multiply-and-shift exact.
    packed = (np.concatenate(parts, axis=1) * np.uint16(256) + np.uint16(242)) // np.uint16(243)
    return np.concatenate([packed.astype(np.uint8), scale_bytes(scales)], axis=1)


def _pack_q2_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    packed = np.bitwise_or.reduce(codes.reshape(len(codes), -1, 4) << np.array((0, 2, 4, 6), np.uint8), axis=2)
    return np.concatenate([scale_bytes(scales), packed], axis=1)


_PACKERS = {
    "TQ1_0": _pack_tq1_0,
    "TQ2_0": _pack_tq2_0,
    "Q2_0": _pack_q2_0,
    "PQ2_0": _pack_q2_0,
    "PTQ1_0": _pack_ptq1_0,
}
