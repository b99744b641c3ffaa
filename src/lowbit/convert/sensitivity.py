"""Which tensors bear rounding: measured on a text, one tensor and one type at a time; and bits shared out accordingly.

To second order a tensor's loss grows with the square of its error. One number for each tensor, fitted to what was
measured, is less noisy than the small losses of 4 and 8 bits themselves. The losses of tensors that are rounded alone
are then added up as if they were independent. They are not, and the sum is usually too small; it serves to compare
tensors, and what the finished file loses is measured on the file itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from .._kernels.decoder import Decoder
from .._kernels.sequence import Sequence
from ..engine.perplexity import nats
from ..errors import FormatError, LowbitError
from ..families import plan_of
from ..formats.base import ModelFile, TensorInfo
from ..loading.load import build, check_threads, tokenizer_of
from ..quantize.ggml_types import tensor_nbytes
from ..train.corpus import plain_text, read_documents
from .source import METHODS, Altered, Source, encode, error_of

WINDOW = 256
"""Longest piece of a document that is scored at once, in tokens."""
SCORE_ROWS = 64
"""Positions whose logits are held at a time."""
EXACT = 1e-3
"""Relative error up to which a type keeps the values of a tensor, but for the rounding of its scale."""
HIGH_BITS = 4.0
"""What embedding, output head and first block get at least: all later layers build on them."""


class Calibration:
    """A text, and how well models with one tokenizer predict it.

    Parameters
    ----------
    file : ModelFile whose tokenizer is used
    text : path of a text or JSONL file; documents as in `lowbit.train.corpus.read_documents`
    tokens : tokens of the text that are read
    threads : threads to compute with, None for one per core

    Raises
    ------
    FormatError
        If the file cannot be read as text, or gives no token to predict.
    """

    def __init__(self, file: ModelFile, text: str | os.PathLike[str], tokens: int, threads: int | None) -> None:
        tokenizer = tokenizer_of(file, plan_of(file))
        if tokenizer is None:
            raise FormatError("has no tokenizer, which the calibration text needs")
        self.threads, self.pieces, self.bytes = check_threads(threads), list[np.ndarray](), 0
        left = tokens
        for document in map(plain_text, read_documents([os.fspath(text)])):
            ids = np.array(tokenizer.encode(document, add_bos=True), np.int32)
            if len(ids) > left + 1:
                ids = ids[: left + 1]
                document = tokenizer.decode(ids[1:].tolist())
            for start in range(0, len(ids) - 1, WINDOW):
                self.pieces.append(ids[start : start + WINDOW + 1])
            self.bytes += len(document.encode())
            left -= len(ids) - 1
            if left <= 0:
                break
        if not self.bytes:
            raise FormatError(f"{text}: no text in it to measure on")

    def score(self, file: ModelFile) -> float:
        """Return the bits per byte of a model on the text."""
        longest = max(len(piece) for piece in self.pieces) - 1
        context = min(longest, int(file.metadata.get(f"{file.architecture}.context_length", longest)))
        decoder, _ = build(file, self.threads, context, "f32", "file", weights="file")
        decoder.most_logits = SCORE_ROWS
        total = sum(
            self._nats(decoder, piece[start : start + context + 1])
            for piece in self.pieces
            for start in range(0, len(piece) - 1, context)
        )
        return total / math.log(2) / self.bytes

    @staticmethod
    def _nats(decoder: Decoder, ids: np.ndarray) -> float:
        sequence = Sequence(decoder.pool, ids[:-1], len(ids) - 1, reuse=False).compute_as(all_sparse=True)
        try:
            return float(nats(decoder.read(sequence, "every"), ids[1:]).sum())
        finally:
            sequence.close()


@dataclass(frozen=True)
class Option:
    """A type that a tensor may have."""

    type: str
    nbytes: int
    bits: float
    """Per weight."""
    loss: float
    """Bits per byte that are lost if this tensor alone has the type."""
    error: float
    """Norm of the difference over the norm of the weights."""


def measure(
    source: Source, calibration: Calibration, before: float, progress: Callable[[int, int], None]
) -> dict[str, list[Option]]:
    """Measure the sensitivity of every matrix to every method.

    Parameters
    ----------
    source : Source
    calibration : Calibration
    before : bits per byte of the model as it is
    progress : called with the matrices done and all matrices

    Returns
    -------
    dict
        Options by tensor name, fewest bits first.
    """
    result = {}
    for number, info in enumerate(source.matrices):
        progress(number, len(source.matrices))
        values = source.values(info)
        kinds = dict.fromkeys(kind for method in METHODS if (kind := source.fitting(info, method)))
        options = []
        for kind in kinds:
            raw = encode(kind, values)
            altered = cast(ModelFile, Altered(source.file, {info.name: (kind, raw)}))
            loss = calibration.score(altered) - before
            bits = 8 * raw.nbytes / values.size
            options.append(Option(kind, raw.nbytes, bits, loss, error_of(values, kind, raw)))
        result[info.name] = sorted(options, key=lambda option: option.bits)
    progress(len(source.matrices), len(source.matrices))
    return result


def check_budget(source: Source, bits: float) -> None:
    """Refuse a budget that no choice of types fits into, before anything is measured.

    Raises
    ------
    LowbitError
        If the smallest file needs more.
    """
    used = 0
    for info in source.file.tensors.values():
        if info not in source.matrices:
            used += tensor_nbytes(source.kept_type(info), info.shape)
            continue
        kinds = [kind for method in METHODS if (kind := source.fitting(info, method))]
        sizes = sorted((tensor_nbytes(kind, info.shape), kind) for kind in kinds)
        used += next(size for size, kind in sizes if source.layer_of(info.name) >= 0 or _high(source, info, kind))
    if used > bits * source.weights / 8:
        raise _too_few(source, bits, used)


def _high(source: Source, info: TensorInfo, kind: str) -> bool:
    """Whether a type has at least `HIGH_BITS`, or keeps the values of a matrix as they are."""
    if 8 * tensor_nbytes(kind, info.shape) >= HIGH_BITS * math.prod(info.shape):
        return True
    values = source.values(info)
    return error_of(values, kind, encode(kind, values)) <= EXACT


def _too_few(source: Source, bits: float, nbytes: int) -> LowbitError:
    least = 8 * nbytes / source.weights
    return LowbitError(f"{bits:g} bits per weight are too few: the smallest file of this model has {least:.2f}")


def expected(options: list[Option]) -> list[float]:
    """Return the losses of a tensor's options by the best fit of a multiple of the squared error, none below 0."""
    squares = [option.error**2 for option in options]
    scale = sum(option.loss * square for option, square in zip(options, squares, strict=True))
    scale /= max(sum(square * square for square in squares), 1e-30)
    return [max(scale, 0.0) * square for square in squares]


