"""Block Hadamard transforms, by which PrismML's Bonsai 2 rotates the input of its linear layers.

H[r, c] = (-1)**popcount(r & c) / sqrt(B) is symmetric and its own inverse. A weight W of a layer is stored as
W' = W P^T diag(s) H, block by block of its columns, and the layer computes W' (H (s * P x)), which is W x: rotated
weights have no outliers that a few bits could not hold. s holds a sign for each channel, P puts the heads of a value in
another order (`grouped_heads`). An embedding is stored as z = H (s * h).
"""

from __future__ import annotations

import numpy as np


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """Multiply each run of `block` elements of the last axis by H: butterflies with strides 1, 2, 4, ...

    Parameters
    ----------
    x : ndarray, shape (..., n), n a multiple of `block`
    block : int
        A power of two.

    Returns
    -------
    ndarray of float64, shape (..., n)
    """
    if block < 1 or block & (block - 1) or x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not fit {x.shape[-1]} channels")
    y = np.asarray(x, np.float64) / np.sqrt(block)
    stride = 1
    while stride < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, stride)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([first + second, first - second], axis=-2)
        stride *= 2
    return y.reshape(x.shape)


def rotate(x: np.ndarray, block: int, signs: np.ndarray) -> np.ndarray:
    """Return H (signs * x): what a linear layer with folded weights reads in place of x."""
    return hadamard(x * signs, block)


def unrotate(z: np.ndarray, block: int, signs: np.ndarray) -> np.ndarray:
    """Return signs * (H z): the hidden state of a stored embedding."""
    hidden: np.ndarray = signs * hadamard(z, block)
    return hidden


def fold(weights: np.ndarray, block: int, signs: np.ndarray) -> np.ndarray:
    """Return the weights, shape (out, in), whose product with `rotate(x)` is the product of `weights` with x."""
    return rotate(weights, block, signs)


def grouped_heads(x: np.ndarray, key_heads: int, size: int) -> np.ndarray:
    """Put value heads of `size` channels that lie tiled (head h belongs to key head h mod n) beside their key head."""
    heads = x.reshape(*x.shape[:-1], -1, key_heads, size)
    return heads.swapaxes(-3, -2).reshape(x.shape)
