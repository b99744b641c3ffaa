"""Encoders give the bytes that ggml gives, and refuse what their type cannot hold."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.blocks import dequantize, ternary_codes
from lowbit.quantize import QUANTIZERS, absmean, pack_codes, quantize
from lowbit.quantize.ggml_types import tensor_nbytes
from lowbit.quantize.rounding import round_half_away

SHARED = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"]
"""Types that the gguf package encodes too."""

GGML = {
    "Q4_0": "10f5cd8c3b7b49dc", "Q4_1": "0c39e2eba79c817f", "Q5_0": "1c0bb87d274260bf", "Q5_1": "e65699fab0707504",
    "Q8_0": "17adb6a926fc7c25", "Q4_K": "a2b35f5c5b17083f", "Q5_K": "206c27311e0991b7", "Q6_K": "5040e2dece5d99d7",
    "IQ4_NL": "600374e25e33856a",
}  # fmt: skip
"""SHA-256 of the bytes that `ggml_quantize_chunk` makes of `drawn()` (llama.cpp of llama-cpp-python 0.3.36)."""

RNG = np.random.default_rng(11)
TERNARY_WEIGHTS = RNG.choice(np.float32([-0.043, 0, 0.043]), (4, 256))
FILLS = {
    "random": RNG.normal(size=(5, 512)).astype(np.float32),
    "wide": (RNG.normal(size=(4, 256)) * 10.0 ** RNG.integers(-9, 5, (4, 256))).astype(np.float32).clip(-6e4, 6e4),
    "zeros": np.zeros((2, 256), np.float32),
    "negative zeros": np.full((2, 256), -0.0, np.float32),
    "largest half": np.full((2, 256), 65504, np.float32),
    "smallest half": np.full((2, 256), 2.0**-24, np.float32),
    "below every half": np.full((2, 256), 1e-20, np.float32),
    "ties": np.arange(-256, 256, dtype=np.float32).reshape(2, 256) / 2,
    "just below a tie": np.resize(np.float32([1, 0.49999997, -0.49999997, 0.5, -0.5]), (1, 256)),
    "ternary": TERNARY_WEIGHTS,
    "one negative": np.eye(2, 256, dtype=np.float32) * -3,
}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
def test_bytes_equal_those_of_the_gguf_package(kind, fill):
    gguf = pytest.importorskip("gguf")
    theirs = gguf.quantize(fill, gguf.GGMLQuantizationType[kind])
    assert quantize(kind, fill).tobytes() == theirs.tobytes()


@given(
    arrays(np.float32, (2, 256), elements=st.floats(-65504, 65504, width=32)),
    st.sampled_from(SHARED),
)
@settings(max_examples=150, deadline=None)
def test_bytes_equal_those_of_the_gguf_package_on_drawn_values(weights, kind):
    gguf = pytest.importorskip("gguf")
    # Where a scale has no finite reciprocal, the package converts NaN to an integer; that is nobody's reference.
    weights[np.abs(weights) < 1e-35] = 0
    theirs = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    assert quantize(kind, weights).tobytes() == theirs.tobytes()


def drawn():
    """64 rows of 1024 numbers that no library of random numbers has a say in, most of them small."""
    numbers = (np.arange(1 << 16, dtype=np.uint64) * 2654435761 % 2**32).astype(np.float32) / np.float32(2**32)
    numbers -= np.float32(0.5)
    return (numbers * numbers * numbers).reshape(64, 1024)


@pytest.mark.parametrize("kind", GGML)
def test_bytes_equal_those_of_ggml(kind):
    assert hashlib.sha256(quantize(kind, drawn()).tobytes()).hexdigest()[:16] == GGML[kind]


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_a_block_does_not_depend_on_its_neighbours_nor_on_its_size(kind):
    weights = np.tile(drawn(), (5, 1))  # more than are encoded at a time
    raw = quantize(kind, weights).reshape(5, -1)
    assert (raw == quantize(kind, drawn())).all()
    small, large = (dequantize(kind, quantize(kind, drawn() * np.float32(f)), (64, 1024)) for f in (16, 256))
    assert (large == 16 * small).all()


@pytest.mark.parametrize(("kind", "most"), [("Q4_K", 0.11), ("Q5_K", 0.055), ("Q6_K", 0.03), ("IQ4_NL", 0.11)])
def test_k_quants_lose_no_more_than_their_bits_say(kind, most):
    weights = RNG.standard_t(5, (64, 512)).astype(np.float32)
    back = dequantize(kind, quantize(kind, weights), weights.shape)
    assert np.sqrt(((back - weights) ** 2).mean() / (weights**2).mean()) < most


# The others have no code for 0: an error of a few per cent is theirs.
@pytest.mark.parametrize("kind", sorted(QUANTIZERS.keys() - {"Q4_1", "Q5_1", "Q4_K", "Q5_K", "IQ4_NL"}))
def test_ternary_weights_survive_every_type(kind):
    raw = quantize(kind, TERNARY_WEIGHTS)
    assert raw.dtype == np.uint8
    assert raw.shape == (tensor_nbytes(kind, TERNARY_WEIGHTS.shape),)
    back = dequantize(kind, raw, TERNARY_WEIGHTS.shape)
    assert np.array_equal(np.sign(back), np.sign(TERNARY_WEIGHTS))
    # Q4_0 reaches only 7/8 of the largest magnitude on the side of the other sign.
    rtol = {"F32": 0, "I2_S": 0, "Q4_0": 0.126, "Q5_0": 0.0626, "Q6_K": 2**-6}.get(kind, 2**-8)
    np.testing.assert_allclose(back, TERNARY_WEIGHTS, rtol=rtol)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 1 / 127), ("Q4_0", 1 / 7), ("Q4_1", 1 / 14), ("Q5_0", 1 / 15)],
)
def test_error_is_within_a_step_of_the_largest_value_of_the_block(kind, bound):
    weights = FILLS["random"]
    back = dequantize(kind, quantize(kind, weights), weights.shape)
    largest = np.abs(weights).reshape(-1, 32).max(axis=1, keepdims=True)
    assert (np.abs(back - weights).reshape(-1, 32) <= bound * largest).all()


def test_worked_q4_0_and_q8_0_examples():
    x = (np.arange(32, dtype=np.float32) - 16) / 4
    assert quantize("Q4_0", x).tobytes().hex() == "0038809191a2a2b3b3c4c4d5d5e6e6f7f7f8"
    assert quantize("Q8_0", x)[:8].tobytes().hex() == "0828818991" + "99a1a9"


def test_worked_bf16_examples_round_ties_to_even():
    raw = quantize("BF16", np.float32([1.0, 1.00390625, 1.01171875, 3.14159265])).view("<u2")
    assert [f"{v:04x}" for v in raw] == ["3f80", "3f80", "3f82", "4049"]


def test_worked_i2_s_example():
    pattern = np.resize(np.float32([1, 0, -1, 1, 1, -1, 0]), 128) * np.float32(0.5)
    raw = quantize("I2_S", pattern)
    assert raw[:8].tobytes().hex() == "a4411aa990066aa4"
    assert raw[32:36].tobytes().hex() == "0000003f"
    assert raw.size == 64


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "I2_S"])
def test_codes_and_scales_come_back_from_their_packing(kind):
    codes = RNG.integers(0, 3, (3, 512), np.uint8)
    scales = np.float32([[0.125]]) if kind == "I2_S" else RNG.normal(size=(3, 2)).astype(np.float16).astype(np.float32)
    raw = pack_codes(kind, codes, scales)
    assert raw.size == tensor_nbytes(kind, (3, 512))
    back_codes, back_scales = ternary_codes(kind, raw, (3, 512))
    assert np.array_equal(back_codes, codes)
    assert np.array_equal(back_scales, np.broadcast_to(scales, back_scales.shape))


def test_absmean_is_the_rounded_multiple_of_the_mean_magnitude():
    weights = np.float32([[0.2, -0.9, 3.0, -0.1], [0.0, 0.7, -2.5, 0.6]])
    codes, scale = absmean(weights)
    assert scale == pytest.approx(1.0)
    assert codes.tolist() == [[1, 0, 2, 1], [1, 2, 0, 2]]


def test_absmean_rounds_ties_to_even():
    codes, scale = absmean(np.float32([0.5, -0.5, 1.5, 1.5]))
    assert scale == 1.0
    assert codes.tolist() == [1, 1, 2, 2]


def test_absmean_of_zeros_has_the_smallest_scale():
    codes, scale = absmean(np.zeros((2, 4), np.float32))
    assert scale == np.float32(1e-5)
    assert (codes == 1).all()


def test_absmean_then_packing_keeps_the_model():
    weights = RNG.normal(size=(4, 256)).astype(np.float32)
    codes, scale = absmean(weights)
    values = (codes.astype(np.float32) - 1) * np.float32(scale)
    assert np.array_equal(dequantize("I2_S", pack_codes("I2_S", codes, scale), (4, 256)), values)
    assert np.array_equal(quantize("I2_S", values), pack_codes("I2_S", codes, scale))
    # Also where a block of 256 happens to be all zeros, the scale is that of the tensor.
    codes[1] = 1
    assert ternary_codes("TQ2_0", pack_codes("TQ2_0", codes, 0.5), (4, 256))[1].tolist() == [[0.5]] * 4


def test_i2_s_refuses_weights_that_are_not_ternary():
    for weights in (FILLS["random"], np.resize(np.float32([1, 0.5, 0, -1]), (1, 128))):
        with pytest.raises(FormatError, match="ternary"):
            quantize("I2_S", weights)


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(kind, bad):
    weights = TERNARY_WEIGHTS.copy()
    weights[2, 3] = bad
    with pytest.raises(FormatError, match="infinite or not a number"):
        quantize(kind, weights)


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0", "Q8_0", "Q4_K", "Q5_1", "Q6_K", "IQ4_NL"])
def test_weights_beyond_the_scale_are_refused(kind):
    with pytest.raises(FormatError, match="does not fit"):
        quantize(kind, np.full((1, 256), 1e30, np.float32))


def test_bf16_refuses_to_round_to_infinity():
    with pytest.raises(FormatError, match="BF16"):
        quantize("BF16", np.full((1, 4), np.finfo(np.float32).max))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0", "I2_S"])
def test_rows_that_hold_no_whole_blocks_are_refused(kind):
    with pytest.raises(FormatError, match="multiple"):
        quantize(kind, np.zeros((32, 33), np.float32))


def test_types_without_encoder_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="Q3_K"):
        quantize("Q3_K", np.zeros((1, 256), np.float32))
    with pytest.raises(UnsupportedModelError, match="'Q9'"):
        quantize("Q9", np.zeros((1, 256), np.float32))
    with pytest.raises(UnsupportedModelError, match="not ternary"):
        pack_codes("Q8_0", np.ones((1, 256), np.uint8), 1.0)


@pytest.mark.parametrize(
    ("codes", "scales", "reason"),
    [
        (np.full((1, 256), 3, np.uint8), 1.0, "codes"),
        (np.ones((1, 100), np.uint8), 1.0, "multiple"),
        (np.ones((1, 256), np.uint8), np.nan, "scale"),
        (np.ones((1, 256), np.uint8), [[1.0], [2.0]], "one scale"),
    ],
)
def test_impossible_codes_and_scales_are_refused(codes, scales, reason):
    with pytest.raises(FormatError, match=reason):
        pack_codes("I2_S", codes, scales)


def test_tensors_of_tiny_values_become_zero_not_nonsense():
    for kind in ("Q8_0", "Q6_K", "Q4_K", "Q5_K", "IQ4_NL", "Q4_0", "TQ1_0", "TQ2_0"):
        assert not dequantize(kind, quantize(kind, np.full((1, 256), 1e-40, np.float32)), (1, 256)).any()


@pytest.mark.parametrize("seed", range(4))
def test_q6_k_is_within_a_step_of_its_group_and_its_block(seed):
    rng = np.random.default_rng(seed)
    # Groups of very different sizes: the int8 scales lose at most half a step of the largest group's 128th part.
    weights = (rng.normal(size=(64, 16)) * rng.uniform(0.05, 1, (64, 1))).astype(np.float32).reshape(4, 256)
    error = np.abs(dequantize("Q6_K", quantize("Q6_K", weights), weights.shape) - weights).reshape(4, 16, 16)
    of_group = np.abs(weights).reshape(4, 16, 16).max(axis=2, keepdims=True)
    of_block = of_group.max(axis=1, keepdims=True)
    assert (error <= 1.1 * of_group / 31 + of_block / 128 / 2).all()
    assert np.sqrt((error**2).mean()) < 0.025 * np.sqrt((weights**2).mean())


def test_q6_k_keeps_values_that_fit_it_exactly():
    rng = np.random.default_rng(0)
    codes = rng.integers(-32, 32, (4, 16, 16))
    codes[:, :, 0] = -32
    scales = rng.integers(1, 128, (4, 16, 1))
    scales[:, 0] = -128
    weights = (codes * scales * 2.0**-12).astype(np.float32).reshape(4, 256)
    assert np.array_equal(dequantize("Q6_K", quantize("Q6_K", weights), (4, 256)), weights)


def test_rounding_is_that_of_c():
    x = np.float32([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 8388607.5, 8388609])
    assert round_half_away(x).tolist() == [1, -1, 2, 3, -3, 0, 0, 8388608, 8388609]


def test_non_contiguous_and_double_input_is_encoded_by_value():
    weights = FILLS["random"]
    for kind in sorted(set(QUANTIZERS) - {"I2_S"}):
        assert np.array_equal(quantize(kind, np.asfortranarray(weights.astype(np.float64))), quantize(kind, weights))
