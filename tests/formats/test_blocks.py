"""Stored blocks decode to exactly the values that ggml gives them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.blocks import TERNARY, dequantize, integer_codes, is_ternary, ternary_codes
from lowbit.formats.grids import VALUES, grid
from lowbit.formats.iquants import GROUPS
from lowbit.quantize.ggml_types import DECODABLE, TYPES, tensor_nbytes

PATTERN = np.resize(np.float32([1, 0, -1, 1, 1, -1, 0]), 256) * np.float32(0.5)

TQ2_0_HEAD = bytes.fromhex("1a41a46a0690a91a")
TQ1_0_HEAD = bytes.fromhex("ee5b38fac912a9ee")
I2_S_HEAD = bytes.fromhex("a4411aa990066aa4")


SCALE_AT = {"TQ1_0": 52, "TQ2_0": 64, "Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "PTQ1_0": 26, "STQ1_0": 40}
"""Where the scale stands in blocks that do not begin with it."""


def raw_of(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bytes with finite scales and no code 3."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, tensor_nbytes(kind, shape), np.uint8)
    if kind in ("TQ2_0", "I2_S", "Q2_0", "PQ2_0"):
        raw &= ~((raw & (raw >> 1) & 0x55) * 3)
    row = TYPES[kind]
    if kind == "MXFP4":
        raw.reshape(-1, 17)[:, 0] %= 253
    elif kind == "IQ1_M":
        raw.reshape(-1, 56)[:, 55] &= 0x3F  # the upper bits of the scale's exponent
    elif row.block_elements > 1 and not row.tail_bytes:
        at = SCALE_AT.get(kind, 0)
        n = 2 if kind in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K") else 1  # a scale, or a scale and a minimum
        halves = rng.normal(size=(raw.size // row.block_bytes, n)).astype("<f2")
        raw.reshape(-1, row.block_bytes)[:, at : at + 2 * n] = halves.view(np.uint8)
    if row.tail_bytes:
        raw[-32:-28] = np.float32([0.75]).view(np.uint8)
    return raw


K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_TYPES, "TQ1_0", "TQ2_0", *GROUPS]
)
@pytest.mark.parametrize("shape", [(256,), (3, 512), (2, 3, 256)])
def test_values_equal_those_of_the_gguf_package(kind, shape):
    gguf = pytest.importorskip("gguf")
    raw = raw_of(kind, shape, seed=len(shape))
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    ours = dequantize(kind, raw, shape)
    assert ours.dtype == np.float32
    assert ours.shape == shape
    assert np.array_equal(ours.reshape(-1), theirs.reshape(-1), equal_nan=True)


ONLY_OURS = {
    "PQ2_0",
    "PTQ1_0",
    "STQ1_0",
    "I2_S",
    "I8_S",
    "TL1",
    "TL2",
    "Q8_L2C",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
}


@pytest.mark.parametrize("kind", sorted(set(TYPES) - ONLY_OURS))
def test_sizes_and_numbers_equal_those_of_the_gguf_package(kind):
    gguf = pytest.importorskip("gguf")
    row = TYPES[kind]
    if kind not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"the gguf package does not know {kind}")
    number = gguf.GGMLQuantizationType[kind]
    assert row.number == number
    assert gguf.GGML_QUANT_SIZES[number] == (row.block_elements, row.block_bytes)


@pytest.mark.parametrize(("kind", "head"), [("TQ2_0", TQ2_0_HEAD), ("TQ1_0", TQ1_0_HEAD)])
def test_worked_examples_decode_to_their_pattern(kind, head):
    from lowbit.quantize import quantize

    raw = quantize(kind, PATTERN)
    assert raw[:8].tobytes() == head
    assert raw[-2:].tobytes() == b"\x00\x38"
    assert np.array_equal(dequantize(kind, raw, (256,)), PATTERN)


def test_i2_s_example_decodes_to_its_pattern():
    codes = (PATTERN[:128] * 2 + 1).astype(np.uint8).reshape(4, 32)
    packed = codes[0] << 6 | codes[1] << 4 | codes[2] << 2 | codes[3]
    assert packed[:8].tobytes() == I2_S_HEAD
    raw = np.concatenate([packed, np.frombuffer(b"\x00\x00\x00\x3f" + b"\xee" * 28, np.uint8)])
    assert np.array_equal(dequantize("I2_S", raw, (128,)), PATTERN[:128])


def test_i2_s_runs_of_128_go_on_across_rows():
    raw = np.zeros(128 + 32, np.uint8)
    raw[-32:-28] = np.float32([2]).view(np.uint8)
    raw[0] = 0b10_01_00_10
    raw[64 + 31] = 0b00_00_00_01
    codes, scales = ternary_codes("I2_S", raw, (2, 256))
    expected = np.zeros((2, 256), np.uint8)
    expected[0, [0, 32, 96]] = 2, 1, 2
    expected[1, 127] = 1
    assert np.array_equal(codes, expected)
    assert scales.tolist() == [[2], [2]]


def test_int8_groups_of_llama2c_decode_group_by_group():
    values = np.arange(-4, 4, dtype=np.int8)
    raw = np.concatenate([values.view(np.uint8), np.float32([0.5, 2]).view(np.uint8)])
    assert dequantize("Q8_L2C", raw, (2, 4)).tolist() == [[-2, -1.5, -1, -0.5], [0, 2, 4, 6]]
    with pytest.raises(FormatError, match="Q8_L2C"):
        dequantize("Q8_L2C", raw[:-1], (2, 4))


@pytest.mark.parametrize("kind", sorted(TERNARY))
def test_codes_times_scales_are_the_values(kind):
    raw = raw_of(kind, (5, 512), seed=9)
    codes, scales = ternary_codes(kind, raw, (5, 512))
    assert codes.dtype == np.uint8
    assert codes.shape == (5, 512)
    assert codes.max() == 2
    assert scales.dtype == np.float32
    assert scales.shape == (5, 1 if kind == "I2_S" else 512 // TYPES[kind].block_elements)
    weights = (codes.astype(np.float32) - 1) * np.repeat(scales, 512 // scales.shape[1], axis=1)
    assert np.array_equal(weights, dequantize(kind, raw, (5, 512)))


@pytest.mark.parametrize(("kind", "group"), [("Q2_0", 64), ("PQ2_0", 128)])
def test_neighbouring_codes_of_q2_0_share_a_byte_and_the_scale_comes_first(kind, group):
    raw = np.full(2 + group // 4, 0b01_01_01_01, np.uint8)
    raw[:2] = np.float16([0.5]).view(np.uint8)
    raw[2] = 0b10_01_00_10
    raw[-1] = 0b00_01_01_01
    expected = np.zeros(group, np.float32)
    expected[[0, 1, 3, -1]] = 0.5, -0.5, 0.5, -0.5
    assert dequantize(kind, raw, (group,)).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["TQ2_0", "I2_S", "Q2_0", "PQ2_0"])
@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_code_3_anywhere_is_not_ternary(kind, shift):
    raw = raw_of(kind, (2, 256), seed=1)
    assert is_ternary(kind, raw)
    raw[40] |= 3 << shift
    with pytest.raises(FormatError, match="code"):
        ternary_codes(kind, raw, (2, 256))
    if kind in ("TQ2_0", "I2_S"):
        with pytest.raises(FormatError, match="code"):
            dequantize(kind, raw, (2, 256))
    else:  # where it is +2
        assert not is_ternary(kind, raw)
        codes, scales = integer_codes(kind, raw, (2, 256))
        assert (codes == 2).sum() == 1
        weights = codes * np.repeat(scales, 256 // scales.shape[1], axis=1)
        assert np.array_equal(dequantize(kind, raw, (2, 256)), weights)


VECTORS = {
    "IQ1_S": "701690d506b3", "IQ1_M": "e32c1f1b54f6", "IQ2_XXS": "18d68de4fbc5", "IQ2_XS": "9b70d95e3dba",
    "IQ2_S": "553f42e7d1da", "IQ3_XXS": "b8e9065897eb", "IQ3_S": "191cbbf76ea7", "IQ4_NL": "bdbef7f5fc75",
    "IQ4_XS": "898321aead95", "MXFP4": "8b0c32e03be9", "Q1_0": "e66d8cc11cba", "Q2_0": "7258528d9490",
    "PQ2_0": "a7b2791034cb", "PTQ1_0": "95d9befed912", "STQ1_0": "e267895cbc4f",
}  # fmt: skip
"""Beginnings of the SHA-256 of the values of a block whose byte i is 37 i mod 251, with a scale of 1 (IQ1_M: as is)."""


@pytest.mark.parametrize("kind", VECTORS)
def test_one_known_block_has_known_values(kind):
    row = TYPES[kind]
    block = (37 * np.arange(row.block_bytes) % 251).astype(np.uint8)
    if kind == "MXFP4":
        block[0] = 127
    elif kind != "IQ1_M":
        block[SCALE_AT.get(kind, 0) :][:2] = np.float16([1]).view(np.uint8)
    values = dequantize(kind, block, (row.block_elements,))
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:12] == VECTORS[kind]


@pytest.mark.parametrize("name", VALUES)
def test_grids_are_those_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf")
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    assert np.array_equal(grid(name), np.asarray(theirs.grid).reshape(theirs.grid_shape))
    assert grid(name).dtype == np.int8


@pytest.mark.parametrize("kind", sorted(GROUPS))
def test_small_integers_times_scales_are_the_values(kind):
    raw = raw_of(kind, (5, 512), seed=9)
    codes, scales = integer_codes(kind, raw, (5, 512))
    assert (codes.dtype, codes.shape) == (np.int8, (5, 512))
    assert (scales.dtype, scales.shape) == (np.float32, (5, 512 // GROUPS[kind]))
    weights = codes.astype(np.float64) * np.repeat(scales, GROUPS[kind], axis=1)
    assert np.array_equal(weights, dequantize(kind, raw, (5, 512)))  # float32 holds the products exactly


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q2_0", "PQ2_0", "PTQ1_0"])
def test_codes_and_scales_survive_being_stored(kind):
    from lowbit.quantize import pack_codes

    rng = np.random.default_rng(6)
    codes = rng.integers(0, 3, (3, 512)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, (3, 512 // TYPES[kind].block_elements)).astype(np.float16).astype(np.float32)
    raw = pack_codes(kind, codes, scales)
    assert raw.nbytes == tensor_nbytes(kind, (3, 512))
    for stored, read in zip((codes, scales), ternary_codes(kind, raw, (3, 512)), strict=True):
        assert np.array_equal(stored, read)
    # Bytes that hold no digits but those of codes are written as they were read.
    assert np.array_equal(pack_codes(kind, *ternary_codes(kind, raw, (3, 512))), raw)


@pytest.mark.parametrize("exponent", [253, 254, 255])
def test_a_power_of_two_beyond_float32_is_refused(exponent):
    raw = raw_of("MXFP4", (64,), seed=0)
    raw[17] = exponent
    with pytest.raises(FormatError, match="scale"):
        dequantize("MXFP4", raw, (64,))


def test_every_byte_of_tq1_0_decodes_to_codes_below_3():
    raw = raw_of("TQ1_0", (256, 256), seed=2).reshape(256, 54)
    raw[:, :52] = np.arange(256, dtype=np.uint8)[:, None]
    assert ternary_codes("TQ1_0", raw.reshape(-1), (256, 256))[0].max() == 2


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", sorted(DECODABLE - {"F32", "F16", "BF16", "MXFP4"}))
def test_scales_that_are_not_finite_are_refused(kind, bad):
    shape = (2, 256)
    if kind == "Q8_L2C":
        raw = np.concatenate([np.zeros(512, np.uint8), np.float32([1, bad]).view(np.uint8)])
    else:
        raw = raw_of(kind, shape, seed=3)
        if kind == "I2_S":
            raw[-32:-28] = np.float32([bad]).view(np.uint8)
        else:
            block = raw.reshape(-1, TYPES[kind].block_bytes)[1]
            if kind == "IQ1_M":  # a nibble in each of four places
                block[49::2] = block[49::2] & 0x0F | [
                    int(x, 16) << 4 for x in f"{np.float16(bad).view(np.uint16):04x}"[::-1]
                ]
            else:
                block[SCALE_AT.get(kind, 0) :][:2] = np.float16([bad]).view(np.uint8)
    with pytest.raises(FormatError, match="scale"):
        dequantize(kind, raw, shape)


@pytest.mark.parametrize("kind", sorted(DECODABLE - {"Q8_L2C"}))
def test_unaligned_read_only_bytes_decode_the_same(kind):
    raw = raw_of(kind, (2, 256), seed=4)
    shifted = np.frombuffer(b"\x00" + raw.tobytes(), np.uint8)[1:]
    assert np.array_equal(dequantize(kind, shifted, (2, 256)), dequantize(kind, raw, (2, 256)), equal_nan=True)


@pytest.mark.parametrize("kind", sorted(DECODABLE))
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_number_of_bytes_is_refused(kind, change):
    size = 260 if kind == "Q8_L2C" else tensor_nbytes(kind, (256,))
    with pytest.raises(FormatError):
        dequantize(kind, np.zeros(size + change, np.uint8), (256,))


def test_types_without_decoder_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="NVFP4"):
        dequantize("NVFP4", np.zeros(36, np.uint8), (64,))
    with pytest.raises(UnsupportedModelError, match="'nonsense'"):
        dequantize("nonsense", np.zeros(1, np.uint8), (1,))
    with pytest.raises(UnsupportedModelError, match="Q8_0 is not ternary"):
        ternary_codes("Q8_0", np.zeros(34, np.uint8), (32,))


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("F32", (), "0 dimensions"),
        ("F32", (1,) * 5, "5 dimensions"),
        ("F32", (4, 0), "below 1"),
        ("F32", (-1, -1), "below 1"),
        ("F32", (2**32, 2**31), "too many"),
        ("Q8_0", (2, 33), "multiple"),
        ("I2_S", (2, 64), "multiple"),
    ],
)
def test_impossible_shapes_have_no_size(kind, shape, reason):
    with pytest.raises(FormatError, match=reason):
        tensor_nbytes(kind, shape)


def test_sizes_beyond_64_bits_are_exact():
    assert tensor_nbytes("F64", (2**62 + 1,)) == 2**65 + 8


def test_type_whose_size_is_not_in_the_file_says_so():
    with pytest.raises(UnsupportedModelError, match=r"TL2.*tile sizes"):
        tensor_nbytes("TL2", (256,))
