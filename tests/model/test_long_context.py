"""Attention over more positions than one piece has: threads share a row, and its bits do not tell."""

from __future__ import annotations

import numpy as np
import pytest
from pieces import read

from lowbit import isa as instruction_sets
from lowbit.formats import open_model
from lowbit.loading.load import build

PIECE = 1024
"""Positions whose values are summed up before the sums are added to those of the pieces before."""
IDS = np.random.default_rng(0).integers(0, 16, PIECE + 70).astype(np.int32)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
def test_bits_are_the_same_on_every_set_and_for_any_threads_around_a_border_of_pieces(write_llama, kv_type, kv_heads):
    path = write_llama(hidden=256, heads=8, kv_heads=kv_heads, layers=1, keys={"context_length": 2 * PIECE})
    before, want = instruction_sets.active(), None
    slow = [name for name in instruction_sets.available() if name in ("portable", "mmx")]
    try:
        for threads, names in ((1, (before,)), (2, (before,)), (3, instruction_sets.available()), (4, (before,))):
            with open_model(path) as file:
                decoder, _ = build(file, threads, None, kv_type)
            for name in names:
                if name in slow and kv_type != "f16":  # the self-test in C has all of them
                    continue
                instruction_sets.use(name)
                # rows of a prompt, and rows that come alone on both sides of the border
                got = read(decoder, IDS, (250,) * 5 if threads == 1 else (204,) * 5 + (1,) * 8 + (66,))
                want = got if want is None else want
                assert np.isfinite(got).all()
                assert np.array_equal(got.view(np.int32), want.view(np.int32)), (name, threads)
    finally:
        instruction_sets.use(before)
