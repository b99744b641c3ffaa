"""The parts of a transformer block that have no weights to speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..plan import Activation


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Divide by the root of the mean square, then scale each channel.

    Parameters
    ----------
    x : ndarray of float64, shape (..., channels)
    weight : ndarray of float, shape (channels,)
    eps : float
        Added to the mean square.

    Returns
    -------
    ndarray of float64, shape of `x`
        ``weight * x / sqrt(mean(x**2) + eps)``.
    """
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def rope(
    x: np.ndarray,
    positions: np.ndarray,
    theta: float,
    rope_dim: int = 0,
    pairing: Literal["adjacent", "halves"] = "adjacent",
    factors: Sequence[float] = (),
    scale: float = 1.0,
) -> np.ndarray:
    """Rotate pairs of channels by an angle that grows with the position.

    Pair j of `rope_dim / 2` turns by ``position * theta**(-2j / rope_dim) / factors[j]`` radians.

    Parameters
    ----------
    x : ndarray of float64, shape (n_tokens, n_heads, head_dim)
    positions : ndarray of int, shape (n_tokens,)
    theta : float
        Base of the frequencies.
    rope_dim : int
        Leading channels that are rotated, the others pass unchanged; 0 means all.
    pairing : {"adjacent", "halves"}
        Pair j is channels (2j, 2j + 1), or channels (j, j + rope_dim / 2).
    factors : sequence of float, length rope_dim / 2
        Divisors of the frequencies; empty means all 1.
    scale : float
        Factor of the rotated channels.

    Returns
    -------
    ndarray of float64, shape of `x`

    Notes
    -----
    Source: Su et al., RoFormer (arXiv 2104.09864); the scale is that of YaRN (Peng et al., arXiv 2309.00071).
    """
    rope_dim = rope_dim or x.shape[-1]
    j = np.arange(rope_dim // 2)
    frequencies = theta ** (-2.0 * j / rope_dim) / (np.asarray(factors) if len(factors) else 1.0)  # (pairs,)
    angles = np.multiply.outer(np.asarray(positions, dtype=np.float64), frequencies)[:, None, :]  # (n_tokens, 1, pairs)
    first, second = (2 * j, 2 * j + 1) if pairing == "adjacent" else (j, j + rope_dim // 2)

    cos, sin = scale * np.cos(angles), scale * np.sin(angles)
    out = np.array(x, dtype=np.float64)
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    """Turn the last axis into probabilities; -inf becomes exactly 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, scale: float = 0.0, sinks: np.ndarray | None = None
) -> np.ndarray:
    """Mix values by causal scaled dot-product attention with grouped key and value heads.

    Query head h reads key and value head ``h // (n_heads / n_kv_heads)``. The queries belong to the last n positions
    of the t that have keys, so query i sees keys 0 to t - n + i.

    Parameters
    ----------
    q : ndarray of float64, shape (n, n_heads, head_dim)
    k, v : ndarray of float64, shape (t, n_kv_heads, head_dim), t >= n
        Values may be of another size.
    window : int
        A query sees the keys that are less than this many positions before it; 0: all.
    scale : float
        Factor of the scores; 0 is 1 / sqrt(head_dim).
    sinks : ndarray of float64, shape (n_heads,), optional
        One more score of each query head, which takes part in the softmax and brings no value.

    Returns
    -------
    ndarray of float64, shape (n, n_heads * size of a value)
    """
    n, n_heads, head_dim = q.shape
    t, n_kv_heads, _ = k.shape
    k, v = (np.repeat(a, n_heads // n_kv_heads, axis=1) for a in (k, v))  # (t, n_heads, head_dim)
    q, k, v = (a.swapaxes(0, 1) for a in (q, k, v))  # (n_heads, n or t, head_dim)
    scores = q @ k.swapaxes(1, 2) * (scale or 1 / np.sqrt(head_dim))  # (n_heads, n, t)
    back = np.arange(t - n, t)[:, None] - np.arange(t)  # (n, t)
    unseen = (back < 0) | (back >= (window or t))
    scores = np.where(unseen, -np.inf, scores)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (n_heads, n, 1))], axis=2)
    mixed = softmax(scores)[..., :t] @ v  # (n_heads, n, head_dim)
    return mixed.swapaxes(0, 1).reshape(n, -1)


def silu(x: np.ndarray) -> np.ndarray:
    """Return ``x / (1 + exp(-x))``, without overflow."""
    return x * np.exp(-np.logaddexp(0.0, -x))


def relu2(x: np.ndarray) -> np.ndarray:
    """Return ``max(x, 0)**2``."""
    return np.maximum(x, 0.0) ** 2


def gelu(x: np.ndarray) -> np.ndarray:
    """Return ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))) / 2``, the approximation that models are trained with."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def swiglu_oai(x: np.ndarray) -> np.ndarray:
    """Return ``x / (1 + exp(-1.702 x))``, gpt-oss's gate."""
    return x * np.exp(-np.logaddexp(0.0, -1.702 * x))


def gated_feed_forward(gate: np.ndarray, up: np.ndarray, activation: Activation) -> np.ndarray:
    """Return ``activation(gate) * up``: what goes into the down projection, or into the norm before it.

    Parameters
    ----------
    gate, up : ndarray of float64, shape (n_tokens, intermediate)
    activation : {"silu", "relu2", "gelu", "swiglu_oai"}
        The last adds 1 to `up`.

    Returns
    -------
    ndarray of float64, shape (n_tokens, intermediate)
    """
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "silu": silu, "relu2": relu2, "gelu": gelu, "swiglu_oai": swiglu_oai,
    }  # fmt: skip
    return functions[activation](gate) * (up + 1 if activation == "swiglu_oai" else up)


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    """Find the k channels of largest magnitude.

    Parameters
    ----------
    x : ndarray of numbers, shape (..., channels)
    k : int
        0 to channels. Exactly k are chosen; of equal magnitudes the lower index goes first.

    Returns
    -------
    ndarray of int64, shape (..., k)
        Ascending indices.
    """
    magnitude = np.abs(np.asarray(x, dtype=np.float64))  # int8 -128 has no int8 magnitude
    largest_first = np.argsort(-magnitude, axis=-1, kind="stable")
    return np.sort(largest_first[..., :k], axis=-1)


def sparsify(x: np.ndarray, k: int) -> np.ndarray:
    """Set all but the k channels of largest magnitude to 0; a sparse product is the dense product of this.

    Parameters
    ----------
    x : ndarray of numbers, shape (..., channels)
    k : int

    Returns
    -------
    ndarray, shape and dtype of `x`
    """
    kept = np.zeros_like(x)
    indices = top_k(x, k)
    np.put_along_axis(kept, indices, np.take_along_axis(x, indices, axis=-1), axis=-1)
    return kept
