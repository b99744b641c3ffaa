"""Products with float results equal the same float32 operations in NumPy bit for bit, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit import isa as instruction_sets
from lowbit import reference
from lowbit._kernels.matrix import BLOCK_TYPES, UNPACKED_TYPES
from lowbit._kernels.stored import Stored
from lowbit.errors import FormatError
from lowbit.formats.unpacked import table_of
from lowbit.kernels import PackedMatrix, matmul
from lowbit.quantize.ggml_types import type_of

INTEGERS = ("u2", "u4", "u8", "u4m", "u8m", "t5", "u3", "u5", "u6", "u2m", "u5m", "iq4", "fp4")
FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": None}


def scaled(weights, scales, x, group, per_token, minima=None):
    """Integer sums of each group times both scales, added up in the order of the groups, all in float32; with minima,
    these times what the group's activations stand for."""
    q, s = reference.quantize_activations(x, None if per_token else group)
    y = np.zeros((len(x), len(weights)), np.float32)
    for g, start in enumerate(range(0, x.shape[1], group)):
        channels = slice(start, start + group)
        sums = reference.int_matmul(weights[:, channels], q[:, channels]).astype(np.float32)
        x_scale = np.float32(1) / s[:, [0 if per_token else g]]
        part = sums * (scales[:, g] * x_scale)
        if minima is not None:
            part += minima[:, g] * (x_scale * q[:, channels].sum(1, np.int32, keepdims=True).astype(np.float32))
        y += part
    return y


def chained(values, x):
    """Columns in two chains, the even and the odd ones, in float32; no product is fused with a sum."""
    chains = np.zeros((2, len(x), len(values)), np.float32)
    for column in range(x.shape[1]):
        chains[column % 2] += values[:, column] * x[:, column, None]
    return chains[0] + chains[1]


def float_matrix(form, values):
    """A matrix of these float32 values, and the values as the format holds them."""
    w = PackedMatrix(form, *values.shape)
    if form == "bf16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (stored.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = values.astype(FLOATS[form])
        values = stored.astype(np.float32)
    w.fill_floats(stored.reshape(-1).view(np.uint8), len(values))
    return w, values


def expect_same_bits(got, want, *what):
    assert got.dtype == want.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), what


@pytest.mark.parametrize(("form", "group"), [("u2", 64), ("u2", 128), ("u2", 256), ("u4", 32), ("u4", 64), ("u8", 32),
                                             ("u8", 128), ("u4m", 32), ("u4m", 256), ("u8m", 32),
                                             ("u8m", 64), ("t5", 128), ("t5", 256), ("u3", 16),
                                             ("u5", 32), ("u6", 16), ("u6", 64), ("u2m", 16),
                                             ("u5m", 32), ("iq4", 32), ("fp4", 64)])  # fmt: skip
