"""The parts of the forward pass that the published test models lack, on a random model of one layer."""

from __future__ import annotations

import numpy as np
import pytest
from plans import make_plan

from lowbit.reference import IntLinear, attention, forward, greedy, relu2, rms_norm, rope

IDS = [3, 1, 4, 1, 5]


def changed(**keys):
    return make_plan("llama", 8, 12, 10, 1, 4, 2, 6, 16, norm_eps=0.0, **keys)


CONFIG = changed()


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (8, 12),
        "output": (8, 12),
        "output_norm": (12,),
        "blk.0.attn_norm": (12,),
        "blk.0.attn_q": (24, 12),
        "blk.0.attn_k": (12, 12),
        "blk.0.attn_v": (12, 12),
        "blk.0.attn_q_bias": (24,),
        "blk.0.attn_k_bias": (12,),
        "blk.0.attn_v_bias": (12,),
        "blk.0.attn_q_norm": (6,),
        "blk.0.attn_k_norm": (6,),
        "blk.0.attn_sub_norm": (24,),
        "blk.0.attn_output": (12, 24),
        "blk.0.ffn_norm": (12,),
        "blk.0.ffn_gate": (10, 12),
        "blk.0.ffn_up": (10, 12),
        "blk.0.ffn_sub_norm": (10,),
        "blk.0.ffn_down": (12, 10),
    }
    return {role: rng.normal(size=shape) for role, shape in shapes.items()}


def by_hand(config, w, *, q_bias=0.0, k_bias=0.0, v_bias=0.0):
    """A llama block without feed-forward, its rotation as the config says."""
    x = w["token_embd"][IDS]
    n = rms_norm(x, w["blk.0.attn_norm"], 0.0)
    q = (n @ w["blk.0.attn_q"].T + q_bias).reshape(5, 4, 6)
    k = (n @ w["blk.0.attn_k"].T + k_bias).reshape(5, 2, 6)
    v = (n @ w["blk.0.attn_v"].T + v_bias).reshape(5, 2, 6)
    turned = [rope(a, np.arange(5), config.rope_theta, config.rope_dim, config.rope_pairing) for a in (q, k)]
    x = x + attention(*turned, v) @ w["blk.0.attn_output"].T
    return rms_norm(x, w["output_norm"], 0.0) @ w["output"].T


def test_biases_are_added_to_query_key_and_value(weights):
    weights["blk.0.ffn_down"][:] = 0
    config = changed(attn_bias=True)
    biases = {f"{name}_bias": weights[f"blk.0.attn_{name}_bias"] for name in "qkv"}
    np.testing.assert_allclose(forward(config, weights, IDS), by_hand(config, weights, **biases))


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("rope_dim", [0, 4])
def test_rotation_follows_the_config(weights, pairing, rope_dim):
    weights["blk.0.ffn_down"][:] = 0
    config = changed(rope_pairing=pairing, rope_dim=rope_dim, rope_theta=100.0)
    np.testing.assert_allclose(forward(config, weights, IDS), by_hand(config, weights))


def test_infinite_rope_factors_switch_positions_off(weights):
    config = changed(rope_factors=(np.inf,) * 3)
    logits = forward(config, weights, [1, 2, 3])
    np.testing.assert_allclose(logits[2], forward(config, weights, [2, 1, 3])[2])
    assert not np.allclose(forward(CONFIG, weights, [1, 2, 3])[2], forward(CONFIG, weights, [2, 1, 3])[2])


def test_relu2_gate_with_sub_norm(weights):
    weights["blk.0.attn_output"][:] = 0
    x = weights["token_embd"][IDS]
    n = rms_norm(x, weights["blk.0.ffn_norm"], 0.0)
    gated = relu2(n @ weights["blk.0.ffn_gate"].T) * (n @ weights["blk.0.ffn_up"].T)
    x = x + rms_norm(gated, weights["blk.0.ffn_sub_norm"], 0.0) @ weights["blk.0.ffn_down"].T
    want = rms_norm(x, weights["output_norm"], 0.0) @ weights["output"].T
    np.testing.assert_allclose(forward(changed(activation="relu2", ffn_sub_norm=True), weights, IDS), want)


@pytest.mark.parametrize(
    ("switch", "scaled"),
    [
        ("qk_norm", ["attn_q", "attn_k"]),
        ("attn_sub_norm", ["attn_v"]),
        ("ffn_sub_norm", ["ffn_up"]),
    ],
)
def test_a_norm_cancels_the_size_of_what_feeds_it(weights, switch, scaled):
    larger = weights | {f"blk.0.{role}": 3 * weights[f"blk.0.{role}"] for role in scaled}
    assert not np.allclose(forward(CONFIG, weights, IDS), forward(CONFIG, larger, IDS))
    config = changed(**{switch: True})
    np.testing.assert_allclose(forward(config, weights, IDS), forward(config, larger, IDS))


def test_tied_output_is_the_embedding(weights):
    untied = forward(CONFIG, weights | {"output": weights["token_embd"]}, IDS)
    del weights["output"]
    np.testing.assert_array_equal(forward(changed(tied_embeddings=True), weights, IDS), untied)


def test_quantised_embedding_rows_are_looked_up_at_their_float_value(weights):
    codes = np.random.default_rng(1).integers(-8, 8, (8, 12)).astype(np.int8)
    embedding = IntLinear(codes, np.full((8, 3), 0.5), np.full((8, 3), 0.25))
    quantised = forward(CONFIG, weights | {"token_embd": embedding}, IDS)
    np.testing.assert_array_equal(quantised, forward(CONFIG, weights | {"token_embd": 0.5 * codes - 0.25}, IDS))


def test_activations_are_quantised_only_where_weights_are_integers(weights):
    codes = np.random.default_rng(1).integers(-1, 2, (12, 10)).astype(np.int8)
    floats = forward(CONFIG, weights | {"blk.0.ffn_down": codes.astype(np.float64)}, IDS)
    integers = forward(CONFIG, weights | {"blk.0.ffn_down": IntLinear(codes, 1.0)}, IDS)
    assert 0 < np.abs(floats - integers).max() < 0.2


def test_greedy_takes_the_lowest_of_equal_ids(weights):
    weights["output"][:] = 0
    assert greedy(CONFIG, weights, [3], 4) == [0, 0, 0, 0]
