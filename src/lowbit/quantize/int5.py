"""Q5_0 and Q5_1: as Q4_0 and Q4_1, with a fifth bit for each value."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, nibble_pairs, scale_bytes, scaled


def encode_q5_0(weights: np.ndarray) -> np.ndarray:
    """Encode as Q5_0: d = m / -16 with m the value of largest magnitude, q = min(31, trunc(x / d + 16.5)).

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 22)
        Per block: float16 d; the fifth bits of the values in their order; nibbles as in Q4_0 (llama.cpp
        `quantize_row_q5_0_ref`).
    """
    blocks = blocks_of(weights, 32)
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    scales = np.take_along_axis(blocks, largest, axis=1) / np.float32(-16)
    codes = np.minimum(np.trunc(scaled(blocks, scales) + np.float32(16.5)), 31).astype(np.uint8)
    return np.concatenate([scale_bytes(scales), _packed(codes)], axis=1)


def encode_q5_1(weights: np.ndarray) -> np.ndarray:
    """Encode as Q5_1: m = min x, d = (max x - m) / 31, q = min(31, trunc((x - m) / d + 0.5)).

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 24)
        As Q5_0, with a float16 m behind d (llama.cpp `quantize_row_q5_1_ref`).
    """
    blocks = blocks_of(weights, 32)
    minima = blocks.min(axis=1, keepdims=True)
    scales = (blocks.max(axis=1, keepdims=True) - minima) / np.float32(31)
    codes = np.minimum(np.trunc(scaled(blocks - minima, scales) + np.float32(0.5)), 31).astype(np.uint8)
    return np.concatenate([scale_bytes(scales), scale_bytes(minima), _packed(codes)], axis=1)


def _packed(codes: np.ndarray) -> np.ndarray:
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate([fifth, nibble_pairs(codes & 15)], axis=1)
