"""Q4_0 and Q4_1: 32 four-bit values with one float16 scale, and in Q4_1 a minimum."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, nibble_pairs, scale_bytes, scaled


def encode_q4_0(weights: np.ndarray) -> np.ndarray:
    """Encode as Q4_0: d = m / -8 with m the value of largest magnitude, q = min(15, trunc(x / d + 8.5)).

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 18)
        Per block: float16 d; 16 bytes, the low nibbles elements 0..15, the high ones 16..31
        (llama.cpp `quantize_row_q4_0_ref`).
    """
    blocks = blocks_of(weights, 32)
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    scales = np.take_along_axis(blocks, largest, axis=1) / np.float32(-8)
    nibbles = np.minimum(np.trunc(scaled(blocks, scales) + np.float32(8.5)), 15).astype(np.uint8)
    return np.concatenate([scale_bytes(scales), nibble_pairs(nibbles)], axis=1)


def encode_q4_1(weights: np.ndarray) -> np.ndarray:
    """Encode as Q4_1: m = min x, d = (max x - m) / 15, q = min(15, trunc((x - m) / d + 0.5)).

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 20)
        Per block: float16 d, float16 m, and nibbles as in Q4_0 (llama.cpp `quantize_row_q4_1_ref`).
    """
    blocks = blocks_of(weights, 32)
    minima = blocks.min(axis=1, keepdims=True)
    scales = (blocks.max(axis=1, keepdims=True) - minima) / np.float32(15)
    nibbles = np.minimum(np.trunc(scaled(blocks - minima, scales) + np.float32(0.5)), 15).astype(np.uint8)
    return np.concatenate([scale_bytes(scales), scale_bytes(minima), nibble_pairs(nibbles)], axis=1)