def allocate(source: Source, options: dict[str, list[Option]], bits: float) -> dict[str, str]:
    """Share out the bits: from the smallest file on, the step that saves most loss per byte comes first.

    Embedding, output head and first block get at least 4 bits, unless fewer keep their values exactly; the first
    block does without where the budget is too small for that.

    Parameters
    ----------
    source : Source
    options : as `measure` returns them
    bits : float
        Most bits per weight, over all tensors of the file.

    Returns
    -------
    dict
        Type by tensor name.

    Raises
    ------
    LowbitError
        If the smallest file needs more.
    """
    others = [info for info in source.file.tensors.values() if info.name not in options]
    fixed = sum(tensor_nbytes(source.kept_type(info), info.shape) for info in others)
    budget = bits * source.weights / 8 - fixed

    fitted = {
        name: [replace(option, loss=loss) for option, loss in zip(found, expected(found), strict=True)]
        for name, found in options.items()
    }

    def allowed(name: str, last: int) -> list[Option]:
        if source.layer_of(name) > last:
            return fitted[name]
        return [o for o in fitted[name] if o.bits >= HIGH_BITS or o.error <= EXACT]

    for last in (0, -1):  # the layer up to which types are high; embedding and head come before the first
        found = {name: allowed(name, last) for name in options}
        chosen = dict.fromkeys(options, 0)
        used = sum(choices[0].nbytes for choices in found.values())
        if used <= budget:
            break
    else:
        raise _too_few(source, bits, used + fixed)
    while True:
        steps = [
            ((choices[at].loss - choices[i].loss) / (choices[i].nbytes - choices[at].nbytes), name, i)
            for name, choices in found.items()
            for at in (chosen[name],)
            for i in range(at + 1, len(choices))
            if used + choices[i].nbytes - choices[at].nbytes <= budget and choices[i].loss < choices[at].loss
        ]
        if not steps:
            return {name: choices[chosen[name]].type for name, choices in found.items()}
        _, name, i = max(steps)
        used += found[name][i].nbytes - found[name][chosen[name]].nbytes
        chosen[name] = i
