"""From logits to the probabilities that the next token is drawn from: the order of the filters, defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .layers import softmax

REPEAT_WINDOW = 64
"""How many of the latest tokens the repeat penalty looks at."""


def sample_distribution(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    recent: Sequence[int] = (),
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    made: Sequence[int] = (),
    logit_bias: Mapping[int, float] | None = None,
    allowed: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the probability of each token, after all filters, in this order.

    1. Repeat penalty: each token among the last 64 of `recent`, counted once, has its logit divided by the penalty
       if positive, multiplied if not.
    2. Biases are added, presence and frequency penalties taken off, and tokens that are not allowed have no chance.
    3. Temperature: divides all logits. At 0 the largest logit takes all, and nothing below applies.
    4. top_k: exactly k tokens stay; of equal logits the lower id stays. Softmax over these.
    5. top_p: walk them from the most likely down (lower id first among equals) and stop with the first token at
       which the running sum reaches `top_p`.
    6. min_p: drop tokens whose probability is below `min_p` times the largest one.
    7. Divide by the sum of what is left.

    Parameters
    ----------
    logits : ndarray of float, shape (vocab,)
    temperature : float, at least 0
    top_k : int
        0 keeps all.
    top_p : float, in (0, 1]
        1 keeps all.
    min_p : float, in [0, 1]
    repeat_penalty : float, above 0
    recent : sequence of int
        Token ids so far, prompt included, latest last.
    presence_penalty, frequency_penalty : float
        Taken from the logits of the tokens in `made`: once, and as often as they occur.
    made : sequence of int
        Token ids that were generated.
    logit_bias : mapping of int to float, optional
    allowed : sequence of int, optional
        Token ids that may come next; None are all.

    Returns
    -------
    ndarray of float64, shape (vocab,)
        Sums to 1; dropped tokens are exactly 0.
    """
    logits = np.array(logits, dtype=np.float64)
    seen = sorted(set(recent[-REPEAT_WINDOW:]))
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / repeat_penalty, logits[seen] * repeat_penalty)
    for token, bias in (logit_bias or {}).items():
        logits[token] += bias
    counts = np.bincount(np.asarray(made, np.int64), minlength=len(logits))
    logits -= presence_penalty * (counts > 0) + frequency_penalty * counts
    if allowed is not None:
        logits[np.setdiff1d(np.arange(len(logits)), allowed)] = -np.inf

    out = np.zeros_like(logits)
    if temperature == 0:
        out[np.argmax(logits)] = 1.0
        return out

    order = np.argsort(-logits, kind="stable")  # most likely first, lower id first among equals
    order = order[: top_k or None]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, as it should
        p = softmax((logits[order] - logits[order[0]]) / temperature)
    if top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(p)[:-1]])  # what the more likely tokens already sum to
        order, p = order[before < top_p], p[before < top_p]
    kept = p >= min_p * p[0]
    out[order[kept]] = p[kept] / p[kept].sum()
    return out
