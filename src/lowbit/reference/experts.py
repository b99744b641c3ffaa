"""A feed-forward of experts: what the router makes of its outputs, and the sum of those that it chose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..plan import Experts
from .layers import gated_feed_forward, softmax

LEAST_SUM = 6.103515625e-5
"""Weights are divided by no less than this, the smallest normal float16."""


def route(logits: np.ndarray, plan: Experts, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Choose the experts of each token.

    Parameters
    ----------
    logits : ndarray of float64, shape (n_tokens, n)
        Outputs of the router.
    plan : Experts
    bias : ndarray of float64, shape (n,), optional
        Added to the probabilities for the choice alone.

    Returns
    -------
    chosen : ndarray of int64, shape (n_tokens, top_k)
        The best first; of equal ones the lower number first.
    weights : ndarray of float64, shape (n_tokens, top_k)

    Notes
    -----
    Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2, for the sigmoid, the groups and the bias.
    """
    if plan.router == "softmax_chosen":
        probabilities = logits  # which become some when the experts are chosen
    else:
        probabilities = softmax(logits) if plan.router == "softmax" else 1 / (1 + np.exp(-logits))
    scores = probabilities + (0.0 if bias is None else bias)
    if plan.groups > 1:
        grouped = scores.reshape(len(scores), plan.groups, -1)  # (n_tokens, groups, experts of a group)
        sums = np.sort(grouped, axis=-1)[..., -plan.group_best :].sum(axis=-1)
        best = np.argsort(-sums, axis=-1, kind="stable")[:, : plan.top_groups]
        out = np.full_like(grouped, -np.inf)
        np.put_along_axis(out, best[..., None], np.take_along_axis(grouped, best[..., None], axis=1), axis=1)
        scores = out.reshape(scores.shape)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : plan.top_k]
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    if plan.router == "softmax_chosen":
        weights = softmax(weights)
    if plan.normalized:
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), LEAST_SUM)
    return chosen, weights * plan.scale


def expert_feed_forward(
    x: np.ndarray,
    plan: Experts,
    linear: Callable[[str, np.ndarray, int | None], np.ndarray],
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Add up what the chosen experts, and the shared one, make of each token.

    Parameters
    ----------
    x : ndarray of float64, shape (n_tokens, hidden)
        After the norm.
    plan : Experts
    linear : function of a role, activations, and the number of an expert or None
        Applies one of the layer's linear layers.
    bias : ndarray of float64, shape (n,), optional
        As for `route`.

    Returns
    -------
    ndarray of float64, shape (n_tokens, hidden)
    """
    chosen, weights = route(linear("ffn_gate_inp", x, None), plan, bias)
    y = np.zeros_like(x)
    for number in range(plan.n):
        token, rank = np.nonzero(chosen == number)
        if not len(token):
            continue
        if plan.fused:
            gate, up = np.split(linear("ffn_gate_up_exps", x[token], number), 2, axis=-1)
        else:
            gate, up = (linear(f"ffn_{name}_exps", x[token], number) for name in ("gate", "up"))
        gated = gated_feed_forward(np.minimum(gate, plan.clamp), np.clip(up, -plan.clamp, plan.clamp), plan.activation)
        y[token] += weights[token, rank, None] * linear("ffn_down_exps", gated, number)
    if plan.shared:
        gate, up = (linear(f"ffn_{name}_shexp", x, None) for name in ("gate", "up"))
        shared = linear("ffn_down_shexp", gated_feed_forward(gate, up, plan.activation), None)
        weight = 1 / (1 + np.exp(-linear("ffn_gate_inp_shexp", x, None))) if plan.shared_gate else 1.0
        y += weight * shared
    return y
