"""How fast this machine trains a model, measured on the training loop itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from .loop import Schedule, fit
from .model import BitNet


def training_speed(
    model: BitNet,
    batch_tokens: int,
    micro_tokens: int,
    window: int,
    steps: int = 4,
    processes: int = 1,
    threads: int = 1,
) -> float:
    """Train on random tokens for a few steps.

    Parameters
    ----------
    model : trained, and so spoilt
    batch_tokens, micro_tokens, window : as in `Schedule`
    processes, threads : as in `fit`
    steps : steps that count; one more before them warms up and, for a compiled model, compiles

    Returns
    -------
    float
        Tokens per second in the fastest step: optimizer, gradient clipping and reading of the batch included.
    """
    draw = np.random.default_rng(0)
    documents = [draw.integers(3, model.shape.vocab_size, batch_tokens + 1, np.uint16)]
    schedule = Schedule(
        steps=steps + 1, batch_tokens=batch_tokens, micro_tokens=micro_tokens, window=window, float_share=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        history = fit(model, documents, schedule, Path(folder) / "checkpoint.npz", processes=processes, threads=threads)
    return batch_tokens / min(record["seconds"] for record in history[1:])
