"""Q4_K and Q5_K: 256 values in 8 groups with a scale and a minimum each, whose 6-bit multiples share two float16."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, exponents, in_columns, scale_bytes

STEP = np.float32(0.1)
"""Between two ranges that are tried, in steps of a code."""
AT_ONCE = 2048
"""Groups that are encoded at a time, so that what belongs to them stays in a core's cache."""


def encode_q4_k(weights: np.ndarray) -> np.ndarray:
    """Encode as Q4_K: per group the scale and the minimum with the least error, in which large weights count more.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 256

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 256, 144)
        Per block: float16 d and dmin; twelve bytes of 6-bit scales and minima; nibbles, of two neighbouring groups in
        the same 32 bytes. A value is d * scale * q - dmin * minimum (llama.cpp `quantize_row_q4_K_ref`).

    Raises
    ------
    FormatError
        If a block's scale does not fit float16.
    """
    head, codes = _encoded(weights, 15, -1.0, 20)
    return np.concatenate([head, _nibbles(codes)], axis=1)


def encode_q5_k(weights: np.ndarray) -> np.ndarray:
    """Encode as Q5_K: as `encode_q4_k`, with a fifth bit of each code.

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 256, 176)
        Per block: what Q4_K begins with; 32 bytes of which bit g belongs to group g; nibbles (llama.cpp
        `quantize_row_q5_K_ref`).
    """
    head, codes = _encoded(weights, 31, -0.5, 15)
    fifth = np.bitwise_or.reduce(codes >> 4 << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return np.concatenate([head, fifth, _nibbles(codes & 15)], axis=1)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """(n, 8, 32) -> (n, 128)."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(codes), 128)


def _encoded(weights: np.ndarray, most: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes before the codes, (n_blocks, 16), and the codes, (n_blocks, 8, 32)."""
    groups = blocks_of(weights, 32)
    scales, minima = np.empty((2, len(groups)), np.float32)
    for start in range(0, len(groups), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        scales[part], minima[part] = _fitted(groups[part], most, first, steps)
    d, scale_codes = _shared(scales.reshape(-1, 8))
    dmin, min_codes = _shared(minima.reshape(-1, 8))
    step = (d.view("<f2").astype(np.float32) * scale_codes).reshape(-1, 1)
    below = (dmin.view("<f2").astype(np.float32) * min_codes).reshape(-1, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.clip(np.nan_to_num(np.rint((groups + below) / step), posinf=0, neginf=0), 0, most)
    ls, lm = scale_codes.astype(np.uint8), min_codes.astype(np.uint8)
    packed = [ls[:, :4] | ls[:, 4:] >> 4 << 6, lm[:, :4] | lm[:, 4:] >> 4 << 6, ls[:, 4:] & 15 | (lm[:, 4:] & 15) << 4]
    return np.concatenate([d, dmin, *packed], axis=1), codes.astype(np.uint8).reshape(-1, 8, 32)


def _shared(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write numbers that are not negative as a float16 for each row, and multiples of it up to 63."""
    largest = numbers.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(63) / largest
    inverse[~np.isfinite(inverse)] = 0
    return scale_bytes(largest / np.float32(63)), np.minimum(np.rint(inverse * numbers), 63)


def _fitted(groups: np.ndarray, most: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Find s and m of each group for which sum(w (s q - m - x)^2) is least, over the ranges tried.

    (n, 32) -> twice (n,). Each range begins at the best minimum so far. Sums run over the values in their order, as in
    ggml, which decides between two that are nearly equal.
    """
    exponent = exponents(groups)
    x = in_columns(groups, exponent)
    largest, minimum = x.max(axis=0), np.minimum(x.min(axis=0), 0)
    flat = minimum == largest  # all of them equal, and none above 0
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.sqrt((x * x).sum(axis=0) / np.float32(32)) + np.abs(x)
        sum_w, sum_x = w.sum(axis=0), (w * x).sum(axis=0)
        inverse = np.float32(most) / (largest - minimum)
        scale = np.float32(1) / inverse
        best = _error(w, scale * _codes(x, minimum, inverse, most) + minimum - x)
        for i in range(steps + 1):
            inverse = (np.float32(first) + STEP * np.float32(i) + np.float32(most)) / (largest - minimum)
            q = _codes(x, minimum, inverse, most)
            wq = w * q
            sum_q, sum_xq = wq.sum(axis=0), (wq * x).sum(axis=0)
            wq *= q
            sum_qq = wq.sum(axis=0)
            det = sum_w * sum_qq - sum_q * sum_q
            s, m = (sum_w * sum_xq - sum_x * sum_q) / det, (sum_qq * sum_x - sum_q * sum_xq) / det
            s, m = np.where(m > 0, sum_xq / sum_qq, s), np.minimum(m, 0)
            error = _error(w, s * q + m - x)
            better = (det > 0) & (error < best)
            best, scale, minimum = (np.where(better, a, b) for a, b in ((error, best), (s, scale), (m, minimum)))
    return np.ldexp(np.where(flat, 0, scale), exponent), np.ldexp(np.abs(minimum), exponent)


def _codes(x: np.ndarray, minimum: np.ndarray, inverse: np.ndarray, most: int) -> np.ndarray:
    codes = x - minimum
    codes *= inverse
    np.rint(codes, out=codes)
    return np.clip(codes, 0, most, out=codes)


def _error(w: np.ndarray, difference: np.ndarray) -> np.ndarray:
    difference *= difference
    difference *= w
    total: np.ndarray = difference.sum(axis=0)
    return total
