"""Floats to integers, exact integer products, and the three kinds of linear layer built from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

ActivationQuant = Literal["token", "group"]

MAX_ACTIVATION_GROUP = 256
"""Most channels that share one int8 scale when activations are quantised per group."""


def quantize_activations(x: np.ndarray, group: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Quantise activations to int8 by their largest magnitude, as BitNet b1.58 does.

    Every step is one float32 operation, so that any implementation in float32 gives the same int8 values:
    ``m = max(max|x|, 1e-5)``, ``s = 127 / m``, ``q = clip(rint(x * s), -128, 127)``, where ``rint`` rounds half to
    even. The result never is -128. A channel is recovered as ``q / s``. NaN counts as 0, and an infinity as the largest
    float32 of its sign.

    Parameters
    ----------
    x : ndarray of float, shape (..., k)
        Rounded to float32 first.
    group : int, optional
        Channels that share a scale; the last group may be shorter. By default all k do: one scale per token.

    Returns
    -------
    q : ndarray of int8, shape (..., k)
    s : ndarray of float32, shape (..., ceil(k / group))
        127 over the largest magnitude.

    Notes
    -----
    Source: the BitNet b1.58 reference code (`activation_quant`), whose epsilon is a lower bound on the maximum.
    """
    x = np.nan_to_num(np.asarray(x, dtype=np.float32))
    k = x.shape[-1]
    group = k if group is None else group
    n_groups = -(-k // group)
    padded = np.zeros((*x.shape[:-1], n_groups * group), dtype=np.float32)  # zeros never are the maximum
    padded[..., :k] = x
    blocks = padded.reshape(*x.shape[:-1], n_groups, group)

    largest = np.maximum(np.abs(blocks).max(axis=-1), np.float32(1e-5))  # (..., n_groups), float32
    s = np.float32(127) / largest  # float32
    q = np.clip(np.rint(blocks * s[..., None]), -128, 127)  # float32, half to even
    return q.astype(np.int8).reshape(padded.shape)[..., :k], s


def quantize_weights_absmean(w: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Quantise weights to {-1, 0, +1} by their mean magnitude, as BitNet b1.58 does.

    ``scale = max(mean|w|, 1e-5)``, ``values = clip(rint(w / scale), -1, 1)``; the quotient is float32 and halves
    round to even, so a weight of exactly half the scale becomes 0.

    Parameters
    ----------
    w : ndarray of float, any shape
        Rounded to float32 first.

    Returns
    -------
    values : ndarray of int8, shape of `w`
    scale : float32
        One for the whole tensor; ``w`` is about ``values * scale``.
    """
    w = np.asarray(w, dtype=np.float32)
    scale = np.maximum(np.abs(w).mean(dtype=np.float64).astype(np.float32), np.float32(1e-5))
    return np.clip(np.rint(w / scale), -1, 1).astype(np.int8), scale


def int_matmul(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Multiply integer weights of up to 8 bits by int8 activations, exactly.

    Parameters
    ----------
    w : ndarray of int8 or uint8, shape (n, k)
    x : ndarray of int8, shape (m, k)

    Returns
    -------
    ndarray of int32, shape (m, n)

    Notes
    -----
    A product is at most 255 * 128 in magnitude, so int32 holds the sum of 65,000 of them. The product runs in float64,
    which is exact up to 2**53, because NumPy multiplies integer matrices without BLAS.
    """
    return np.rint(x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)


def ternary_matmul(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Multiply ternary weights by int8 activations with additions and subtractions only.

    Parameters
    ----------
    w : ndarray of int8 in {-1, 0, +1}, shape (n, k)
    x : ndarray of int8, shape (m, k)

    Returns
    -------
    ndarray of int32, shape (m, n)
        Exact, unscaled sums.

    Raises
    ------
    ValueError
        If a weight is not ternary.
    """
    if not np.isin(w, (-1, 0, 1)).all():
        raise ValueError("ternary weights must be -1, 0 or +1")
    x = x.astype(np.int32)  # (m, k)
    sums = np.empty((x.shape[0], w.shape[0]), dtype=np.int32)
    for row, weights in enumerate(w):
        sums[:, row] = x[:, weights == 1].sum(axis=1) - x[:, weights == -1].sum(axis=1)
    return sums


class Linear(Protocol):
    """A layer y = W x, however its weights are stored."""

    @property
    def weight(self) -> np.ndarray:
        """Float64 weights, shape (n, k)."""

    def __call__(self, x: np.ndarray, activation_quant: ActivationQuant) -> np.ndarray:
        """Map (m, k) float64 activations to (m, n)."""


@dataclass(frozen=True)
class FloatLinear:
    """Float weights; the activations stay float."""

    weight: np.ndarray
    """Floats, shape (n, k)."""

    def __call__(self, x: np.ndarray, activation_quant: ActivationQuant) -> np.ndarray:
        return x @ self.weight.astype(np.float64).T


@dataclass(frozen=True)
class IntLinear:
    """Integer weights with float scales: ``weight = scale * values - minimum``."""

    values: np.ndarray
    """Integers of up to 8 bits, shape (n, k)."""
    scale: np.ndarray | float
    """One per tensor (scalar), per row (n,), or per row and group of channels (n, n_groups)."""
    minimum: np.ndarray | float = 0.0
    """Subtracted after scaling, in a shape `scale` may have; 0 unless the block type stores one (Q4_1, Q4_K)."""

    def _by_row_and_group(self) -> tuple[np.ndarray, np.ndarray]:
        """Write scale and minimum as float64, shape (n, n_groups)."""
        n_rows = np.empty((self.values.shape[0], 1))
        pair = (np.asarray(a, dtype=np.float64) for a in (self.scale, self.minimum))
        scale, minimum, _ = np.broadcast_arrays(*(a[:, None] if a.ndim == 1 else a for a in pair), n_rows)
        return scale, minimum

    @property
    def group(self) -> int:
        """Channels that share a weight scale; all k of them when there is one per tensor or per row."""
        return -(-self.values.shape[1] // self._by_row_and_group()[0].shape[1])

    @property
    def weight(self) -> np.ndarray:
        """Float64 weights, shape (n, k)."""
        k = self.values.shape[1]
        scale, minimum = (np.repeat(a, self.group, axis=1)[:, :k] for a in self._by_row_and_group())
        return scale * self.values - minimum

    def __call__(self, x: np.ndarray, activation_quant: ActivationQuant) -> np.ndarray:
        """Quantise the activations, add up integers, scale the sums.

        ``token``: one int8 scale for all channels of a token. ``group``: one for each weight group, or for each
        256 channels of it where it is larger. Weight groups above 256 channels must be whole rows or multiples of 256.
        """
        n, k = self.values.shape
        per_token = activation_quant == "token"
        step = self.group if per_token else min(self.group, MAX_ACTIVATION_GROUP)
        q, s = quantize_activations(x, None if per_token else step)  # (m, k), (m, 1 or n_steps)
        scale, minimum = self._by_row_and_group()  # (n, n_groups)

        y = np.zeros((x.shape[0], n))
        for i, start in enumerate(range(0, k, step)):
            channels, g = slice(start, start + step), start // self.group
            sums = int_matmul(self.values[:, channels], q[:, channels])  # (m, n), exact
            totals = q[:, channels].sum(axis=1, dtype=np.int64)[:, None]  # (m, 1), exact
            s_step = s[:, [0 if per_token else i]].astype(np.float64)  # (m, 1)
            y += (sums * scale[:, g] - totals * minimum[:, g]) / s_step
        return y


@dataclass(frozen=True)
class TernaryLinear(IntLinear):
    """Weights in {-1, 0, +1} with float scales.

    Raises
    ------
    ValueError
        If a value is not ternary.
    """

    def __post_init__(self) -> None:
        if not np.isin(self.values, (-1, 0, 1)).all():
            raise ValueError("ternary weights must be -1, 0 or +1")
