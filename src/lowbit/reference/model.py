"""The forward pass of every family that lowbit runs, without a cache: all tokens at once, from position 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..plan import Attention, DeltaNet, Experts, LatentAttention, ModelPlan, Rotation
from .delta import gated_delta_net
from .experts import expert_feed_forward
from .hadamard import grouped_heads, rotate, unrotate
from .latent import latent_attention
from .layers import attention, gated_feed_forward, rms_norm, rope, softmax, sparsify
from .quantization import FloatLinear, Linear

Weights = Mapping[str, "np.ndarray | Linear"]
"""Weights by role: the GGUF tensor name without ``.weight``, and with ``_bias`` for ``.bias``."""


def forward(
    plan: ModelPlan,
    weights: Weights,
    token_ids: Sequence[int] | np.ndarray,
    sparsity: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Compute the logits after each token.

    Parameters
    ----------
    plan : ModelPlan
    weights : mapping of str to ndarray or Linear
        What the plan lists (`ModelPlan.weights`), of the shapes that stand there.
        A matrix given as an ndarray is a `FloatLinear`; those of experts are an ndarray of them, or a sequence.
    token_ids : sequence of int, shape (n,), n >= 1
    sparsity : mapping of str to float, optional
        Shares of the inputs of ``qkv``, ``attn_output``, ``gate_up`` and ``ffn_down`` that do not count: of n inputs,
        the floor(share n) smallest magnitudes, after norm and rotation and before quantisation. Weights that read the
        plain input beside others that read a rotated one read all of it.

    Returns
    -------
    ndarray of float64, shape (n, vocab)
    """
    role = "token_embd" if plan.tied_embeddings else "output"
    states = _turned(plan, role, hidden_states(plan, weights, token_ids, sparsity))
    return _as_linear(weights[role])(states, plan.activation_quant) * plan.logit_scale


