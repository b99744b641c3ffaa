"""How well a model predicts a text, of any length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._kernels.dispatch import PlainFloats


@dataclass(frozen=True)
class Perplexity:
    """How well the model predicts a text."""

    nats_per_token: float
    bits_per_byte: float
    """Per byte of the UTF-8 text."""
    perplexity: float
    tokens: int
    """Predicted tokens: all but the first."""


def nats(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return how unlikely each target was, to the logits of its row: float64, shape (n,)."""
    logits = rows.astype(np.float64)
    top = logits.max(1)
    total: np.ndarray = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return total - logits[np.arange(len(target)), target]


def measured(
    ids: np.ndarray, nbytes: int, context: int, stride: int,
    score: Callable[[np.ndarray, Callable[[np.ndarray], None]], None],
) -> Perplexity:  # fmt: skip
    """Score a text of so many bytes in windows of the context's length.

    Parameters
    ----------
    ids : ndarray of int32, shape (n,)
    nbytes : int
        Of the text, in UTF-8.
    context : int
    stride : int
        From one window to the next.
    score : callable
        Hands the logits of a window's tokens, some rows at a time, to its second argument.
    """
    n = len(ids) - 1
    found: list[float] = []  # added up exactly at the end, so that windows and batches leave no trace
    start = scored = at = 0

    def each(rows: np.ndarray) -> None:
        nonlocal at
        new = rows[max(scored - at, 0) :]
        target = ids[at + len(rows) - len(new) + 1 : at + len(rows) + 1]
        at += len(rows)
        if len(new):
            found.extend(nats(new, target).tolist())

    while scored < n:
        at = start
        score(ids[start : min(start + context, n)], each)
        scored = min(start + context, n)
        start += stride
    with PlainFloats():
        total = math.fsum(found)
        return Perplexity(
            nats_per_token=total / n,
            bits_per_byte=total / math.log(2) / nbytes,
            perplexity=math.exp(total / n),
            tokens=n,
        )
