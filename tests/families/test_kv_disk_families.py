"""Blocks on disk of every family: latents, windows, states and all."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit._kernels.sequence import Sequence

IDS = np.random.default_rng(8).integers(0, checkpoints.VOCAB, 128).astype(np.int32)


@pytest.mark.parametrize("name", list(checkpoints.CASES | checkpoints.OWN))
def test_what_is_read_back_has_the_bits_of_what_is_computed(name, tmp_path):
    folder = checkpoints.write(name, tmp_path / name)
    found = []
    for _ in range(2):
        model = lowbit.load(folder, kv_disk=tmp_path / "kv", threads=1)
        sequence = Sequence(model._decoder.pool, IDS[: model.context], min(128, model.context))
        found.append(sequence.reused)
        while sequence.pending:
            rows = model._decoder.read(sequence, most=sequence.reach)
        sequence.close()
        found.append(rows[-1].view(np.uint32))
    assert np.array_equal(found[1], found[3])
    border = model._decoder.pool.border
    assert (found[0], found[2]) == (0, (min(128, model.context) - 1) // border * border)
