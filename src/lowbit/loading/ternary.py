"""Float weights that are ternary, or are to become so."""

from __future__ import annotations

import math

import numpy as np

from ..formats.base import TensorInfo
from ..formats.blocks import dequantize
from ..quantize.ternary import absmean

GROUP = 256
"""Channels that share one int8 scale where the model does not say how activations are quantised."""


def ternary_of(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes and scale of a BitNet linear's float weights.

    Weights that are ternary already (one magnitude besides 0) keep that magnitude; masters are quantised by absmean,
    which would get the scale of weights that are ternary already wrong.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols)

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
    scale : float
    """
    largest = np.abs(values).max()
    if np.isfinite(largest) and ((values == largest) | (values == -largest) | (values == 0)).all():
        return (np.sign(values) + 1).astype(np.uint8), float(largest)
    return absmean(values)


def blockwise_ternary(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and scales of float weights that are ternary already, with a magnitude for each block of a row.

    That is how TriLM's published weights look: a scale for each part of a tensor that was on a processor of its own.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols)

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
    scales : ndarray of float32, shape (rows, ceil(cols / 256))
        None instead of both if a block has more than one magnitude beside 0, or nothing but zeros is there.
    """
    magnitudes = np.abs(values)
    scales = np.maximum.reduceat(magnitudes, np.arange(0, values.shape[1], GROUP), axis=1)
    spread = np.repeat(scales, GROUP, axis=1)[:, : values.shape[1]]
    if not (np.isfinite(scales).all() and ((magnitudes == spread) | (magnitudes == 0)).all() and scales.any()):
        return None
    return (np.sign(values) + 1).astype(np.uint8), scales


def all_ternary(info: TensorInfo, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """As `blockwise_ternary` of a tensor of floats, one expert at a time."""
    shape, found = info.shape[-2:], []
    for part in raw.reshape(math.prod(info.shape[:-2]), -1):
        one = blockwise_ternary(dequantize(info.type, part, shape))
        if one is None and part.any():  # an expert of zeros is ternary
            return None
        found.append(one or (np.ones(shape, np.uint8), np.zeros((shape[0], -(-shape[1] // GROUP)), np.float32)))
    if not any(scales.any() for _, scales in found):
        return None
    codes, scales = (np.concatenate(both) for both in zip(*found))
    return codes, scales
