"""Q6_K: 256 six-bit values in 16 groups, whose int8 scales share one float16."""

from __future__ import annotations

import numpy as np

from lowbit.errors import FormatError
from lowbit.quantize.rounding import blocks_of, exponents, in_columns

GROUP = 16
TRIES = (0, *(i for i in range(-9, 10) if i))
"""Scales tried per group: the largest magnitude is mapped to 32, then to 31.1 ... 32.9, in steps of 0.1."""
AT_ONCE = 4096


def encode_q6_k(weights: np.ndarray) -> np.ndarray:
    """Encode as Q6_K: per group the scale with the least error, in which large weights count more.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 256

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 256, 210)
        Per block: the low nibbles ql[128], the upper two bits qh[64], int8 scales[16], float16 d. A value is
        d * scale * (q - 32) (llama.cpp `quantize_row_q6_K_ref`).

    Raises
    ------
    FormatError
        If a block's scale does not fit float16.
    """
    groups = blocks_of(weights, GROUP)
    parts = [_group_scales(groups[start : start + AT_ONCE]) for start in range(0, len(groups), AT_ONCE)]
    best = np.concatenate(parts).reshape(-1, 16)
    largest = np.take_along_axis(best, np.abs(best).argmax(axis=1, keepdims=True), axis=1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(-128) / largest
        halves = (np.float32(1) / inverse).astype("<f2")
    if not np.isfinite(halves).all():
        raise FormatError(f"a block's scale of {np.abs(largest).max() / 128:g} does not fit float16")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scales = np.nan_to_num(np.clip(np.rint(best * inverse), -128, 127)).astype(np.int8)
        steps = (halves.astype(np.float32) * scales.astype(np.float32)).reshape(-1, 1)
        codes = np.clip(np.nan_to_num(np.rint(groups / steps), posinf=0, neginf=0), -32, 31)
    q = (codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)  # (block, half, quarter, value)
    low = q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce(q >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)
    n = len(q)
    parts = [low.reshape(n, 128), high.reshape(n, 64), scales.view(np.uint8), halves.view(np.uint8)]
    return np.concatenate(parts, axis=1)


def _group_scales(groups: np.ndarray) -> np.ndarray:
    """The scale s per group that makes sum(x^2 (x - s q)^2) least, over the candidates: (n, 16) -> (n,)."""
    exponent = exponents(groups)
    x = in_columns(groups, exponent)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    largest[largest == 0] = 1  # a group of zeros, of which no square is above 0
    w = x * x
    wx = w * x
    scale = best = np.zeros_like(largest)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in TRIES:
            q = np.rint(-(np.float32(32) + np.float32(0.1) * np.float32(i)) / largest * x)
            np.clip(q, -32, 31, out=q)
            against, square = (wx * q).sum(axis=0), (w * q * q).sum(axis=0)
            better = (square > 0) & (against * against > best * square)
            scale = np.where(better, against / square, scale)
            best = np.where(better, scale * against, best)
    return np.ldexp(scale, exponent)
