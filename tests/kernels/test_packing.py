"""Packing keeps every weight, and lets no weight or scale through that the kernels do not expect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import FormatError
from lowbit.formats.blocks import dequantize
from lowbit.kernels import PackedMatrix, pack_ternary, unpack_ternary
from lowbit.quantize import quantize

BLOCKS = {
    "TQ2_0": ("u2", 256), "I2_S": ("u2", 128), "Q4_0": ("u4", 32), "Q4_1": ("u4m", 32), "IQ4_NL": ("iq4", 32),
    "Q5_0": ("u5", 32), "Q5_1": ("u5m", 32), "Q8_0": ("u8", 32),
}  # fmt: skip
SCALES = [("TQ2_0", 64), ("Q4_0", 0), ("Q4_1", 0), ("Q4_1", 2), ("Q5_0", 0), ("Q5_1", 0), ("Q5_1", 2), ("Q8_0", 0)]
"""Types, and where a block has its scale or minimum."""
SIZES = (1, 3, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257)


def stored(kind, rows, cols, seed=0):
    """Bytes of a tensor of random weights; ternary ones have one magnitude, as I2_S needs."""
    rng = np.random.default_rng(seed)
    if kind.startswith("Q5"):  # which nothing encodes
        raw = rng.integers(0, 256, (rows * cols // 32, 22 if kind == "Q5_0" else 24), np.uint8)
        floats = 1 if kind == "Q5_0" else 2
        raw[:, : 2 * floats] = rng.standard_normal((len(raw), floats)).astype("<f2").view(np.uint8)
        return raw.reshape(-1)
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    if BLOCKS[kind][0] == "u2":
        values = rng.integers(-1, 2, (rows, cols)).astype(np.float32) * np.float32(0.375)
    return np.asarray(quantize(kind, values)).reshape(-1).view(np.uint8)


def filled(kind, raw, rows, cols, threads=1):
    form, group = BLOCKS[kind]
    if kind == "I2_S":
        w = PackedMatrix(form, rows, cols)
        w.fill_blocks(kind, raw, rows, float(raw[-32:-28].copy().view("<f4")[0]), 0, threads)
    else:
        w = PackedMatrix(form, rows, cols, group_cols=group, scales_f16=True)
        w.fill_blocks(kind, raw, rows, None, 0, threads)
    return w


@pytest.mark.parametrize("rows", SIZES)
def test_unpacking_gives_back_what_was_packed(rows):
    for cols in (*SIZES, 4096):
        w = np.random.default_rng(cols).integers(-1, 2, (rows, cols), dtype=np.int8)
        assert np.array_equal(unpack_ternary(pack_ternary(w)), w), cols


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), cols=st.integers(1, 520), blocks=st.integers(1, 8), seed=st.integers(0, 1 << 30))
def test_unpacking_any_block_size_gives_back_what_was_packed(rows, cols, blocks, seed):
    w = np.random.default_rng(seed).integers(-1, 2, (rows, cols), dtype=np.int8)
    packed = PackedMatrix("u2", rows, cols, block_cols=16 * blocks)
    packed.fill_codes((w + 1).view(np.uint8))
    packed.fill_scales(np.full((rows, 1), 0.5, np.float32))
    assert np.array_equal(unpack_ternary(packed), w)
    assert np.array_equal(packed.rows(range(rows)), w * np.float32(0.5))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_any_integer_type_packs_alike(dtype):
    w = np.array([[0, 1, 1], [1, 0, 0]])
    assert np.array_equal(unpack_ternary(pack_ternary(w.astype(dtype))), w)


def test_scale_is_the_value_of_a_weight():
    w = np.array([[1, 0, -1, 1]])
    assert np.array_equal(pack_ternary(w, 0.125).rows([0]), w * np.float32(0.125))


@pytest.mark.parametrize(
    "w",
    [
        np.full((2, 3), 2),
        np.full((2, 3), -2),
        np.full((2, 3), 257),
        np.full((2, 3), 2**63, np.uint64),
        np.ones((2, 3)),
        np.ones(3, int),
        np.ones((1, 2, 3), int),
        np.ones((0, 3), int),
        np.ones((3, 0), int),
        [["a"]],
    ],
    ids=["2", "-2", "257", "2**63", "floats", "vector", "cube", "no rows", "no columns", "text"],
)
def test_only_matrices_of_ternary_integers_are_packed(w):
    with pytest.raises(FormatError, match="ternary weights"):
        pack_ternary(w)


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 1e39])
def test_scales_must_be_finite(scale):
    with pytest.raises(FormatError, match="not finite"):
        pack_ternary([[1]], scale)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_stored_blocks_keep_their_values(kind, rows, blocks):
    cols = BLOCKS[kind][1] * blocks
    raw = stored(kind, rows, cols, rows)
    want = dequantize(kind, raw, (rows, cols))
    for threads in (1, 2, 3):
        assert np.array_equal(filled(kind, raw, rows, cols, threads).rows(range(rows)), want)


@pytest.mark.parametrize("kind", BLOCKS)
def test_stored_bytes_may_be_unaligned_and_read_only(kind, at_end_of_page):
    raw = at_end_of_page(stored(kind, 17, 256))
    shifted = np.concatenate([np.zeros(1, np.uint8), raw])[1:]
    want = dequantize(kind, raw, (17, 256))
    assert np.array_equal(filled(kind, raw, 17, 256).rows(range(17)), want)
    assert np.array_equal(filled(kind, shifted, 17, 256).rows(range(17)), want)


@pytest.mark.parametrize("kind", BLOCKS)
def test_tensors_side_by_side_keep_their_values(kind):
    form, group = BLOCKS[kind]
    first, second = stored(kind, 32, 256, 1), stored(kind, 17, 256, 2)
    scale = 0.375 if kind == "I2_S" else None
    w = PackedMatrix(form, 49, 256, group_cols=None if scale else group, scales_f16=scale is None)
    w.fill_blocks(kind, second, 17, scale, 32)
    w.fill_blocks(kind, first, 32, scale, 0)
    want = np.concatenate([dequantize(kind, first, (32, 256)), dequantize(kind, second, (17, 256))])
    assert np.array_equal(w.rows(range(49)), want)


def test_blocks_of_scale_zero_are_zeros_under_a_common_scale():
    raw = stored("TQ2_0", 16, 512).reshape(-1, 66).copy()
    raw[3, 64:] = 0
    w = PackedMatrix("u2", 16, 512)
    w.fill_blocks("TQ2_0", raw.reshape(-1), 16, 0.375)
    assert np.array_equal(w.rows(range(16)), dequantize("TQ2_0", raw.reshape(-1), (16, 512)))
    assert not w.rows([1])[0, 256:].any()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (17, 256), (70, 96)])
def test_floats_are_rounded_as_q8_0_rounds_them(kind, rows, cols):
    values = np.random.default_rng(rows).standard_normal((rows, cols)).astype(np.float32)
    values[0] = 0
    raw = np.asarray(quantize(kind, values)).reshape(-1).view(np.uint8)
    want = dequantize("Q8_0", quantize("Q8_0", dequantize(kind, raw, values.shape)), values.shape)
    for threads in (1, 2):
        w = PackedMatrix("u8", rows, cols, group_cols=32, scales_f16=True)
        w.fill_rounded(kind, raw, rows, 0, threads)
        assert np.array_equal(w.rows(range(rows)), want)


def test_halves_are_rounded_away_from_zero_and_what_is_below_is_not():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    values = np.array([127, 0.5, -0.5, below, -below, 1.5, -1.5, 126.5, 0, -127] + [0] * 22, np.float32)[None]
    w = PackedMatrix("u8", 1, 32, group_cols=32, scales_f16=True)
    w.fill_rounded("F32", values.reshape(-1).view(np.uint8), 1)
    assert w.rows([0])[0, :10].tolist() == [127, 1, -1, 0, 0, 2, -2, 127, 0, -127]


@pytest.mark.parametrize("cols", [1, 3, 31, 33, 65])
def test_rows_that_end_within_a_block_are_rounded_to_half_a_step(cols):
    values = np.random.default_rng(cols).standard_normal((19, cols)).astype(np.float32)
    w = PackedMatrix("u8", 19, cols, group_cols=32, scales_f16=True)
    w.fill_rounded("F32", values.reshape(-1).view(np.uint8), 19)
    for start in range(0, cols, 32):
        block = values[:, start : start + 32]
        step = np.abs(block).max(1, keepdims=True) / 127
        assert (
            np.abs(w.rows(range(19))[:, start : start + 32] - block) <= 0.57 * step
        ).all()  # 0.07 for float16 scales


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e7])
def test_floats_that_8_bits_cannot_hold_are_refused(bad):
    values = np.ones((17, 64), np.float32)
    values[16, 63] = bad
    w = PackedMatrix("u8", 17, 64, group_cols=32, scales_f16=True)
    with pytest.raises(FormatError, match="finite"):
        w.fill_rounded("F32", values.reshape(-1).view(np.uint8), 17)


@pytest.mark.parametrize("kind", ["TQ2_0", "I2_S"])
@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_code_3_is_refused(kind, shift):
    raw = stored(kind, 33, 256).copy()
    raw[raw.size // 2 // 66 * 66 + 5] = 3 << shift
    with pytest.raises(FormatError, match="code 3"):
        filled(kind, raw, 33, 256)


@pytest.mark.parametrize(("form", "code"), [("u2", 3), ("u2", 255), ("u4", 16)])
def test_codes_out_of_range_are_refused(form, code):
    codes = np.zeros((17, 40), np.uint8)
    codes[16, 39] = code
    with pytest.raises(FormatError, match="code"):
        PackedMatrix(form, 17, 40).fill_codes(codes)


@pytest.mark.parametrize(("kind", "at"), SCALES)
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_stored_scales_and_minima_must_be_finite(kind, at, scale):
    raw = stored(kind, 20, 256).copy()
    raw[at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    with pytest.raises(FormatError, match="not finite"):
        filled(kind, raw, 20, 256)


def test_a_common_scale_must_be_finite():
    with pytest.raises(FormatError, match="not finite"):
        PackedMatrix("u2", 16, 128).fill_blocks("I2_S", stored("I2_S", 16, 128), 16, np.nan)


@pytest.mark.parametrize("kind", BLOCKS)
def test_truncated_tensors_are_refused(kind):
    raw = stored(kind, 20, 256)[:-33]
    for short in (raw, raw[:0]):
        scale, options = (0.5, {}) if kind == "I2_S" else (None, {"group_cols": BLOCKS[kind][1], "scales_f16": True})
        with pytest.raises(FormatError, match="too few"):
            PackedMatrix(BLOCKS[kind][0], 20, 256, **options).fill_blocks(kind, short, 20, scale)
    with pytest.raises(FormatError, match="too few"):
        PackedMatrix("f32", 20, 256).fill_floats(raw[:100], 20)


@pytest.mark.parametrize(
    ("first", "rows"), [(0, 0), (0, 50), (0, 17), (8, 16), (-16, 16), (48, 2), (40, 9), (64, 1), (1 << 40, 16)]
)
def test_rows_must_lie_in_the_matrix_and_fill_row_groups(first, rows):
    w = PackedMatrix("u2", 49, 128)
    with pytest.raises(FormatError, match="row"):
        w.fill_blocks("I2_S", np.full(64 * 32, 0x55, np.uint8), rows, 1.0, first)


@pytest.mark.parametrize(
    "arguments",
    [
        ("u7", 1, 1),
        ("u2", 0, 1),
        ("u2", 1, 0),
        ("u2", -16, 16),
        ("u2", 1 << 30, 1),
        ("u2", 1, (1 << 18) + 1),
        ("u8", 1, (1 << 16) + 1),
        ("u2", 16, 256, 100),
        ("u2", 16, 256, 64),
        ("u4", 16, 256, 16),
        ("u2", 16, 256, None, False, 8),
        ("u2", 16, 256, None, False, 144),
        ("u8", 16, 256, None, False, 6),
        ("u2", 16, 256, -128),
        ("u8", 16, 256, None, False, -4),
        ("u2", 16, 128, None, False, -16),
        ("u6", 16, 256, 8),
        ("u6", 16, 256, 48),
        ("u6", 16, 256, 16, False, 16),
        ("u6", 16, 100, 16, False, None, True),
        ("u6", 16, 256, 64, False, None, True),
        ("u6", 16, 256, 16, True, None, True),
        ("u8", 16, 256, 32, False, None, True),
    ],
    ids=str,
)
def test_impossible_matrices_are_refused(arguments):
    with pytest.raises(FormatError):
        PackedMatrix(*arguments)


def test_fills_refuse_what_does_not_fit():
    ternary, grouped = PackedMatrix("u2", 16, 256), PackedMatrix("u2", 16, 256, group_cols=256, scales_f16=True)
    floats = PackedMatrix("f32", 16, 256)
    raw = stored("TQ2_0", 16, 256)
    for fill in (
        lambda: ternary.fill_blocks("TQ2_0", raw, 16),  # has no float16 scales to fill
        lambda: grouped.fill_blocks("TQ2_0", raw, 16, 0.5),
        lambda: ternary.fill_blocks("Q8_0", raw, 16, 0.5),
        lambda: ternary.fill_blocks("F32", raw, 16, 0.5),
        lambda: PackedMatrix("u4m", 16, 256).fill_blocks("Q4_1", stored("Q4_1", 16, 256), 16, 0.5),
        lambda: PackedMatrix("u8", 16, 256, 32, True).fill_rounded("Q4_1", stored("Q4_1", 16, 256), 16),
        lambda: PackedMatrix("u4m", 16, 256).fill_scales(np.zeros((16, 1), np.float32)),
        lambda: ternary.fill_scales(np.zeros((16, 1), np.float32), minima=np.zeros((16, 1), np.float32)),
        lambda: PackedMatrix("u2", 16, 200).fill_blocks("I2_S", raw, 16, 0.5),
        lambda: ternary.fill_codes(np.zeros((16, 255), np.uint8)),
        lambda: ternary.fill_codes(np.zeros((17, 256), np.uint8)),
        lambda: ternary.fill_scales(np.zeros((16, 2), np.float32)),
        lambda: grouped.fill_scales(np.full((16, 1), 1e-9, np.float32)),  # no float16 number
        lambda: ternary.fill_floats(raw, 1),
        lambda: floats.fill_codes(np.zeros((16, 256), np.uint8)),
        lambda: floats.fill_scales(np.zeros((16, 1), np.float32)),
        lambda: PackedMatrix("t5", 16, 256).fill_dense(grouped),  # scales in float16, of 256 columns
        lambda: PackedMatrix("t5", 16, 256, 128).fill_dense(ternary),
        lambda: PackedMatrix("t5", 16, 250).fill_dense(PackedMatrix("u2", 16, 250)),  # four columns are a word's
        lambda: PackedMatrix("t5", 16, 256).fill_dense(ternary, 16),
        lambda: ternary.fill_dense(ternary),
        lambda: unpack_ternary(floats),
    ):
        with pytest.raises(FormatError):
            fill()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("cols", "group"), [(4, None), (256, 256), (1100, None), (1100, 256), (700, 128), (2560, 640)])
def test_dense_rows_come_from_codes_or_from_packed_ones(cols, group, block, threads):
    rng = np.random.default_rng(cols)
    codes = rng.integers(0, 3, (70, cols), dtype=np.uint8)
    scales = rng.standard_normal((70, -(-cols // (group or cols)))).astype(np.float32)
    expected = PackedMatrix("t5", 70, cols, group)
    expected.fill_codes(codes)
    expected.fill_scales(scales)
    got = PackedMatrix("t5", 70, cols, group)
    for first, rows in ((0, 32), (32, 38)):
        four = PackedMatrix("u2", rows, cols, group, block_cols=block)
        four.fill_codes(codes[first : first + rows])
        four.fill_scales(scales[first : first + rows])
        got.fill_dense(four, first, threads)
    assert np.array_equal(got.rows(range(70)), expected.rows(range(70)))
    assert np.array_equal(got.groups()[:4], expected.groups()[:4])  # those of which all rows are there


@pytest.mark.parametrize("row", [-1, 3])
def test_rows_out_of_range_are_refused(row):
    with pytest.raises(IndexError, match=str(row)):
        pack_ternary(np.ones((3, 5), int)).rows([row])


@pytest.mark.parametrize("form", ["u4m", "u8m", "u5m"])
def test_minima_belong_to_rows_and_groups(form):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 16, (35, 100), dtype=np.uint8)
    scales, minima = (rng.standard_normal((35, 4)).astype(np.float32) for _ in range(2))
    w = PackedMatrix(form, 35, 100, group_cols=32)
    w.fill_codes(codes)
    w.fill_scales(scales, minima=minima)
    spread = [np.repeat(a, 32, axis=1)[:, :100] for a in (scales, minima)]
    offset = 128 if form == "u8m" else 0
    assert np.array_equal(w.rows(range(35)), (codes.astype(np.float32) - offset) * spread[0] + spread[1])
    with pytest.raises(FormatError, match="not finite"):
        w.fill_scales(scales, minima=np.full_like(minima, np.inf))


@pytest.mark.parametrize("form", ["u2", "f16", "f32"])
def test_a_matrix_that_no_memory_can_hold_is_a_memory_error(form):
    with pytest.raises(MemoryError, match="1073741823 x 262144"):
        PackedMatrix(form, (1 << 30) - 1, 1 << 18)  # 2**46 to 2**50 bytes


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_stored_floats_can_begin_at_any_byte(kind, shift):
    """`make sanitize` also sees how they are read."""
    values = np.random.default_rng(2).standard_normal((20, 70)).astype(np.float32)
    raw = np.asarray(quantize(kind, values)).reshape(-1).view(np.uint8)
    moved = np.frombuffer(bytes(shift) + raw.tobytes(), np.uint8)[shift:]
    rows = []
    for data in (raw, moved):
        rounded = PackedMatrix("u8", 20, 70, group_cols=32, scales_f16=True)
        rounded.fill_rounded(kind, data, 20)
        whole = PackedMatrix(kind.lower(), 20, 70)
        whole.fill_floats(data, 20)
        rows.append((rounded.rows(range(20)).tobytes(), whole.rows(range(20)).tobytes()))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_scales_can_begin_at_any_byte(shift):
    w = pack_ternary(np.ones((20, 70), np.int8))
    scales = np.arange(1, 21, dtype=np.float32)
    w.fill_scales(np.frombuffer(bytes(shift) + scales.tobytes(), np.uint8)[shift:].view(np.float32).reshape(20, 1))
    assert np.array_equal(w.rows(range(20))[:, 0], scales)
