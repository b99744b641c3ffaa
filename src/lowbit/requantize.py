"""Making the weights of a finished model smaller, without training: a type for each tensor, and a new GGUF file."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .convert import FILE_TYPES, _copy_metadata, tokenizer_keys
from .errors import FormatError, LowbitError, UnsupportedModelError
from .families import find_family
from .formats import open_model
from .formats.base import ModelFile, TensorInfo
from .formats.blocks import TERNARY, dequantize
from .formats.ggml_types import tensor_nbytes, type_of
from .formats.gguf_writer import GGUFWriter
from .quantize import pack_codes, quantize
from .quantize.ternary import nearest_ternary
from .weights import ternary_of

__all__ = ["METHODS", "Altered", "Chosen", "Quantized", "Source", "quantize_model"]

METHODS: dict[str, tuple[str, ...]] = {
    "ternary": ("TQ2_0", "Q2_0"), "int4": ("Q4_0",), "int8": ("Q8_0",), "f16": ("F16",)
}  # fmt: skip
"""Stored types by what the user asks for, best first: the first whose blocks fit into the rows is taken."""
TABLES = ("token_embd.weight", "output.weight")
LINEAR = re.compile(r"blk\.(\d+)\.(attn_[qkv]|attn_output|attn_qkv|ffn_gate|ffn_up|ffn_down)\.weight")


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


class Source:
    """An open model whose matrices can be decoded and encoded anew.

    Parameters
    ----------
    file : ModelFile

    Raises
    ------
    UnsupportedModelError
        If the model is no GGUF file and no llama2.c checkpoint.
    """

    def __init__(self, file: ModelFile) -> None:
        if file.format not in ("gguf", "llama2c"):
            raise UnsupportedModelError("quantising starts from one file; make it GGUF with `lowbit convert` first")
        self.file = file
        family = find_family(file.architecture)
        if file.metadata.get("lowbit.rope_pairing", family.rope_pairing) != family.rope_pairing:
            raise UnsupportedModelError("rotates other channels than its family; `lowbit convert` puts that right")
        self._masters = family.has_masters(file.metadata)
        self.matrices = [i for i in file.tensors.values() if i.name in TABLES or LINEAR.fullmatch(i.name)]
        if not any(LINEAR.fullmatch(info.name) for info in self.matrices):
            raise FormatError("has no linear layers to quantise")
        self.weights = sum(int(np.prod(info.shape, dtype=np.int64)) for info in file.tensors.values())

    def values(self, info: TensorInfo) -> np.ndarray:
        """Return the weights of a matrix as the model computes with them, float32 (rows, cols)."""
        values = dequantize(info.type, self.file.read(info.name), info.shape)
        if not np.isfinite(values).all():
            raise FormatError(f"the tensor {info.name} has weights that are infinite or not a number")
        if self._masters and info.name not in TABLES and info.type in ("F32", "F16", "BF16"):
            codes, scale = ternary_of(values)
            values = (codes.astype(np.float32) - 1) * np.float32(scale)
        return values

    def kept_type(self, info: TensorInfo) -> str:
        """Return the type of a tensor that is not quantised."""
        return "F32" if len(info.shape) == 1 else info.type

    def fitting(self, info: TensorInfo, method: str) -> str | None:
        """Return the type by which a method stores a matrix, or None if no block fits into its rows."""
        return next((kind for kind in METHODS[method] if info.shape[-1] % type_of(kind).block_elements == 0), None)


def block_of(name: str) -> int:
    """Return the number of the block that a matrix belongs to; -1 for embedding and output head."""
    found = LINEAR.fullmatch(name)
    return int(found[1]) if found else -1


def encode(kind: str, values: np.ndarray) -> np.ndarray:
    """Encode a matrix in a stored type; ternary types get the weights that are nearest in squared error."""
    if kind in TERNARY:
        return pack_codes(kind, *nearest_ternary(values, type_of(kind).block_elements))
    return quantize(kind, values)


def error_of(values: np.ndarray, kind: str, raw: np.ndarray) -> float:
    """Return how far encoded weights are from `values`, as a share of their norm."""
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(dequantize(kind, raw, values.shape) - values)) / norm if norm else 0.0


class Altered:
    """A model file of which some tensors are replaced in memory."""

    def __init__(self, file: ModelFile, replaced: Mapping[str, tuple[str, np.ndarray]]) -> None:
        self._file, self._raw = file, {name: raw for name, (_, raw) in replaced.items()}
        self.tensors = dict(file.tensors)
        for name, (kind, raw) in replaced.items():
            self.tensors[name] = replace(self.tensors[name], type=kind, nbytes=raw.nbytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, name: str) -> np.ndarray:
        """Return the stored bytes of a tensor."""
        return self._raw[name] if name in self._raw else self._file.read(name)


def uniform(source: Source, method: str, head: str, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Choose one method for all linear layers, another for the tables, and others where a rule says so.

    Parameters
    ----------
    source : Source
    method, head : keys of `METHODS`, for the linear layers and for embedding and output head
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
    kinds = {}
    for pattern, _ in rules:
        if not any(fnmatch.fnmatchcase(info.name, pattern) for info in source.matrices):
            raise LowbitError(f"no matrix of the model has a name like {pattern!r}")
    for info in source.matrices:
        asked = head if info.name in TABLES else method
        for pattern, other in rules:
            if fnmatch.fnmatchcase(info.name, pattern):
                asked = other
        kinds[info.name] = source.fitting(info, asked) or "F16"
    return kinds


def write(source: Source, target: str, kinds: Mapping[str, str], progress: Callable[[int, int], None]) -> Quantized:
    """Write the model with these types; the file gets its name when it is complete.

    Raises
    ------
    LowbitError
        If the target cannot be written, or its disk has no room; nothing is left behind then.
    """
    file = source.file
    infos = list(file.tensors.values())
    types = {info.name: kinds.get(info.name, source.kept_type(info)) for info in infos}
    nbytes = sum(tensor_nbytes(types[info.name], info.shape) for info in infos)
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(target))).free
    if nbytes > free:
        raise LowbitError(f"{target}: needs {nbytes:,} bytes, and {free:,} are free on its disk")
    linear = [types[info.name] for info in infos if LINEAR.fullmatch(info.name)]
    commonest = max(set(linear), key=linear.count)
    chosen, done = [], 0
    with GGUFWriter(target, file.architecture, file.metadata.get("general.alignment", 32)) as writer:
        _copy_metadata(file, writer, FILE_TYPES.get(commonest, 1), tokenizer_keys(file)[0])
        for info in infos:
            writer.add_tensor_info(info.name, types[info.name], info.shape)
        writer.write_header()
        for info in infos:
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
            writer.write_tensor(info.name, raw)
            file.release(info.name)
            done += int(np.prod(info.shape, dtype=np.int64))
            progress(done, source.weights)
    return Quantized(target, os.path.getsize(target), 8 * nbytes / source.weights, chosen)


def quantize_model(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    method: str = "ternary",
    head: str = "int8",
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
    method, head : keys of `METHODS`, for the linear layers and for embedding and output head
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

    Returns
    -------
    Quantized

    Raises
    ------
    FormatError, UnsupportedModelError
        If the source or the text cannot be used.
    LowbitError
        If the budget is too small, a rule fits nothing, or the target cannot be written.
    """
    from .sensitivity import Calibration, allocate, measure  # needs the compiled kernels, which writing does not

    source, target = os.fspath(source), os.fspath(target)
    report = progress or (lambda what, done, total: None)
    if bits is not None and text is None:
        raise LowbitError("bits are given to tensors by their sensitivity, and measuring it needs a text")
    with open_model(source) as file:
        if os.path.exists(target) and os.path.samefile(source, target):
            raise LowbitError(f"{target}: is the file to be quantised; give the new one another name")
        try:
            model = Source(file)
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
            done = write(model, target, kinds, lambda i, n: report("writing", i, n))
        except (FormatError, UnsupportedModelError) as error:
            if str(error).startswith((source, target, os.fspath(text or source))):
                raise
            raise error.__class__(f"{source}: {error}") from None
        except OSError as error:
            raise LowbitError(f"{target}: cannot be written ({error.strerror or error})") from None
    done.tensors = [replace(tensor, losses=losses.get(tensor.name, {})) for tensor in done.tensors]
    done.tensors.sort(key=lambda tensor: block_of(tensor.name))
    if calibration:
        done.before = before
        with open_model(target) as written:
            done.after = calibration.score(written)
    return done
