"""Rows of one token have the same bits however many row groups are read at a time."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit import reference
from lowbit._kernels import dispatch
from lowbit.kernels import matmul, matmul_sums

FORMATS = ("u2", "u4", "u8", "u4m", "u8m", "t5", "u3", "u5", "u6", "u2m", "u5m", "iq4", "fp4")
STREAMS = (2, 3, 4, 8)


@pytest.fixture
def in_streams():
    """`in_streams(n, function, ...)` is what a function returns while n row groups are read at a time."""

    def run(n, function, *arguments):
        dispatch.use_streams(n)
        try:
            return function(*arguments)
        finally:
            dispatch.use_streams()

    return run


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_of_a_large_matrix_are_exact_in_any_number_of_streams(isa, form, threads, packed, in_streams):
    """Large enough for several threads, with parts of different lengths."""
    w = packed(form, 16 * 65 - 3, 1056, 11)
    x = np.random.default_rng(1).integers(-127, 128, (1, 1056), np.int8)
    want = reference.int_matmul(w.weights, x)
    for n in STREAMS:
        assert np.array_equal(in_streams(n, matmul_sums, w.matrix, x, threads), want), n


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("group", [32, 256, 512])
def test_scaled_products_have_the_same_bits_in_any_number_of_streams(isa, form, group, packed, in_streams):
    block = 128 if form in ("u2", "t5") else 32
    rng = np.random.default_rng(group)
    for rows in (1, 16, 33, 80, 150):
        scales, minima = rng.standard_normal((2, rows, -(-544 // max(group, block)))).astype(np.float32)
        options = {"group_cols": max(group, block), "block_cols": block}
        w = packed(form, rows, 544, rows, scales, minima if form.endswith("m") else None, **options).matrix
        x = rng.standard_normal((1, 544)).astype(np.float32)
        want = in_streams(1, matmul, w, x)
        for n in STREAMS:
            got = in_streams(n, matmul, w, x)
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), (rows, n)


def test_no_other_number_of_streams_is_taken():
    before = dispatch.active_streams()
    for n in (0, -1, 9):
        with pytest.raises(ValueError, match="1 to 8 streams"):
            dispatch.use_streams(n)
    assert dispatch.active_streams() == before
