"""Packed matrices of every integer format, with the weights that they stand for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lowbit.kernels import PackedMatrix

TOP_CODES = {
    "u2": 2, "u4": 15, "u8": 255, "u4m": 15, "u8m": 255, "t5": 2, "u3": 7, "u5": 31, "u6": 63, "u2m": 3, "u5m": 31,
    "iq4": 15, "fp4": 15,
}  # fmt: skip
OFFSETS = {
    "u2": 1, "u4": 8, "u8": 128, "u4m": 0, "u8m": 128, "t5": 1, "u3": 4, "u5": 16, "u6": 32, "u2m": 0, "u5m": 0,
}  # fmt: skip
VALUES = {
    "iq4": [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    "fp4": [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12],
}
"""What codes stand for that have no offset."""


@pytest.fixture(scope="session")
def packed():
    """`packed(format, rows, cols, fill)` gives `.matrix` and its integer `.weights`; fill is a seed, low or high."""

    def make(form, rows, cols, fill=0, scales=None, minima=None, **options):
        top = TOP_CODES[form]
        if fill in ("low", "high"):
            codes = np.full((rows, cols), 0 if fill == "low" else top, np.uint8)
        else:
            codes = np.random.default_rng(fill).integers(0, top + 1, (rows, cols), dtype=np.uint8)
        w = PackedMatrix(form, rows, cols, **options)
        w.fill_codes(codes)
        if not options.get("scales_f16"):
            shape = rows, -(-cols // w.group_cols)
            if form.endswith("m") and minima is None:
                minima = np.zeros(shape, np.float32)
            w.fill_scales(np.ones(shape, np.float32) if scales is None else scales, minima=minima)
        weights = np.array(VALUES[form])[codes] if form in VALUES else codes.astype(np.int32) - OFFSETS[form]
        return SimpleNamespace(matrix=w, codes=codes, weights=weights.astype(np.int32))

    return make


@pytest.fixture(scope="session")
def blocks_of_32():
    """`blocks_of_32(kind, rows, cols)` gives random blocks of Q4_1, Q5_0 or Q5_1, and the signed codes, the scales
    and the minima (None in Q5_0) that they hold. Among these floats are the largest and the smallest float16."""

    def make(kind, rows, cols):
        rng = np.random.default_rng(cols)
        shape = rows, cols // 32
        scales, minima = (rng.standard_normal(shape).astype("<f2") for _ in range(2))
        scales[0, :3] = 6e-8, 65504, -0.0
        minima[0, :3] = -6e-8, -65504, 0.0
        codes = rng.integers(0, 16 if kind == "Q4_1" else 32, (*shape, 32), dtype=np.uint8)
        parts = [scales[..., None].view(np.uint8)]
        if kind != "Q5_0":
            parts.append(minima[..., None].view(np.uint8))
        if kind != "Q4_1":
            parts.append(np.packbits(codes >> 4, axis=2, bitorder="little"))
        parts.append(codes[..., :16] & 15 | (codes[..., 16:] & 15) << 4)
        raw = np.concatenate(parts, axis=2)
        signed = codes.reshape(rows, cols).astype(np.int32) - (16 if kind == "Q5_0" else 0)
        return raw, signed, scales.astype(np.float32), None if kind == "Q5_0" else minima.astype(np.float32)

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
