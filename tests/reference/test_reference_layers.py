"""Invariants of the parts of a transformer block."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.reference import attention, gated_feed_forward, relu2, rms_norm, rope, silu, softmax, sparsify, top_k


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_rms_norm_makes_the_mean_square_one(rng):
    y = rms_norm(rng.normal(size=(3, 64)) * 100, np.ones(64), eps=0.0)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1.0)


def test_rms_norm_adds_eps_to_the_mean_square():
    np.testing.assert_allclose(rms_norm(np.array([3.0, 4.0]), np.array([2.0, 1.0]), eps=3.5), [1.5, 1.0])


@pytest.mark.parametrize("rope_dim", [0, 8])
def test_rope_pairings_are_permutations_of_each_other(rng, rope_dim):
    x, d = rng.normal(size=(5, 2, 16)), rope_dim or 16
    order = [*range(0, d, 2), *range(1, d, 2), *range(d, 16)]  # adjacent pairs, gathered into halves
    adjacent = rope(x, np.arange(5), 1e4, rope_dim, "adjacent")
    halves = rope(x[..., order], np.arange(5), 1e4, rope_dim, "halves")
    np.testing.assert_allclose(adjacent[..., order], halves, atol=1e-15)


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
def test_rope_products_depend_on_the_distance_alone(rng, pairing):
    q, k = rng.normal(size=(2, 1, 1, 16))
    products = [
        np.sum(rope(q, [p + 7], 1e4, pairing=pairing) * rope(k, [p], 1e4, pairing=pairing)) for p in (0, 3, 100)
    ]
    np.testing.assert_allclose(products, products[0])
    assert not np.isclose(products[0], np.sum(q * k))


def test_rope_turns_pair_zero_by_the_position_in_radians():
    np.testing.assert_allclose(rope(np.array([[[1.0, 0.0]]]), [2], 1e4), [[[np.cos(2), np.sin(2)]]])


def test_rope_factors_divide_the_frequency(rng):
    x = rng.normal(size=(1, 1, 8))
    np.testing.assert_allclose(rope(x, [12], 1e4, factors=[4.0] * 4), rope(x, [3], 1e4))


def test_rope_scale_makes_the_rotated_channels_longer(rng):
    x = rng.normal(size=(1, 2, 8))
    scaled = rope(x, [12], 1e4, rope_dim=6, scale=1.5)
    np.testing.assert_allclose(scaled[..., :6], 1.5 * rope(x, [12], 1e4, rope_dim=6)[..., :6])
    np.testing.assert_array_equal(scaled[..., 6:], x[..., 6:])


def test_rope_leaves_channels_beyond_rope_dim_alone(rng):
    x = rng.normal(size=(4, 2, 16))
    y = rope(x, np.arange(4), 1e4, rope_dim=6)
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])
    np.testing.assert_allclose(y[..., :6], rope(x[..., :6], np.arange(4), 1e4))


def test_attention_ignores_the_future(rng):
    q, k, v = rng.normal(size=(6, 4, 8)), rng.normal(size=(6, 2, 8)), rng.normal(size=(6, 2, 8))
    before = attention(q, k, v)
    k[4:], v[4:] = 1e3, np.inf
    with np.errstate(invalid="ignore"):  # 0 * inf
        after = attention(q[:4], k[:4], v[:4])
    np.testing.assert_array_equal(before[:4], after)
    v[4:] = -7.0
    np.testing.assert_allclose(attention(q, k, v)[:4], before[:4], rtol=1e-12)
    assert not np.allclose(attention(q, k, v)[4:], before[4:])


def test_attention_of_the_last_queries_equals_the_last_rows(rng):
    q, k, v = rng.normal(size=(6, 4, 8)), rng.normal(size=(6, 2, 8)), rng.normal(size=(6, 2, 8))
    np.testing.assert_allclose(attention(q[4:], k, v), attention(q, k, v)[4:])


def test_first_token_attends_to_itself_and_heads_share_grouped_values(rng):
    v = rng.normal(size=(1, 2, 8))
    out = attention(rng.normal(size=(1, 6, 8)), rng.normal(size=(1, 2, 8)), v)
    np.testing.assert_allclose(out.reshape(6, 8), v[0][[0, 0, 0, 1, 1, 1]])


def test_attention_scores_are_divided_by_the_root_of_head_dim():
    q = np.full((1, 1, 4), 1.0)
    k = np.stack([np.full((1, 4), np.log(3) / 2), np.zeros((1, 4))])  # scores ln 3 and 0
    v = np.array([[[1.0] * 4], [[0.0] * 4]])
    np.testing.assert_allclose(attention(q, k, v), [[0.75] * 4])


def test_softmax_is_shift_invariant_and_bounded():
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4 + np.log(3), -np.inf])), [0.25, 0.75, 0.0])


def test_silu_is_x_times_sigmoid_and_never_overflows():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(silu(np.array([-1e5, 0.0, 1.0, 1e5])), [0.0, 0.0, 1 / (1 + np.exp(-1)), 1e5])


def test_gate_is_activated_and_up_is_not():
    gate, up = np.array([[-2.0, 3.0]]), np.array([[5.0, -7.0]])
    assert relu2(gate).tolist() == [[0.0, 9.0]]
    assert gated_feed_forward(gate, up, "relu2").tolist() == [[0.0, -63.0]]
    np.testing.assert_allclose(gated_feed_forward(gate, up, "silu"), silu(gate) * up)


def test_top_k_takes_magnitudes_and_the_lower_index_of_equals():
    x = np.array([[1, -3, 3, 2, -3], [0, 0, 0, 0, 0]])
    assert top_k(x, 2).tolist() == [[1, 2], [0, 1]]
    assert top_k(x, 0).shape == (2, 0)
    assert top_k(x, 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_top_k_ranks_the_smallest_int8_first():
    assert top_k(np.array([127, -128, 3], dtype=np.int8), 1).tolist() == [1]


def test_sparsify_keeps_only_the_top_k():
    assert sparsify(np.array([[1, -3, 3, 2]], dtype=np.int8), 2).tolist() == [[0, -3, 3, 0]]
