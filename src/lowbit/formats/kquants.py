"""Decoding ggml's K types: blocks of 256 values, cut into groups whose scales are themselves small integers.

Every product is taken in the order in which ggml takes it, so values are equal to the last bit. Layout facts: llama.cpp
`ggml/src/ggml-common.h`, `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

import numpy as np

from lowbit.formats.bits import f16, spread


def q2_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16: bytes of a 4-bit scale and a 4-bit minimum; qs[64]; f16 d; f16 dmin. d*sc*q - dmin*mn."""
    scales, d, dmin = blocks[:, :16], f16(blocks[:, 80:82]), f16(blocks[:, 82:84])
    q = spread(blocks[:, 16:80], 32, (0, 2, 4, 6), 3).reshape(-1, 16, 16)
    return _affine(d * (scales & 15).astype(np.float32), q, dmin * (scales >> 4).astype(np.float32))


def q3_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16: hmask[32]; qs[64]; 6-bit scales[12]; f16 d. d*(sc - 32)*(q - (4 where the mask bit is 0))."""
    packed, d = blocks[:, 96:108], f16(blocks[:, 108:110])
    # The low nibbles of eight scales and then the high ones; the upper two bits, four scales to a run, follow.
    low, high = spread(packed[:, :8], 8, (0, 4), 15), spread(packed[:, 8:], 4, (0, 2, 4, 6), 3)
    scales = (low | high << 4).astype(np.int8) - np.int8(32)
    q = spread(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).astype(np.int8)
    q -= (4 - 4 * spread(blocks[:, :32], 32, tuple(range(8)), 1)).astype(np.int8)
    return (d * scales.astype(np.float32))[:, :, None] * q.reshape(-1, 16, 16)


def q4_k(blocks: np.ndarray) -> np.ndarray:
    """8 groups of 32: f16 d; f16 dmin; 6-bit scales and minima[12]; qs[128]. d*sc*q - dmin*mn."""
    return _affine(*_scales_and_minima(blocks, spread(blocks[:, 16:], 32, (0, 4), 15)))


def q5_k(blocks: np.ndarray) -> np.ndarray:
    """As Q4_K, with the fifth bits in qh[32] between scales and nibbles: bit j of byte l belongs to value 32j + l."""
    q = spread(blocks[:, 48:], 32, (0, 4), 15) | spread(blocks[:, 16:48], 32, tuple(range(8)), 1) << 4
    return _affine(*_scales_and_minima(blocks, q))


def q6_k(blocks: np.ndarray) -> np.ndarray:
    """16 groups of 16: ql[128]; qh[64]; int8 sc[16]; f16 d. d*sc*(q - 32)."""
    q = spread(blocks[:, :128], 64, (0, 4), 15) | spread(blocks[:, 128:192], 32, (0, 2, 4, 6), 3) << 4
    scales = f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[:, :, None] * (q.astype(np.int8) - np.int8(32)).reshape(-1, 16, 16)


def _scales_and_minima(blocks: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The eight 6-bit pairs of Q4_K and Q5_K, times d and dmin: scales (n, 8), codes (n, 8, 32), minima (n, 8)."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    d, dmin = f16(blocks[:, :2]), f16(blocks[:, 2:4])
    return d * scales.astype(np.float32), q.reshape(-1, 8, 32), dmin * minima.astype(np.float32)


def _affine(scales: np.ndarray, q: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """scale * q - minimum, per group: (n, groups), (n, groups, size), (n, groups)."""
    values: np.ndarray = scales[:, :, None] * q.astype(np.float32)
    values -= minima[:, :, None]
    return values