@pytest.mark.parametrize("cols", [40, 128, 256, 600])  # with and without a shorter last group
@pytest.mark.parametrize("per_token", [False, True])
def test_scale_groups_are_added_in_order(isa, form, group, cols, per_token, packed):
    rng = np.random.default_rng(cols)
    n_groups = -(-cols // group)
    scales = rng.standard_normal((35, n_groups)).astype(np.float32)
    minima = rng.standard_normal((35, n_groups)).astype(np.float32) if form.endswith("m") else None
    block = 64 if (form, group) == ("u2", 64) else None
    w = packed(form, 35, cols, cols, scales, minima, group_cols=group, block_cols=block)
    for tokens in (1, 2, 9, 17):
        x = rng.standard_normal((tokens, cols), np.float32)
        want = scaled(w.weights, scales, x, group, per_token, minima)
        expect_same_bits(matmul(w.matrix, x, per_token), want, tokens)


@pytest.mark.parametrize("group", [128, 256, 384, 640])
@pytest.mark.parametrize("cols", [256, 640, 700])
def test_many_rows_and_tokens_are_scaled_as_few_are(isa, group, cols, packed):
    rng = np.random.default_rng(group)
    scales = rng.standard_normal((150, -(-cols // group))).astype(np.float32)
    w = packed("u2", 150, cols, cols, scales, None, group_cols=group)
    for tokens in (11, 66):
        x = rng.standard_normal((tokens, cols), np.float32)
        for threads in (1, 2):
            got = matmul(w.matrix, x, threads=threads)
            expect_same_bits(got, scaled(w.weights, scales, x, group, False, None), tokens, threads)


@pytest.mark.parametrize("form", INTEGERS)
def test_one_scale_per_row_is_one_group(isa, form, packed):
    rng = np.random.default_rng(3)
    scales = rng.standard_normal((19, 1)).astype(np.float32)
    w = packed(form, 19, 333, 3, scales)
    x = rng.standard_normal((4, 333), np.float32)
    want = scaled(w.weights, scales, x, 333, True)
    expect_same_bits(matmul(w.matrix, x), want)
    expect_same_bits(matmul(w.matrix, x, True), want)


@pytest.mark.parametrize(("kind", "form", "group", "nbytes"), [("TQ2_0", "u2", 256, 66), ("Q4_0", "u4", 32, 18),
                                                               ("Q8_0", "u8", 32, 34)])  # fmt: skip
def test_float16_scales_count_as_their_float32_values(isa, kind, form, group, nbytes):
    rng = np.random.default_rng(4)
    rows, cols = 33, 512
    raw = rng.integers(0, 256, (rows * cols // group, nbytes), dtype=np.uint8)
    if form == "u2":
        raw[:, :64] &= ~(raw[:, :64] >> 1 & 0x55)  # no code 3
    scales = rng.standard_normal(len(raw)).astype(np.float16)
    scales[:3] = 6e-8, 65504, -0.0  # subnormal, largest, negative zero
    raw[:, slice(64, 66) if form == "u2" else slice(0, 2)] = scales[:, None].view(np.uint8)
    w = PackedMatrix(form, rows, cols, group_cols=group, scales_f16=True)
    w.fill_blocks(kind, raw.reshape(-1), rows)
    scales = scales.astype(np.float32).reshape(rows, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = w.rows(range(rows)).reshape(rows, -1, group) / scales[:, :, None]
    weights = np.where(scales[:, :, None] == 0, 0, weights).reshape(rows, cols).round().astype(np.int32)
    x = rng.standard_normal((5, cols), np.float32)
    expect_same_bits(matmul(w, x), scaled(weights, scales, x, group, False))


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("largest", [1.0, 1e30])
def test_blocks_of_32_are_multiplied_as_they_are_stored(isa, kind, largest, blocks_of_32):
    rng = np.random.default_rng(11)
    rows, cols = 35, 320
    raw, codes, scales, minima = blocks_of_32(kind, rows, cols)
    form, group = BLOCK_TYPES[kind]
    w = PackedMatrix(form, rows, cols, group_cols=group, scales_f16=True)
    w.fill_blocks(kind, raw.reshape(-1), rows)
    x = rng.standard_normal((17, cols), np.float32)
    x[2, 32:64] = largest  # an activation scale that has no room for a power of two
    x[3, :32] = 0
    expect_same_bits(matmul(w, x), scaled(codes, scales, x, group, False, minima))
    expect_same_bits(matmul(w, x[:1]), scaled(codes, scales, x[:1], group, False, minima))


@pytest.mark.parametrize("form", FLOATS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (15, 3), (16, 16), (17, 33), (128, 257), (35, 600)])
def test_float_weights_are_added_in_two_chains(isa, form, rows, cols):
    rng = np.random.default_rng(rows)
    w, values = float_matrix(form, rng.standard_normal((rows, cols), np.float32))
    for tokens in (1, 2, 3, 8, 17):
        x = rng.standard_normal((tokens, cols), np.float32)
        expect_same_bits(matmul(w, x), chained(values, x), tokens)


@pytest.mark.parametrize("form", FLOATS)
def test_subnormal_float_weights_are_not_flushed(isa, form):
    smallest = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}[form]
    multiples = np.array([[1], [3], [100], [-7]], np.float32)
    w, values = float_matrix(form, multiples * np.float32(smallest))
    assert np.array_equal(values, multiples * np.float32(smallest))
    expect_same_bits(matmul(w, np.ones((1, 1), np.float32)), values.T.copy())


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("cols", [257, 1024])
def test_results_have_the_same_bits_everywhere(form, cols, packed):
    """On every instruction set this CPU has, for any number of threads, alone and in any batch."""
    rng = np.random.default_rng(5)
    rows = 600
    if form in FLOATS:
        w, _ = float_matrix(form, rng.standard_normal((rows, cols), np.float32))
    else:
        scales = rng.standard_normal((rows, -(-cols // 128)), np.float32)
        minima = scales[::-1].copy() if form.endswith("m") else None
        w = packed(form, rows, cols, 5, scales, minima, group_cols=128).matrix
    x = rng.standard_normal((17, cols), np.float32)
    before = instruction_sets.active()
    try:
        want = matmul(w, x)
        for name in instruction_sets.available():
            instruction_sets.use(name)
            for threads in (1, 2, 3):
                expect_same_bits(matmul(w, x, threads=threads), want, name, threads)
            for start, stop in ((0, 1), (3, 5), (5, 8), (8, 12), (9, 17), (1, 17)):
                expect_same_bits(matmul(w, x[start:stop]), want[start:stop], name, start, stop)
    finally:
        instruction_sets.use(before)


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS])
def test_memory_of_the_activations_does_not_matter(isa, form, packed, at_end_of_page):
    x = np.random.default_rng(6).standard_normal((5, 129)).astype(np.float32)
    w = float_matrix(form, x[:3])[0] if form in FLOATS else packed(form, 33, 129, 6).matrix
    want = matmul(w, x)
    expect_same_bits(matmul(w, at_end_of_page(x)), want)
    for offset in (1, 3, 4, 12):
        shifted = np.empty(x.nbytes + offset, np.uint8)[offset:].view(np.float32).reshape(x.shape)
        shifted[:] = x
        expect_same_bits(matmul(w, shifted), want, offset)


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS])
def test_nothing_is_written_beside_the_results(isa, form, packed, guards):
    for rows in (1, 15, 17, 33):
        for tokens in (1, 2, 9, 17):
            x = np.ones((tokens, 129), np.float32)
            values = np.full((rows, 129), 1, np.float32)
            w = float_matrix(form, values)[0] if form in FLOATS else packed(form, rows, 129, "high").matrix
            assert np.unique(matmul(w, x)).size == 1
    assert guards.blocks
    assert guards.intact()


def test_products_refuse_another_row_length(packed):
    for w in (packed("u2", 3, 256).matrix, PackedMatrix("f16", 3, 256)):
        with pytest.raises(FormatError, match="255"):
            matmul(w, np.zeros((1, 255), np.float32))


def test_no_activations_give_no_results(isa, packed):
    assert matmul(packed("u2", 3, 5).matrix, np.zeros((0, 5), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("tokens", [1, 3, 16, 40])
def test_products_of_k_types_are_those_of_their_codes_scales_and_minima(isa, kind, tokens):
    rows, cols = 45, 512
    rng = np.random.default_rng(tokens)
    blocks = rng.integers(0, 256, (rows * cols // 256, type_of(kind).block_bytes), np.uint8)
    for at in FLOATS_OF[kind]:
        blocks[:, at : at + 2] = rng.standard_normal((len(blocks), 1)).astype("<f2").view(np.uint8)
    form, options = UNPACKED_TYPES[kind]
    group = options["group_cols"]
    w = PackedMatrix(form, rows, cols, **options)
    w.fill_stored(Stored(kind, table_of(kind)), blocks.reshape(-1), rows)
    codes, scales, minima = parts_of(kind, blocks)
    shape = rows, cols // group
    minima = None if minima is None else -minima.reshape(shape)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    want = scaled(codes.reshape(rows, cols), scales.reshape(shape), x, group, False, minima)
    for threads in (1, 2):
        expect_same_bits(matmul(w, x, threads=threads), want, tokens, threads)
    with pytest.raises(FormatError, match="do not fit"):
        w.fill_scales(scales.reshape(shape), minima=minima)


FLOATS_OF = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where d, and what minima are multiples of, stand in a block."""


def parts_of(kind, blocks):
    """Codes (n, 256) without their offset, scales and what is subtracted, or None.

    Layouts: llama.cpp ggml/src/ggml-common.h; 32 neighbours of a block have the same bits of 32 neighbouring bytes.
    """
    d, *dmin = (blocks[:, at : at + 2].copy().view("<f2").astype(np.float32) for at in FLOATS_OF[kind])

    def fields(begin, end, bits, run=32):
        """Bytes hold `8 // bits` fields, the lowest first; a run of them has the lowest fields first, and so on."""
        bytes_ = blocks[:, begin:end].reshape(len(blocks), -1, 1, run).astype(np.int32)
        return (bytes_ >> (np.arange(8 // bits) * bits)[:, None] & (1 << bits) - 1).reshape(len(blocks), -1)

    if kind == "Q2_K":
        small = blocks[:, :16]
        return fields(16, 80, 2), d * (small & 15), dmin[0] * (small >> 4)
    if kind == "Q3_K":
        small = fields(96, 104, 4, 8) | fields(104, 108, 2, 4) << 4
        return fields(32, 96, 2) + 4 * fields(0, 32, 1) - 4, d * (small - 32).astype(np.float32), None
    if kind == "Q6_K":
        return fields(0, 128, 4, 64) + 16 * fields(128, 192, 2) - 32, d * blocks[:, 192:208].view(np.int8), None
    # Of the first four groups scale and minimum are in a byte each, of the last four in nibbles, with the upper bits of
    # the first.
    packed = blocks[:, 4:16].astype(np.int32)
    small, low = np.zeros((2, len(blocks), 8), np.int32), packed[:, 8:]
    for which in (0, 1):
        first = packed[:, 4 * which : 4 * which + 4]
        small[which, :, :4], small[which, :, 4:] = first & 63, low >> 4 * which & 15 | first >> 6 << 4
    codes = fields(16, 144, 4) if kind == "Q4_K" else fields(48, 176, 4) + 16 * fields(16, 48, 1)
    return codes, d * small[0].astype(np.float32), dmin[0] * small[1].astype(np.float32)
