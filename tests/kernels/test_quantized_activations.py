"""Activations become the int8 values that the oracle's float32 arithmetic gives, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit import reference
from lowbit.errors import FormatError
from lowbit.kernels import PackedMatrix, quantize_activations


def matrix_for(cols, group=None):
    block = 64 if group == 64 else None
    return PackedMatrix("u2", 1, cols, group_cols=group, block_cols=block)


def expect_as_the_oracle(x, group, per_token):
    cols = x.shape[1]
    q, scale, sums = quantize_activations(matrix_for(cols, group), x, per_token)
    step = min(group or cols, cols)
    want, s = reference.quantize_activations(x, None if per_token else step)
    starts = range(0, cols, step)
    assert np.array_equal(q[:, :cols], want)
    assert not q[:, cols:].any()
    assert np.array_equal(scale, np.broadcast_to(np.float32(1) / s, (len(x), len(starts))))
    assert np.array_equal(sums, np.add.reduceat(want.astype(np.int32), starts, axis=1))


@pytest.mark.parametrize("cols", [1, 3, 15, 16, 17, 33, 64, 127, 128, 129, 256, 257, 600, 4096])
@pytest.mark.parametrize("group", [None, 64, 128, 256])
@pytest.mark.parametrize("per_token", [False, True])
def test_random_activations_round_as_in_the_oracle(isa, cols, group, per_token):
    x = np.random.default_rng(cols).standard_normal((7, cols)).astype(np.float32)
    x[1:] *= np.float32(10.0) ** np.arange(-6, 0, dtype=np.float32)[:, None]
    expect_as_the_oracle(x, group, per_token)


@pytest.mark.parametrize("per_token", [False, True])
def test_halves_round_to_even(isa, per_token):
    x = np.append(np.arange(-126, 127) + 0.5, 127).astype(np.float32)[None]  # the scale is 1
    expect_as_the_oracle(x, None, per_token)
    q, _, _ = quantize_activations(matrix_for(x.size), x)
    assert (q[0, : x.size - 1] % 2 == 0).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-6, 1e-5, 1.1e-5, -3.0, 3e38])
def test_constant_activations_keep_a_finite_scale(isa, value):
    x = np.full((2, 300), value, np.float32)
    expect_as_the_oracle(x, 128, False)
    assert np.isfinite(quantize_activations(matrix_for(300), x)[1]).all()


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 300)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    ),
    group=st.sampled_from([None, 64, 128, 256]),
    per_token=st.booleans(),
)
def test_any_activations_round_as_in_the_oracle(isa, x, group, per_token):
    expect_as_the_oracle(x, group, per_token)


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 40, 256, 300])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("per_token", [False, True])
def test_what_is_no_number_is_0_and_infinity_is_the_largest(isa, cols, value, per_token):
    x = np.random.default_rng(cols).standard_normal((6, cols)).astype(np.float32)
    x[0, -1] = x[1, 0] = x[2] = x[3, ::2] = x[4, 1::3] = value
    expect_as_the_oracle(x, 128, per_token)
    q, scale, _ = quantize_activations(matrix_for(cols), x)
    assert np.array_equal(q[2, :cols], np.full(cols, 127 * np.sign(np.nan_to_num(value)), np.int8))
    assert np.isfinite(scale).all()


def test_int8_is_never_minus_128(isa):
    x = np.random.default_rng(0).standard_normal((500, 40)).astype(np.float32)
    x[:, 0] = -np.abs(x).max(1)
    assert quantize_activations(matrix_for(40), x)[0].min() == -127


def test_activations_may_be_read_only_and_end_with_a_page(isa, at_end_of_page):
    expect_as_the_oracle(
        at_end_of_page(np.random.default_rng(1).standard_normal((3, 131)).astype(np.float32)), 64, False
    )


def test_float_matrices_quantise_nothing():
    with pytest.raises(FormatError, match="f32"):
        quantize_activations(PackedMatrix("f32", 1, 8), np.zeros((1, 8), np.float32))
    with pytest.raises(FormatError, match="7 columns"):
        quantize_activations(matrix_for(8), np.zeros((1, 7), np.float32))
