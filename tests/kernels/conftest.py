"""Packed matrices of every integer format, with the weights that they stand for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lowbit.kernels import PackedMatrix

TOP_CODES = {"u2": 2, "u4": 15, "u8": 255}
OFFSETS = {"u2": 1, "u4": 8, "u8": 128}


@pytest.fixture(scope="session")
def packed():
    """`packed(format, rows, cols, fill)` gives `.matrix` and its integer `.weights`; fill is a seed, low or high."""

    def make(form, rows, cols, fill=0, scales=None, **options):
        top = TOP_CODES[form]
        if fill in ("low", "high"):
            codes = np.full((rows, cols), 0 if fill == "low" else top, np.uint8)
        else:
            codes = np.random.default_rng(fill).integers(0, top + 1, (rows, cols), dtype=np.uint8)
        w = PackedMatrix(form, rows, cols, **options)
        w.fill_codes(codes)
        if not options.get("scales_f16"):
            n_groups = -(-cols // w.group_cols)
            w.fill_scales(np.ones((rows, n_groups), np.float32) if scales is None else scales)
        return SimpleNamespace(matrix=w, codes=codes, weights=codes.astype(np.int32) - OFFSETS[form])

    return make


@pytest.fixture
def at_end_of_page(tmp_path):
    """A read-only copy of an array in a mapped file whose last byte is the last of a page."""

    def place(array):
        path = tmp_path / "mapped"
        size = -(-array.nbytes // 4096) * 4096
        path.write_bytes(bytes(size - array.nbytes) + array.tobytes())
        mapped = np.memmap(path, np.uint8, "r")[size - array.nbytes :].view(array.dtype).reshape(array.shape)
        assert not mapped.flags.writeable
        return mapped

    return place
