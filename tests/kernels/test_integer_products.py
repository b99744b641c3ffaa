"""Integer products are exact: equal to NumPy's, on every instruction set, whatever the sizes, threads and memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit import reference
from lowbit.errors import FormatError
from lowbit.kernels import PackedMatrix, matmul_sums, pack_ternary, ternary_matmul

FORMATS = ("u2", "u4", "u8", "u4m", "u8m", "t5", "u3", "u5", "u6", "u2m", "u5m", "iq4", "fp4")
ROWS = (1, 3, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257)
COLS = (*ROWS, 4096)
TOKENS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 33)
FILLS = (7, "low", "high")
LOWEST = dict.fromkeys(("u8", "u8m", "iq4", "fp4"), -127)
"""What formats of bytes allow as activations; others allow -128 too."""


def activations(form, tokens, cols, fill):
    low = LOWEST.get(form, -128)
    if fill in ("low", "high"):
        return np.full((tokens, cols), low if fill == "low" else 127, np.int8)
    return np.random.default_rng(fill).integers(low, 128, (tokens, cols), dtype=np.int8)


def expect_exact(sums, packed, x, *what):
    want = reference.int_matmul(packed.weights, x)
    assert sums.dtype == np.int32
    assert np.array_equal(sums, want), (*what, packed.matrix, x.shape)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [3, 17, 32])
def test_sums_are_exact_for_every_row_length(isa, form, rows, packed):
    for cols in COLS:
        w = packed(form, rows, cols, cols)
        for tokens in (1, 3):
            x = activations(form, tokens, cols, tokens)
            expect_exact(matmul_sums(w.matrix, x), w, x)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("cols", [33, 257])
def test_sums_are_exact_for_every_number_of_rows(isa, form, cols, packed):
    for rows in (*ROWS, 4096):
        w = packed(form, rows, cols, rows)
        x = activations(form, 2, cols, rows)
        expect_exact(matmul_sums(w.matrix, x), w, x)


@pytest.mark.parametrize("form", FORMATS)
def test_sums_are_exact_for_every_batch(isa, form, packed):
    w = packed(form, 33, 257)
    for tokens in TOKENS:
        x = activations(form, tokens, 257, tokens)
        expect_exact(matmul_sums(w.matrix, x), w, x)


@pytest.mark.parametrize("form", ["u2", "u4", "u8"])
@pytest.mark.parametrize("cols", [256, 300, 640])
def test_sums_are_exact_for_many_rows_and_tokens(isa, form, cols, packed):
    w = packed(form, 207, cols)
    for tokens in (11, 16, 66):
        x = activations(form, tokens, cols, tokens)
        for threads in (1, 2, 3):
            expect_exact(matmul_sums(w.matrix, x, threads), w, x, tokens, threads)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("weight_fill", FILLS)
@pytest.mark.parametrize("x_fill", FILLS)
def test_extreme_values_do_not_overflow(isa, form, weight_fill, x_fill, packed):
    for rows, cols in ((16, 128), (17, 4096), (1, 257)):
        w = packed(form, rows, cols, weight_fill)
        for tokens in (1, 2, 8, 16):
            x = activations(form, tokens, cols, x_fill)
            expect_exact(matmul_sums(w.matrix, x), w, x, weight_fill, x_fill)


@pytest.mark.parametrize("form", FORMATS)
def test_threads_do_not_change_sums(isa, form, packed):
    w = packed(form, 1000, 1030)  # more than the work that stays on one thread
    x = activations(form, 9, 1030, 1)
    for threads in (1, 2, 3):
        expect_exact(matmul_sums(w.matrix, x, threads), w, x, threads)


@pytest.mark.parametrize("form", FORMATS)
def test_longest_rows_are_summed_exactly(isa, form, packed):
    cols = 1 << (16 if form in LOWEST else 18)
    for fill in ("low", "high"):
        w = packed(form, 1, cols, fill)
        x = activations(form, 1, cols, fill)
        expect_exact(matmul_sums(w.matrix, x), w, x, fill)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("offset", [1, 3, 31])
def test_unaligned_activations_give_the_same_sums(isa, form, offset, packed):
    w = packed(form, 33, 129)
    x = np.empty(3 * 129 + offset, np.int8)[offset:].reshape(3, 129)
    x[:] = activations(form, 3, 129, 2)
    expect_exact(matmul_sums(w.matrix, x), w, x)


@pytest.mark.parametrize("form", FORMATS)
def test_read_only_mapped_activations_give_the_same_sums(isa, form, packed, at_end_of_page):
    w = packed(form, 33, 129)
    x = at_end_of_page(activations(form, 5, 129, 2))
    expect_exact(matmul_sums(w.matrix, x), w, x)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_written_beside_the_sums(isa, form, packed, guards):
    for rows in (1, 15, 17, 33):
        for tokens in (1, 2, 9, 17):
            w = packed(form, rows, 129)
            x = activations(form, tokens, 129, 2)
            expect_exact(matmul_sums(w.matrix, x), w, x)
    assert len(guards.blocks) == 16
    assert guards.intact()


@pytest.mark.parametrize("cols", [1, 31, 127, 128, 129, 256, 300])
@pytest.mark.parametrize("low", [-128, 127])
def test_ternary_product_only_adds_and_subtracts(isa, cols, low):
    w = np.random.default_rng(cols).integers(-1, 2, (35, cols))
    x = np.random.default_rng(cols).integers(min(low, 126), 128, (3, cols), dtype=np.int8)
    x[0] = low
    packed = pack_ternary(w)
    want = reference.ternary_matmul(w, x)
    assert np.array_equal(ternary_matmul(packed, x), want)
    assert np.array_equal(ternary_matmul(packed, x[1]), want[1])
    assert np.array_equal(ternary_matmul(packed, np.asfortranarray(x), threads=2), want)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(FORMATS),
    rows=st.integers(1, 80),
    cols=st.integers(1, 700),
    tokens=st.integers(1, 40),
    threads=st.integers(1, 3),
    blocks=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
)
def test_sums_are_exact_for_any_shape_and_block(isa, packed, form, rows, cols, tokens, threads, blocks, seed):
    word = {"u2": 16, "u4": 8, "u8": 4, "u4m": 8, "u8m": 4}.get(form)  # other formats have one length of blocks
    options = {"block_cols": word * (blocks if form == "u2" else min(blocks, 4))} if word else {}
    w = packed(form, rows, cols, seed, **options)
    x = activations(form, tokens, cols, seed)
    expect_exact(matmul_sums(w.matrix, x, threads), w, x, options)


def test_sums_refuse_what_they_cannot_multiply(packed):
    w = packed("u2", 3, 256).matrix
    with pytest.raises(FormatError, match="255"):
        matmul_sums(w, np.zeros((1, 255), np.int8))
    with pytest.raises(FormatError, match="one scale per row"):
        matmul_sums(packed("u2", 3, 256, group_cols=128).matrix, np.zeros((1, 256), np.int8))
    with pytest.raises(FormatError, match="one scale per row"):
        matmul_sums(PackedMatrix("f32", 3, 256), np.zeros((1, 256), np.int8))
    with pytest.raises(FormatError, match="not a ternary"):
        ternary_matmul(packed("u4", 3, 256).matrix, np.zeros((1, 256), np.int8))
    for x in (np.zeros((1, 256), np.int16), np.zeros((1, 256)), np.zeros((1, 1, 256), np.int8)):
        with pytest.raises(FormatError, match="int8"):
            ternary_matmul(w, x)


def test_no_activations_give_no_sums(isa, packed):
    assert matmul_sums(packed("u2", 3, 5).matrix, np.zeros((0, 5), np.int8)).shape == (0, 3)
