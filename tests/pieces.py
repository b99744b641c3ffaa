"""Prompts taken in piece by piece, whose logits must not show it."""

from __future__ import annotations

import numpy as np

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
