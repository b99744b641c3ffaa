"""Q8_0: 32 int8 values with one float16 scale."""

from __future__ import annotations

import numpy as np

from lowbit.quantize.rounding import blocks_of, round_half_away, scale_bytes, scaled


def encode_q8_0(weights: np.ndarray) -> np.ndarray:
    """Encode as Q8_0: d = max|x| / 127, q = round(x / d), ties away from zero.

    Parameters
    ----------
    weights : ndarray of float32, shape (rows, cols), cols a multiple of 32

    Returns
    -------
    ndarray of uint8, shape (rows * cols / 32, 34)
        Per block: float16 d, int8 q[32] (llama.cpp `quantize_row_q8_0_ref`).
    """
    blocks = blocks_of(weights, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    values = round_half_away(scaled(blocks, scales)).astype(np.int8)
    return np.concatenate([scale_bytes(scales), values.view(np.uint8)], axis=1)
