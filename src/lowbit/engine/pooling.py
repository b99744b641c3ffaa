"""The states of a text, which come some rows at a time, as one vector or as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def pooled(how: str, out: np.ndarray, n: int) -> Callable[[np.ndarray], None]:
    """Return what takes the states of `n` tokens: ``last``, ``first``, ``mean``, or ``none``, which keeps all.

    Raises
    ------
    ValueError
        If `how` is none of these, or `out` has no room for all.
    """
    if how not in ("last", "mean", "first") and (how, out.ndim) != ("none", 2):
        raise ValueError(f"pooling must be last, mean or first, not {how!r}")
    done, total = 0, np.zeros(out.shape[-1] if how == "mean" else 0)

    def take(rows: np.ndarray) -> None:
        nonlocal done
        if how == "none":
            out[done : done + len(rows)] = rows
        elif how == "mean":
            for row in rows:
                total[:] += row.astype(np.float64)
            out[:] = total / n
        elif how == "last" or not done:
            out[:] = rows[0 if how == "first" else -1]
        done += len(rows)

    return take


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return vectors, shape (n, size), with the length 1."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(1, keepdims=True))
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
