"""The gated delta rule, one token after the other."""

from __future__ import annotations

import numpy as np

from .layers import rms_norm, silu


def causal_convolution(u: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sum each channel over the last tokens, the current one among them, and apply SiLU.

    Parameters
    ----------
    u : ndarray of float64, shape (n, channels)
    weight : ndarray of float64, shape (channels, taps)
        The last tap is that of the current token; before the first token there are zeros.

    Returns
    -------
    ndarray of float64, shape (n, channels)
    """
    taps = weight.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, u.shape[1])), u])
    return silu(sum(weight[:, k] * padded[k : k + len(u)] for k in range(taps)))


def delta_rule(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Look up each query in a matrix that learns each value by its key, and forgets.

    For each token ``M = g M``, ``M = M + beta (v - M k) k^T``, and the result is ``M q``.

    Parameters
    ----------
    q, k, v : ndarray of float64, shape (n, heads, size)
    decay, beta : ndarray of float64, shape (n, heads)

    Returns
    -------
    ndarray of float64, shape (n, heads, size)

    Notes
    -----
    Source: Yang et al., Gated Delta Networks (arXiv 2412.06464).
    """
    n, heads, size = q.shape
    state, out = np.zeros((heads, size, size)), np.empty_like(v)  # rows are values, columns keys
    for t in range(n):
        state = decay[t, :, None, None] * state
        error = beta[t, :, None] * (v[t] - np.einsum("hij,hj->hi", state, k[t]))
        state = state + error[:, :, None] * k[t][:, None, :]
        out[t] = np.einsum("hij,hj->hi", state, q[t])
    return out


def gated_delta_net(
    u: np.ndarray, z: np.ndarray, a: np.ndarray, b: np.ndarray, conv: np.ndarray, dt: np.ndarray, log_decay: np.ndarray,
    norm: np.ndarray, n_key_heads: int, eps: float, grouped: bool = False,
) -> np.ndarray:  # fmt: skip
    """What lies between the projections of a Gated DeltaNet layer.

    Parameters
    ----------
    u, z, a, b : ndarray of float64, shape (n, channels), (n, heads * size), (n, heads), (n, heads)
        Queries, keys and values before the convolution; the output's gate; what decay and learning rate follow from.
    conv : ndarray, shape (channels, taps)
    dt, log_decay : ndarray, shape (heads,)
        The decay is ``exp(log_decay * softplus(a + dt))``.
    norm : ndarray, shape (size,)
    n_key_heads : int
        Value head h reads key head h mod this.
    eps : float
    grouped : bool
        Value head h reads key head h div (heads / n_key_heads).

    Returns
    -------
    ndarray of float64, shape (n, heads * size)
    """
    n, heads, size = len(u), len(dt), len(norm)
    y = causal_convolution(u, conv)
    q, k, v = np.split(y, [n_key_heads * size, 2 * n_key_heads * size], axis=1)
    q, k = (x.reshape(n, n_key_heads, size) for x in (q, k))
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + eps) for x in (q, k))
    of_head = np.arange(heads) // (heads // n_key_heads) if grouped else np.arange(heads) % n_key_heads
    decay = np.exp(log_decay * np.logaddexp(0.0, a + dt))
    beta = 1 / (1 + np.exp(-b))
    out = delta_rule(q[:, of_head] / np.sqrt(size), k[:, of_head], v.reshape(n, heads, size), decay, beta)
    return rms_norm(out, norm, eps).reshape(n, -1) * silu(z)