def hidden_states(
    plan: ModelPlan,
    weights: Weights,
    token_ids: Sequence[int] | np.ndarray,
    sparsity: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Compute what the output head reads after each token.

    Parameters
    ----------
    plan : ModelPlan
    weights, token_ids, sparsity
        As for `forward`.

    Returns
    -------
    ndarray of float64, shape (n, hidden)
        After the last RMSNorm.
    """

    def vector(role: str) -> np.ndarray:
        return np.asarray(weights[role], dtype=np.float64)

    def norm(role: str, x: np.ndarray) -> np.ndarray:
        return rms_norm(x, vector(role), plan.norm_eps)

    def linears(name: str, block: str, roles: Sequence[str], x: np.ndarray) -> list[np.ndarray]:
        """What some weights make of the same input, of which a share may not count."""
        share = (sparsity or {}).get(name, 0.0)
        keep = max(x.shape[-1] - int(share * x.shape[-1]), 1)
        rotated = [_is_folded(plan, f"{block}.{role}") for role in roles]
        results = []
        for role, turns in zip((f"{block}.{role}" for role in roles), rotated):
            y = _turned(plan, role, x)
            y = sparsify(y, keep) if share and turns == any(rotated) else y
            y = norm(f"{role}_norm_in", y) if f"{role}_norm_in" in weights else y
            results.append(_as_linear(weights[role])(y, plan.activation_quant))
        return results

    def one_of(block: str, role: str, x: np.ndarray, expert: int | None) -> np.ndarray:
        layer: Any = weights[f"{block}.{role}"]
        bias = np.asarray(weights.get(f"{block}.{role}_bias", 0.0))
        if expert is not None:
            layer, bias = layer[expert], bias[expert] if bias.ndim else bias
        elif isinstance(layer, np.ndarray):
            layer = np.atleast_2d(layer)  # one output
        return _as_linear(layer)(_turned(plan, f"{block}.{role}", x), plan.activation_quant) + bias

    def heads(layer: Attention, block: str, name: str, y: np.ndarray) -> np.ndarray:
        if layer.bias:
            y = y + vector(f"{block}.attn_{name}_bias")
        y = y.reshape(n, -1, layer.head_dim)  # (n, heads, head_dim)
        if name == "v":
            return y
        if layer.whole_norm:
            y = norm(f"{block}.attn_{name}_norm", y.reshape(n, -1)).reshape(y.shape)
        if layer.qk_norm and not layer.norm_after_rope:
            y = norm(f"{block}.attn_{name}_norm", y)
        if layer.rope is not None:
            r = layer.rope
            y = rope(y, positions, r.theta, r.dim, r.pairing, r.factors, r.scale)
        if layer.qk_norm and layer.norm_after_rope:
            y = norm(f"{block}.attn_{name}_norm", y)
        return y

    def attend(layer: Attention, block: str, normed: np.ndarray) -> np.ndarray:
        made = linears("qkv", block, ("attn_qkv",) if layer.fused else ("attn_q", "attn_k", "attn_v"), normed)
        ends = layer.head_dim * np.cumsum([layer.n_heads, layer.n_kv_heads])
        q, k, v = np.split(made[0], ends, axis=1) if layer.fused else made
        gate = np.array(np.inf)
        if layer.gated:
            q, gate = (a.reshape(n, -1) for a in np.split(q.reshape(n, layer.n_heads, -1), 2, axis=2))
        q, k, v = (heads(layer, block, name, y) for name, y in zip("qkv", (q, k, v)))
        sinks = vector(f"{block}.attn_sinks") if layer.sinks else None
        mixed = attention(q, k, v, layer.window, layer.scale, sinks) / (1 + np.exp(-gate))  # (n, n_heads * head_dim)
        mixed = norm(f"{block}.attn_sub_norm", mixed) if layer.sub_norm else mixed
        (y,) = linears("attn_output", block, ("attn_output",), mixed)
        if layer.output_bias:
            y = y + vector(f"{block}.attn_output_bias")
        return norm(f"{block}.post_attention_norm", y) if layer.post_norm else y

    def attend_latents(layer: LatentAttention, block: str, normed: np.ndarray) -> np.ndarray:
        q, kv = linears("qkv", block, ("attn_q_a" if layer.q_rank else "attn_q", "attn_kv_a_mqa"), normed)
        if layer.q_rank:
            (q,) = linears("q_b", block, ("attn_q_b",), norm(f"{block}.attn_q_a_norm", q))
        latents = norm(f"{block}.attn_kv_a_norm", kv[:, : layer.rank])
        if layer.joined:
            (both,) = linears("kv_b", block, ("attn_kv_b",), latents)
            k, v = np.split(both.reshape(n, layer.n_heads, -1), [layer.nope_dim], axis=2)
        else:
            k = np.einsum("tr,hrc->thc", latents, vector(f"{block}.attn_k_b"))
            v = np.einsum("tr,hcr->thc", latents, vector(f"{block}.attn_v_b"))
        mixed = latent_attention(layer, q, kv[:, layer.rank :], k, v, positions)
        (y,) = linears("attn_output", block, ("attn_output",), mixed)
        return y

    def by_key_head(y: np.ndarray, keys: int, ends: list[int]) -> list[np.ndarray]:
        return [part.reshape(n, -1) for part in np.split(y.reshape(n, keys, -1), ends, axis=2)]

    def recur(layer: DeltaNet, block: str, normed: np.ndarray) -> np.ndarray:
        keys, shared = layer.n_key_heads, layer.n_value_heads // layer.n_key_heads
        inputs = ("ssm_in",) if layer.fused else ("attn_qkv", "attn_gate")
        rates = ("ssm_ba",) if layer.grouped else ("ssm_beta", "ssm_alpha")
        made = linears("qkv", block, (*inputs, *rates), normed)
        qkv, z, (b, a) = made[0], made[1], made[-2:]
        if layer.fused:
            ends = layer.head_dim * np.cumsum([1, 1, shared])
            *parts, z = by_key_head(qkv, keys, ends.tolist())
            qkv = np.concatenate(parts, axis=1)
        if layer.grouped:
            b, a = by_key_head(a, keys, [shared])
        conv, dt, decay, weight = (
            vector(f"{block}.{name}") for name in ("ssm_conv1d", "ssm_dt_bias", "ssm_a", "ssm_norm")
        )
        mixed = gated_delta_net(qkv, z, a, b, conv, dt, decay, weight, keys, plan.norm_eps, layer.grouped)
        return linears("attn_output", block, ("ssm_out",), mixed)[0]

    ids = np.asarray(token_ids, dtype=np.int64)
    n = len(ids)
    positions = np.arange(n)
    x = _as_linear(weights["token_embd"]).weight[ids].astype(np.float64)  # (n, hidden)
    if plan.rotation is not None and plan.rotation.latent:
        x = unrotate(x, plan.rotation.block, _signs(plan.rotation, plan.hidden_size))
    x = x * plan.embedding_scale

    for number, layer in enumerate(plan.layers):
        block = f"blk.{number}"
        mixer, feed_forward = layer.mixer, layer.feed_forward

        normed = norm(f"{block}.attn_norm", x)
        if isinstance(mixer, DeltaNet):
            y = recur(mixer, block, normed)
        elif isinstance(mixer, LatentAttention):
            y = attend_latents(mixer, block, normed)
        else:
            y = attend(mixer, block, normed)
        x = x + plan.residual_scale * y

        normed = norm(f"{block}.{feed_forward.norm}", x)
        if isinstance(feed_forward, Experts):
            bias = vector(f"{block}.exp_probs_b_bias") if feed_forward.bias else None
            x = x + expert_feed_forward(normed, feed_forward, partial(one_of, block), bias)
            continue
        made = linears("gate_up", block, ("ffn_up",) if feed_forward.fused else ("ffn_gate", "ffn_up"), normed)
        gate, up = np.split(made[0], 2, axis=1) if feed_forward.fused else made  # (n, intermediate)
        gated = gated_feed_forward(gate, up, feed_forward.activation)
        if feed_forward.sub_norm:
            gated = norm(f"{block}.ffn_sub_norm", gated)
        (y,) = linears("ffn_down", block, ("ffn_down",), gated)
        if feed_forward.post_norm:
            y = norm(f"{block}.post_ffw_norm", y)
        x = x + plan.residual_scale * y

    return norm("output_norm", x)


def _is_folded(plan: ModelPlan, role: str) -> bool:
    return plan.rotation is not None and f"{role}.weight" in plan.rotation.folded


def _signs(rotation: Rotation, width: int) -> np.ndarray:
    return np.frombuffer(rotation.signs[width], np.int8) if rotation.signs else np.ones(width)


def _turned(plan: ModelPlan, role: str, x: np.ndarray) -> np.ndarray:
    """What weights read in place of x, if their plan rotates it."""
    rotation = plan.rotation
    if rotation is None or not _is_folded(plan, role):
        return x
    if rotation.grouped and role.endswith(".ssm_out"):
        mixer = plan.layers[plan.by_name[f"{role}.weight"].layer].mixer
        assert isinstance(mixer, DeltaNet)
        x = grouped_heads(x, mixer.n_key_heads, mixer.head_dim)
    return rotate(x, rotation.block, _signs(rotation, x.shape[-1]))


def _as_linear(layer: np.ndarray | Linear) -> Linear:
    return FloatLinear(layer) if isinstance(layer, np.ndarray) else layer


def greedy(plan: ModelPlan, weights: Weights, prompt_ids: Sequence[int], n: int) -> list[int]:
    """Continue a prompt with the most likely token, n times; of equal logits the lowest id wins.

    Parameters
    ----------
    plan : ModelPlan
    weights : mapping, as for `forward`
    prompt_ids : sequence of int, at least one
    n : int

    Returns
    -------
    list of int, length n
        The new ids, without the prompt.
    """
    ids = list(prompt_ids)
    for _ in range(n):
        ids.append(int(np.argmax(forward(plan, weights, ids)[-1])))
    return ids[len(prompt_ids) :]


def nats_per_token(plan: ModelPlan, weights: Weights, ids: Sequence[int] | np.ndarray) -> float:
    """Average ``-ln p`` of each token after the first, given those before it.

    Parameters
    ----------
    plan : ModelPlan
    weights : mapping, as for `forward`
    ids : sequence of int, at least two

    Returns
    -------
    float
        Cross entropy in nats per predicted token; its exponential is the perplexity.
    """
    ids = np.asarray(ids, dtype=np.int64)
    probabilities = softmax(forward(plan, weights, ids[:-1]))  # (n - 1, vocab)
    return float(-np.log(probabilities[np.arange(len(ids) - 1), ids[1:]]).mean())
