"""A plan whose layers are all alike, from one flat list of numbers."""

from __future__ import annotations

from lowbit.plan import Attention, Dense, LayerPlan, ModelPlan, Rope


def make_plan(
    family, vocab_size, hidden_size, intermediate_size, n_layers, n_heads, n_kv_heads, head_dim, context_length, *,
    norm_eps=1e-5, rope_theta=10000.0, rope_dim=0, rope_pairing="adjacent", rope_factors=(), activation="silu",
    attn_sub_norm=False, ffn_sub_norm=False, qk_norm=False, attn_bias=False, tied_embeddings=False,
    activation_quant="group",
):  # fmt: skip
    """A `ModelPlan`; a `rope_dim` of 0 is the whole head."""
    rope = Rope(rope_dim or head_dim, rope_theta, rope_pairing, rope_factors)
    attention = Attention(n_heads, n_kv_heads, head_dim, rope, attn_bias, qk_norm, attn_sub_norm)
    layer = LayerPlan(attention, Dense(intermediate_size, activation, ffn_sub_norm))
    return ModelPlan(
        family, vocab_size, hidden_size, context_length, (layer,) * n_layers, norm_eps, tied_embeddings,
        activation_quant=activation_quant,
    )  # fmt: skip
