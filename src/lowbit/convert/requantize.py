"""Making the weights of a finished model smaller, without training: a type for each tensor, and a new GGUF file."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import LowbitError
from ..formats import open_model
from ..formats.base import TensorInfo
from ..formats.blocks import dequantize
from ..quantize import quantize
from .mixtures import MIXTURES, fitting, mixed
from .sensitivity import Calibration, allocate, check_budget, measure
from .source import Source, encode, error_of
from .writing import opened, write_model


@dataclass(frozen=True)
class Chosen:
    """What became of one matrix."""

    name: str
    shape: tuple[int, ...]
    type: str
    bits: float
    """Stored bits per weight."""
    error: float
    """Norm of the difference over the norm of the weights."""
    losses: dict[str, float] = field(default_factory=dict)
    """Bits per byte that the model loses when this tensor alone has a type, by type; empty if not measured."""


@dataclass
class Quantized:
    """A quantised model and how it was made."""

    path: str
    nbytes: int
    bits_per_weight: float
    """Stored bits of all tensors over all weights, norms included."""
    tensors: list[Chosen]
    before: float | None = None
    """Bits per byte on the calibration text of the model that was quantised."""
    after: float | None = None


def uniform(source: Source, method: str, head: str | None, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Choose one method for all linear layers or a mixture, another for the tables, and others where a rule says so.

    Parameters
    ----------
    source : Source
    method : key of `TYPES` or `MIXTURES`, for the linear layers
    head : key of `TYPES`, for embedding and output head; None is as a mixture has it, or else ``int8``
    rules : pairs of a pattern such as ``blk.0.*`` and a method; the last that fits a name counts

    Returns
    -------
    dict
        Type by tensor name.

    Raises
    ------
    LowbitError
        If a pattern fits no matrix.
    """
    mixture = mixed(method, source.file, source.plan) if method in MIXTURES else {}
    kinds = {}
    for pattern, _ in rules:
        if not any(fnmatch.fnmatchcase(info.name, pattern) for info in source.matrices):
            raise LowbitError(f"no matrix of the model has a name like {pattern!r}")
    for info in source.matrices:
        linear = source.of(info).kind == "linear"
        asked = None if mixture and (linear or head is None) else method if linear else head or "int8"
        for pattern, other in rules:
            if fnmatch.fnmatchcase(info.name, pattern):
                asked = other
        kinds[info.name] = source.fitting(info, asked) or "F16" if asked else fitting(info, mixture[info.name])
    return kinds


def write(
    source: Source, target: str, kinds: Mapping[str, str], progress: Callable[[int, int], None], name: str | None = None
) -> Quantized:
    """Write the model with these types, said to be of the mixture `name`; the file gets its name when it is complete.

    Raises
    ------
    LowbitError
        If the target cannot be written, or its disk has no room; nothing is left behind then.
    """
    file = source.file
    types = {info.name: kinds.get(info.name, source.kept_type(info)) for info in file.tensors.values()}
    linear = [types[info.name] for info in source.matrices if source.of(info).kind == "linear"]
    chosen: list[Chosen] = []
    stored = 0

    def make(info: TensorInfo) -> Iterator[np.ndarray]:
        nonlocal stored
        kind = types[info.name]
        if info.name in kinds:
            values = source.values(info)
            raw = encode(kind, values)
            bits = 8 * raw.nbytes / values.size
            chosen.append(Chosen(info.name, info.shape, kind, bits, error_of(values, kind, raw)))
        elif kind == info.type:
            raw = file.read(info.name)
        else:
            raw = quantize(kind, dequantize(info.type, file.read(info.name), info.shape))
        stored += raw.nbytes
        yield raw

    write_model(file, target, types, name or max(set(linear), key=linear.count), make, progress)
    return Quantized(target, os.path.getsize(target), 8 * stored / source.weights, chosen)


def quantize_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    method: str = "ternary",
    head: str | None = None,
    rules: Sequence[tuple[str, str]] = (),
    bits: float | None = None,
    text: str | os.PathLike[str] | None = None,
    tokens: int = 4096,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Quantized:
    """Quantise a model without training.

    Parameters
    ----------
    source : path of a GGUF file or llama2.c checkpoint
    target : path of the GGUF file to write; replaced in one step when it is complete
    method : key of `TYPES`, for the linear layers; or of `MIXTURES`, for all
    head : key of `TYPES`, for embedding and output head; None is as a mixture has it, or else ``int8``
    rules : pairs of a pattern of tensor names and a method for those
    bits : float, optional
        Budget in bits per weight over all tensors. If given, types are chosen by measured sensitivity, and `method`,
        `head` and `rules` do not count.
    text : path, optional
        Calibration text (UTF-8 or JSONL), needed with `bits`; without `bits` the model is measured on it.
    tokens : int
        Tokens of the text that are read.
    threads : int, optional
        Threads to measure with; the result does not depend on it.
    progress : callable, optional
        Called with what is being done, how much is done, and how much there is.

    Raises
    ------
    FormatError, UnsupportedModelError
        If the source or the text cannot be used.
    LowbitError
        If the budget is too small, a rule fits nothing, or the target cannot be written.
    """
    source, target = os.fspath(source), os.fspath(target)
    report = progress or (lambda what, done, total: None)
    if bits is not None and text is None:
        raise LowbitError("bits are given to tensors by their sensitivity, and measuring it needs a text")
    with opened(source, target, os.fspath(text or source)) as file:
        model = Source(file)
        if bits is not None:
            check_budget(model, bits)
        calibration = Calibration(file, text, tokens, threads) if text is not None else None
        before = calibration.score(file) if calibration else None
        losses: dict[str, dict[str, float]] = {}
        if bits is None:
            kinds = uniform(model, method, head, rules)
        else:
            assert calibration is not None
            assert before is not None
            options = measure(model, calibration, before, lambda i, n: report("measuring", i, n))
            kinds = allocate(model, options, bits)
            losses = {name: {o.type: o.loss for o in found} for name, found in options.items()}
        named = method.upper() if bits is None and method in MIXTURES else None
        done = write(model, target, kinds, lambda i, n: report("writing", i, n), named)
    done.tensors = [replace(tensor, losses=losses.get(tensor.name, {})) for tensor in done.tensors]
    done.tensors.sort(key=lambda tensor: model.layer_of(tensor.name))
    if calibration:
        done.before = before
        with open_model(target) as written:
            done.after = calibration.score(written)
    return done
