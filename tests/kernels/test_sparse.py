"""Top-k selection, and products that read only the channels that count: exact, and those of the dense kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit import isa as instruction_sets
from lowbit import reference
from lowbit._kernels.topk import largest_kept
from lowbit.errors import FormatError
from lowbit.kernels import channel_major, matmul, sparse_matmul, sparse_ternary_matmul, ternary_matmul, top_k

SHAPES = [(1, 1), (16, 7), (255, 128), (256, 130), (257, 300), (1000, 65), (3000, 40)]


def thinned(x, share, seed):
    """A copy with about this share of zeros."""
    x = x.copy()
    x[np.random.default_rng(seed).random(x.shape) < share] = 0
    return x


# --- top-k ---


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 3000), share=st.floats(0, 1), steps=st.integers(1, 100))
def test_top_k_is_that_of_a_stable_sort(seed, n, share, steps):
    rng = np.random.default_rng(seed)
    x = (rng.integers(-steps, steps + 1, n) * 2.0 ** rng.integers(-140, 120)).astype(np.float32)  # many ties
    k = int(share * n)
    assert top_k(x, k).tolist() == reference.top_k(x, k).tolist()


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 6912])
def test_all_and_none_may_be_taken(n):
    x = np.zeros(n, np.float32)
    assert top_k(x, n).tolist() == list(range(n))
    assert top_k(x, 0).tolist() == []
    assert top_k(x, 1).tolist() == [0]  # the first of equal ones


def test_top_k_orders_every_kind_of_number():
    x = np.array([0.0, -0.0, 1e-45, -1e-40, 1.0, -1.0, 3.4e38, -np.inf, np.inf], np.float32)
    for k in range(len(x) + 1):
        assert top_k(x, k).tolist() == reference.top_k(x, k).tolist()


@pytest.mark.parametrize("steps", [0, 7, 5000])
@pytest.mark.parametrize("low", [0.0, 1.0])  # from 1 on, the first pass leaves all values open
def test_the_largest_are_kept_in_place(steps, low):
    x = np.random.default_rng(8).uniform(low, 1.05, (3, 10_000)).astype(np.float32)
    x = (np.round(x * steps) / steps if steps else x).astype(np.float32)  # steps make equal magnitudes
    x[:, ::3] *= -1
    for k in (1, 2500, 9_999, 10_000):
        want = np.zeros_like(x)
        for row, kept in zip(x, want, strict=True):
            at = reference.top_k(row, k)
            kept[at] = row[at]
        assert np.array_equal(largest_kept(x, k), want)


def test_top_k_refuses_what_it_cannot_order():
    x = np.ones(10, np.float32)
    for k in (-1, 11):
        with pytest.raises(ValueError, match="0 to 10"):
            top_k(x, k)
    x[7] = np.nan
    with pytest.raises(ValueError, match="value 7 is not a number"):
        top_k(x, 3)


# --- integer sums ---


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_with_all_channels_are_the_dense_ones(isa, shape, packed):
    w = packed("u2", *shape, 1).matrix
    c = channel_major(w)
    for tokens in (1, 2, 3, 17):
        x = np.random.default_rng(tokens).integers(-128, 128, (tokens, shape[1]), dtype=np.int8)
        want = ternary_matmul(w, x)
        assert np.array_equal(sparse_ternary_matmul(c, x), want)
        assert np.array_equal(sparse_ternary_matmul(c, x, k=shape[1], threads=2), want)
        assert np.array_equal(sparse_ternary_matmul(w, x[0], threshold=0.0), want[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_sums_of_the_channels_that_count_are_exact(isa, shape, share, packed):
    w = packed("u2", *shape, 2)
    c = channel_major(w.matrix)
    x = np.random.default_rng(3).integers(-128, 128, (3, shape[1]), dtype=np.int8)
    k = max(1, int((1 - share) * shape[1]))
    for rows in (x[:1], x):
        want = reference.int_matmul(w.weights, reference.sparsify(rows, k))
        assert np.array_equal(sparse_ternary_matmul(c, rows, k=k), want)
        kept = np.where(np.abs(rows.astype(int)) >= 90, rows, 0)
        assert np.array_equal(sparse_ternary_matmul(c, rows, threshold=90), reference.int_matmul(w.weights, kept))
        zeros = thinned(rows, share, 4)
        assert np.array_equal(sparse_ternary_matmul(c, zeros), reference.int_matmul(w.weights, zeros))


@pytest.mark.parametrize("fill", ["low", "high"])
@pytest.mark.parametrize("value", [-128, 127])
def test_long_rows_do_not_overflow(isa, fill, value, packed):
    w = packed("u2", 3, 1 << 17, fill)
    x = np.full((1, 1 << 17), value, np.int8)
    assert np.array_equal(sparse_ternary_matmul(w.matrix, x), reference.int_matmul(w.weights, x))


# --- scaled products ---


@pytest.mark.parametrize(("group", "block"), [(None, None), (256, None), (128, None), (64, 64)])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_scaled_products_have_the_bits_of_the_dense_ones(isa, group, block, per_token, share, packed):
    rng = np.random.default_rng(5)
    rows, cols = 700, 600
    scales = rng.standard_normal((rows, -(-cols // (group or cols))), np.float32)
    w = packed("u2", rows, cols, 6, scales, group_cols=group, block_cols=block).matrix
    c = channel_major(w)
    for tokens in (1, 2, 3, 20):
        x = thinned(rng.standard_normal((tokens, cols), np.float32), share, 7)
        want = matmul(w, x, per_token)
        for threads in (1, 2, 3):
            got = sparse_matmul(c, x, per_token, threads)
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), (tokens, threads)


def test_large_products_have_the_same_bits_on_any_set_and_number_of_threads(packed):
    rng = np.random.default_rng(8)
    scales = rng.standard_normal((7000, 2), np.float32)
    w = packed("u2", 7000, 512, 9, scales, group_cols=256).matrix  # three tiles
    c = channel_major(w, threads=2)
    x = thinned(rng.standard_normal((1, 512), np.float32), 0.5, 1)
    want = matmul(w, x)
    before = instruction_sets.active()
    try:
        for name in instruction_sets.available():
            instruction_sets.use(name)
            for threads in (1, 2, 4):
                assert np.array_equal(sparse_matmul(c, x, threads=threads), want), (name, threads)
    finally:
        instruction_sets.use(before)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 900),
    cols=st.integers(1, 500),
    tokens=st.integers(1, 6),
    threads=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 1 << 30),
)
def test_sums_are_exact_for_any_shape_and_share(isa, packed, rows, cols, tokens, threads, share, seed):
    w = packed("u2", rows, cols, seed)
    x = np.random.default_rng(seed).integers(-128, 128, (tokens, cols), dtype=np.int8)
    x = thinned(x, share, seed)
    assert np.array_equal(
        sparse_ternary_matmul(channel_major(w.matrix), x, threads=threads), reference.int_matmul(w.weights, x)
    )


# --- misuse ---


def test_sparse_products_refuse_what_they_cannot_multiply(packed):
    w = packed("u2", 3, 256)
    c = channel_major(w.matrix)
    x = np.zeros((1, 256), np.int8)
    for wrong in (x[:, :255], x.astype(np.int16), x[None]):
        with pytest.raises(FormatError):
            sparse_ternary_matmul(c, np.ascontiguousarray(wrong))
    with pytest.raises(ValueError, match="not both"):
        sparse_ternary_matmul(c, x, k=1, threshold=1.0)
    for k in (0, 257):
        with pytest.raises(ValueError, match="1 to 256"):
            sparse_ternary_matmul(c, x, k=k)
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold"):
            sparse_ternary_matmul(c, x, threshold=threshold)
    with pytest.raises(FormatError, match="not a ternary"):
        channel_major(packed("u4", 3, 256).matrix)


def test_a_channel_major_matrix_is_not_taken_for_row_groups(packed):
    c = channel_major(packed("u2", 3, 256).matrix)
    x = np.zeros((1, 256), np.int8)
    for call in (
        lambda: ternary_matmul(c, x),
        lambda: matmul(c, x.astype(np.float32)),
        lambda: c.rows([0]),
        lambda: c.fill_codes(np.zeros((3, 256), np.uint8)),
        lambda: channel_major(c),
    ):
        with pytest.raises(FormatError):
            call()


def test_no_activations_give_no_sums(isa, packed):
    assert sparse_ternary_matmul(packed("u2", 3, 5).matrix, np.zeros((0, 5), np.int8)).shape == (0, 3)
