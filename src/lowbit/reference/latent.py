"""Attention with keys and values that are made of one short vector per token, written out in full."""

from __future__ import annotations

import numpy as np

from ..plan import LatentAttention
from .layers import attention, rope


def latent_attention(
    plan: LatentAttention, q: np.ndarray, rotated: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Mix values by attention over all earlier tokens.

    Parameters
    ----------
    plan : LatentAttention
    q : ndarray of float64, shape (n, n_heads * (nope_dim + rope.dim))
        Of each head first the channels without positions, then those that are rotated here.
    rotated : ndarray of float64, shape (n, rope.dim)
        The part of the keys that all heads share, before it is rotated.
    k : ndarray of float64, shape (n, n_heads, nope_dim)
        What each head makes of the latents, and so with the next.
    v : ndarray of float64, shape (n, n_heads, value_size)
    positions : ndarray of int, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n, n_heads * value_size)

    Notes
    -----
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1. Programs that keep latents multiply a query with the matrix
    that makes keys of them, and what was gathered of them with the one that makes values; the result is the same.
    """
    n, heads, r = len(q), plan.n_heads, plan.rope

    def turned(x: np.ndarray) -> np.ndarray:
        return rope(x, positions, r.theta, r.dim, r.pairing, r.factors, r.scale)

    plain, turning = np.split(q.reshape(n, heads, -1), [plan.nope_dim], axis=2)
    queries = np.concatenate([plain, turned(turning)], axis=2)
    keys = np.concatenate([k, np.repeat(turned(rotated[:, None]), heads, axis=1)], axis=2)
    return attention(queries, keys, v, 0, plan.scale)
