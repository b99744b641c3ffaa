"""Q4_0: 32 four-bit values with one float16 scale."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, scale_bytes, scaled

__all__ = ["encode_q4_0"]


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
    return np.concatenate([scale_bytes(scales), nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)
