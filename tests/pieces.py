"""Ways to compute the logits of a text that must not show in them: pieces, instruction sets, threads."""

from __future__ import annotations

import numpy as np

import lowbit
from lowbit import isa as instruction_sets
from lowbit._kernels.decoder import Batch
from lowbit._kernels.sequence import Sequence


def read(decoder, ids, cuts, publish=False):
    """Logits of all tokens, taken in by pieces of these sizes; `publish`: for others to know what was read."""
    sequence, batch, rows = Sequence(decoder.pool, ids, len(ids), reuse=False), Batch(decoder), []
    for cut in cuts:
        if sequence.pending:
            batch.clear()
            batch.add(sequence, min(cut, sequence.pending), "every")
            decoder.step(batch)
            rows.append(decoder.logits[batch.place(0)].copy())
            if publish:
                sequence.publish()
    sequence.close()
    return np.concatenate(rows)


def logits_on_every_set(path, ids, **options):
    """The logits of a file, which are the same bits on every instruction set, by one thread and by three."""
    before, want = instruction_sets.active(), None
    try:
        for threads in (1, 3):
            model = lowbit.load(path, **{**options, "threads": threads})
            for isa in instruction_sets.available():
                instruction_sets.use(isa)
                got = model.logits(ids)
                want = got if want is None else want
                assert np.array_equal(got, want), (isa, threads)
    finally:
        instruction_sets.use(before)
    return want


def loaded_in_little(path):
    """A model under nearly the smallest budget, which depends on what the last load has left in the process."""
    limit = 1 << 16
    for _ in range(5):
        try:
            return lowbit.load(path, max_ram=limit, threads=1)
        except lowbit.MemoryBudgetError as error:
            limit = error.smallest
    raise AssertionError(f"{limit} bytes are too little again and again")
