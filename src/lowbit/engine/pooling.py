"""The states of a text, which come some rows at a time, as one vector or as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["Every", "Mean", "One", "normalised", "pooled"]


def pooled(how: str, out: np.ndarray, n: int) -> Callable[[np.ndarray], None]:
    """Return what takes the states of `n` tokens: ``last``, ``first``, ``mean``, or ``none``, which keeps all.

    Raises
    ------
    ValueError
        If `how` is none of these.
    """
    if how not in ("last", "mean", "first", "none"):
        raise ValueError(f"pooling must be last, mean or first, not {how!r}")
    if how == "none":
        return Every(out)
    return Mean(out, n) if how == "mean" else One(out, how == "first")


class One:
    """Keeps the last row of all, or the first."""

    def __init__(self, out: np.ndarray, first: bool) -> None:
        self._out, self._first, self._full = out, first, False

    def __call__(self, rows: np.ndarray) -> None:
        if not self._full:
            self._out[:] = rows[0 if self._first else -1]
        self._full = self._first


class Every:
    """Keeps all rows."""

    def __init__(self, out: np.ndarray) -> None:
        self._out, self._done = out, 0

    def __call__(self, rows: np.ndarray) -> None:
        self._out[self._done : self._done + len(rows)] = rows
        self._done += len(rows)


class Mean:
    """Makes the mean of all rows."""

    def __init__(self, out: np.ndarray, n: int) -> None:
        self._out, self._n, self._total = out, n, np.zeros(len(out))

    def __call__(self, rows: np.ndarray) -> None:
        for start in range(len(rows)):
            self._total += rows[start].astype(np.float64)
        self._out[:] = self._total / self._n


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return vectors, shape (n, size), with the length 1."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(1, keepdims=True))
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
