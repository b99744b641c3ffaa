"""Thresholds for activation sparsity, found by looking at the activations of a text."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from ..assets import EMBEDDED_MODEL
from ..errors import UnsupportedModelError
from ..families import plan_of
from ..formats import open_model
from ..formats.files import named
from ..loading import sparsity
from ..loading.load import build, check_threads, tokenizer_of
from ..plan import LINEARS
from .writing import keep_files

WINDOW = 512
"""Tokens that are looked at together; each window begins with BOS."""


def default_path(model: str | os.PathLike[str]) -> str:
    """Return where the thresholds of a model are written unless told otherwise: beside it."""
    return os.fspath(model).rstrip("/\\") + ".thresholds.json"


def calibrate(
    model: str | os.PathLike[str] | None,
    text: str,
    target: float,
    output: str | os.PathLike[str],
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> list[dict[str, float]]:
    """Find for each linear layer the magnitude below which a share of its inputs lies, and write a thresholds file.

    Parameters
    ----------
    model : path, optional
        None is the model that comes with lowbit.
    text : str
        Like what the model will write.
    target : float
        Share of the inputs to skip, from 0 to less than 1.
    output : path
        To be given to ``lowbit.load(..., sparsity=output)``.
    threads : int, optional
    progress : callable, optional
        Called with the tokens that are done and all tokens.
    tokenizer : path, optional
        As for `lowbit.load`.

    Returns
    -------
    list of dict of str to float
        The thresholds, per layer of the model.

    Raises
    ------
    FormatError, UnsupportedModelError
        If the model cannot be used, or has no tokenizer.
    ValueError
        If `target` is out of range, or there is no text.
    LowbitError
        If `output` is a file of the model.
    """
    sparsity.parse(target)
    tokenizer = None if tokenizer is None else os.path.normpath(tokenizer)
    with open_model(EMBEDDED_MODEL if model is None else model) as file, named(file.path, tokenizer):
        keep_files(file, os.fspath(output))
        reader = tokenizer_of(file, plan_of(file), tokenizer)
        if plan_of(file).has_experts:
            raise UnsupportedModelError("sparsity is not supported in models with experts")
        if reader is None:
            raise UnsupportedModelError("has no tokenizer")
        start = [] if reader.bos_id is None else [reader.bos_id]
        ids = reader.encode(text, add_bos=False)
        if not ids:
            raise ValueError("there is no text to look at")
        decoder, plan = build(file, check_threads(threads), None)
        counts = {name: np.zeros((plan.n_layers, sparsity.MAGNITUDES), np.uint32) for name in LINEARS}
        size = min(WINDOW, decoder.graph.context) - len(start)
        for at in range(0, len(ids), size):
            window = ids[at : at + size]
            decoder.observe(np.array(start + window, np.int32), counts)
            if progress is not None:
                progress(at + len(window), len(ids))
        layers = sparsity.thresholds_of(counts, target)
        sparsity.write_thresholds(output, file, target, len(ids), layers)
    return layers
