"""Packed matrices of every integer format, with the weights that they stand for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lowbit._kernels import matrix
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


class GuardedNumPy:
    """NumPy, but what `empty` returns lies between guard bytes."""

    def __init__(self):
        self.blocks = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        block = np.full(size + 512, 0xA5, np.uint8)
        self.blocks.append((block, size))
        return block[256 : 256 + size].view(dtype).reshape(shape)

    def intact(self):
        return all((b[:256] == 0xA5).all() and (b[256 + size :] == 0xA5).all() for b, size in self.blocks)


@pytest.fixture
def guards(monkeypatch):
    """Guard bytes around everything that the products return; `guards.intact()` tells whether they still stand."""
    guarded = GuardedNumPy()
    monkeypatch.setattr(matrix, "np", guarded)
    return guarded


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
