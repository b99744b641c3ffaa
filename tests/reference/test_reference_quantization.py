"""The oracle's integers: what rounds where, and that the integer products are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.reference import (
    FloatLinear,
    IntLinear,
    TernaryLinear,
    int_matmul,
    quantize_activations,
    quantize_weights_absmean,
    ternary_matmul,
)

finite = st.floats(-(2.0**100), 2.0**100, width=32)


def test_halves_round_to_the_even_integer():
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])  # s is exactly 1
    q, s = quantize_activations(x)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
    assert s.tolist() == [[1.0]]


def test_product_is_rounded_to_float32_before_it_is_rounded_to_an_integer():
    largest, x = np.float32(267.88248), np.float32(41.13156)
    s = np.float32(127) / largest
    assert np.rint(float(x) * float(s)) == 19
    assert quantize_activations(np.array([[largest, x]]))[0].tolist() == [[127, 20]]


def test_scale_is_rounded_to_float32_before_it_multiplies():
    largest, x = np.float32(237.5574), np.float32(49.569065)
    assert np.rint(np.float32(float(x) * (127 / float(largest)))) == 26
    assert quantize_activations(np.array([[largest, x]]))[0].tolist() == [[127, 27]]


@given(arrays(np.float32, (3, 10), elements=finite))
def test_quantised_activations_recover_within_half_a_step(x):
    q, s = quantize_activations(x)
    assert s.dtype == np.float32
    assert q.dtype == np.int8
    assert q.min() >= -127
    error = np.abs(x.astype(np.float64) * s - q)
    assert (error <= 0.5 + 1e-4).all()


def test_largest_magnitude_has_a_floor():
    q, s = quantize_activations(np.array([[0.0, 0.0], [1e-7, -1e-6]]))
    assert q.tolist() == [[0, 0], [1, -13]]
    assert (s == np.float32(127) / np.float32(1e-5)).all()


def test_each_group_is_quantised_as_a_row_of_its_own_and_the_last_may_be_short():
    x = np.random.default_rng(0).normal(size=(4, 70)) * np.geomspace(1, 1e3, 70)
    q, s = quantize_activations(x, group=32)
    assert s.shape == (4, 3)
    for g, part in enumerate((slice(0, 32), slice(32, 64), slice(64, 70))):
        q_part, s_part = quantize_activations(x[:, part])
        np.testing.assert_array_equal(q[:, part], q_part)
        np.testing.assert_array_equal(s[:, [g]], s_part)


def test_absmean_rounds_half_the_mean_to_zero():
    values, scale = quantize_weights_absmean(np.array([[2.0, -1.0, 0.5, -0.5]]))  # mean magnitude 1
    assert scale == 1
    assert values.tolist() == [[1, -1, 0, 0]]


def test_absmean_returns_ternary_weights_unchanged_in_sign():
    ternary = np.random.default_rng(1).integers(-1, 2, size=(16, 64))
    values, scale = quantize_weights_absmean(ternary * 0.125)
    np.testing.assert_array_equal(values, ternary)
    assert scale == np.float32(0.125 * np.abs(ternary).mean())


@pytest.mark.parametrize("k", [1, 3, 255, 256, 4096])
@pytest.mark.parametrize("fill", ["random", "minimum", "maximum"])
def test_ternary_sums_are_exact(k, fill):
    rng = np.random.default_rng(k)
    w = {"random": rng.integers(-1, 2, (5, k)), "minimum": np.full((5, k), -1), "maximum": np.ones((5, k))}[fill]
    x = rng.integers(-128, 128, (3, k)) if fill == "random" else np.full((3, k), -128)
    want = [[sum(int(a) * int(b) for a, b in zip(row, token, strict=True)) for row in w] for token in x]
    got = ternary_matmul(w.astype(np.int8), x.astype(np.int8))
    assert got.dtype == np.int32
    assert got.tolist() == want
    assert int_matmul(w.astype(np.int8), x.astype(np.int8)).tolist() == want


def test_a_weight_that_is_not_ternary_is_refused():
    bad = np.array([[0, 2]], dtype=np.int8)
    with pytest.raises(ValueError, match="ternary"):
        ternary_matmul(bad, bad)
    with pytest.raises(ValueError, match="ternary"):
        TernaryLinear(bad, 1.0)


def test_eight_bit_sums_are_exact_at_the_extremes():
    w, x = np.full((2, 60000), 255, dtype=np.uint8), np.full((1, 60000), -128, dtype=np.int8)
    assert int_matmul(w, x).tolist() == [[-255 * 128 * 60000] * 2]


SCALES = {
    "tensor": 0.25,
    "row": np.array([0.5, 1.0, 2.0]),
    "row and group": np.arange(1, 13).reshape(3, 4) / 8,
}


@pytest.mark.parametrize("activation_quant", ["token", "group"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("minimum", [0.0, 0.75])
def test_integer_layer_is_its_float_weight_times_the_recovered_activations(scale, minimum, activation_quant):
    rng = np.random.default_rng(2)
    layer = IntLinear(rng.integers(-8, 8, (3, 1024)).astype(np.int8), scale, minimum)
    assert layer.group == (256 if np.ndim(scale) == 2 else 1024)
    x = rng.normal(size=(2, 1024))
    q, s = quantize_activations(x, 1024 if activation_quant == "token" else 256)
    recovered = (q.reshape(2, -1, 1024 // s.shape[1]) / s[..., None].astype(np.float64)).reshape(2, 1024)
    np.testing.assert_allclose(layer(x, activation_quant), recovered @ layer.weight.T, rtol=1e-12, atol=1e-10)


def test_weight_groups_apply_to_their_own_channels():
    layer = TernaryLinear(np.ones((1, 5), dtype=np.int8), np.array([[1.0, 10.0]]))  # groups of 3 and 2
    assert layer.weight.tolist() == [[1, 1, 1, 10, 10]]
    x = np.array([[127.0, 0, 0, 1, 1]])
    assert layer(x, "token").tolist() == [[147.0]]


def test_activation_groups_follow_small_weight_groups():
    layer = TernaryLinear(np.ones((1, 4), dtype=np.int8), np.array([[1.0, 1.0]]))
    x = np.array([[1000.0, 0, 1, 1]])  # beside 1000, 1 is less than half a step
    assert layer(x, "token")[0, 0] == pytest.approx(1000)
    assert layer(x, "group")[0, 0] == pytest.approx(1002)


def test_float_layer_does_not_quantise_activations():
    x = np.array([[1000.0, 1e-3]])
    layer = FloatLinear(np.array([[1.0, 1.0]], dtype=np.float32))
    assert layer(x, "token") == layer(x, "group") == 1000.001
