"""Blocks that are unpacked where they are used become what the decoders in formats/ say, whatever unpacks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowbit._kernels.matrix import UNPACKED_TYPES, PackedMatrix
from lowbit._kernels.stored import STORED_TYPES, Stored
from lowbit.errors import FormatError
from lowbit.formats.blocks import dequantize, integer_codes
from lowbit.formats.unpacked import table_of
from lowbit.quantize.ggml_types import type_of

COLS = 512


@pytest.fixture
def raw_of(monkeypatch):
    """`raw_of(kind, shape, seed)`: random stored bytes whose scales are finite."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "formats"))
    from test_blocks import raw_of

    return raw_of


def empty(kind, rows):
    form, options = UNPACKED_TYPES[kind]
    return PackedMatrix(form, rows, COLS, **options)


def contents(kind, matrix):
    """What a matrix holds: its bytes, or, where no other way to fill it is known, the weights that they stand for."""
    return matrix.groups() if UNPACKED_TYPES[kind][0] == "u8" else matrix.rows(range(matrix.shape[0]))


def by_decoder(kind, raw, rows):
    """The contents of the same matrix from what NumPy makes of the blocks."""
    if UNPACKED_TYPES[kind][0] != "u8":
        values = dequantize(kind, raw, (rows, COLS))
        if not np.isfinite(values).all():
            raise FormatError("a weight is not finite")
        return values
    matrix = empty(kind, rows)
    codes, scales = integer_codes(kind, raw, (rows, COLS))
    matrix.fill_codes(codes.view(np.uint8) + np.uint8(128))
    matrix.fill_scales(scales)
    return contents(kind, matrix)


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_rows_become_those_of_the_decoder(isa, raw_of, kind):
    rows = 37  # the last row group is not full
    raw = raw_of(kind, (rows, COLS), seed=5)
    want, stored = by_decoder(kind, raw, rows), Stored(kind, table_of(kind))
    odd = np.concatenate([np.zeros(3, np.uint8), raw])[3:]  # at any byte of memory
    for threads in (1, 2):
        matrix = empty(kind, rows)
        matrix.fill_stored(stored, odd, rows, threads=threads)
        assert np.array_equal(contents(kind, matrix), want)
    parts, row_bytes = empty(kind, rows), raw.size // rows
    parts.fill_stored(stored, raw[16 * row_bytes :], rows - 16, 16)
    parts.fill_stored(stored, raw, 16, 0)
    assert np.array_equal(contents(kind, parts), want)


EXTREMES = {"IQ1_M": (48, 56), "MXFP4": (0, 1), "Q2_K": (80, 84), "Q3_K": (108, 110), "Q6_K": (208, 210)}
"""Where scales stand in blocks that do not begin with a float16 of them, or with two."""


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_every_byte_that_a_scale_can_have_is_taken_as_the_decoder_takes_it_or_refused(raw_of, kind):
    block = type_of(kind).block_bytes
    begin, end = EXTREMES.get(kind, (0, 4 if kind in ("Q4_K", "Q5_K") else 2))
    raw = raw_of(kind, (256, COLS), seed=1)
    bytes_ = np.arange(256, dtype=np.uint8)
    refused = 0
    for at in range(begin, end):
        rows = raw.reshape(256, -1, block).copy()
        rows[:, 0, at] = bytes_
        for row in rows:
            one, stored = row.reshape(-1), Stored(kind, table_of(kind))
            matrix = empty(kind, 1)
            try:
                want = by_decoder(kind, one, 1)
            except FormatError:
                refused += 1
                with pytest.raises(FormatError, match="scale"):
                    matrix.fill_stored(stored, one, 1)
            else:
                matrix.fill_stored(stored, one, 1)
                assert np.array_equal(contents(kind, matrix), want)
    assert refused > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(FormatError, match="not unpacked"):
        Stored("Q8_0", table_of("Q8_0"))
    with pytest.raises(FormatError, match="table"):
        Stored("IQ1_S", table_of("IQ2_S"))
    stored, raw = Stored("IQ2_S", table_of("IQ2_S")), np.zeros(82, np.uint8)
    with pytest.raises(FormatError, match="multiple of 256"):
        PackedMatrix("u8", 1, 256, group_cols=32).fill_stored(stored, raw, 1)
    matrix = PackedMatrix("u8", 1, 256, group_cols=16, block_cols=16)
    with pytest.raises(FormatError, match="too few"):
        matrix.fill_stored(stored, raw[1:], 1)
    with pytest.raises(FormatError, match="do not fit"):
        matrix.fill_stored(stored, raw, 1, 16)
