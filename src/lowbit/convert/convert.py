"""Converting a model file to GGUF: tensor by tensor, a few rows at a time, so that memory does not grow with the model.

Ternary targets hold ternary weights exactly, up to the rounding of their scale to float16 (TQ2_0, TQ1_0). Weights that
are not ternary are never made so, except in the families whose linear layers are defined that way (BitNet): there float
masters are quantised by absmean, whatever the target, as `lowbit.load` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FormatError
from ..families import find_family, plan_of
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import TERNARY, dequantize
from ..formats.files import named
from ..plan import Attention, ModelPlan
from ..quantize import pack_codes, quantize
from ..quantize.ggml_types import type_of
from ..quantize.ternary import ABSMEAN_FLOOR
from .mixtures import MIXTURES, fitting, mixed
from .writing import opened, write_model

TARGET_TYPES = ("tq2_0", "tq1_0", "i2_s", "q8_0", "q4_0", "f16", *MIXTURES)
"""What the linear layers may become; `MIXTURES` choose a type for each of them, and for embedding and output head."""
HEAD_TYPES = ("q8_0", "q6_k", "f16")
"""What the embedding and the output head may become."""
CHUNK = 1 << 19
"""Weights decoded and encoded at a time: 2 MB as float32, and a few times that while they are encoded."""
NEARLY = 1e-3
"""How far, as a share of the largest magnitude, a stored value may be from -s, 0 and +s and still count as ternary."""


@dataclass
class Conversion:
    """What became of a model."""

    path: str
    types: dict[str, int] = field(default_factory=dict)
    """Tensors by type."""
    nbytes: int = 0
    """Size of the new file."""
    instead: dict[str, str] = field(default_factory=dict)
    """Tensors whose rows do not suit the type asked for, and the type they have instead."""
    no_tokenizer: str | None = None
    """Why the new file has no tokenizer, if the source is a folder and the file has none."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str,  # noqa: A002
    head: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write a model as GGUF.

    Parameters
    ----------
    source : path
        Anything that `lowbit.formats.open_model` opens.
    target : path
        Replaced in one step when the new file is complete; until then its bytes have a temporary name beside it.
    type : str
        One of `TARGET_TYPES`, for the linear layers. Norms and biases become F32.
    head : str, optional
        One of `HEAD_TYPES`, for the embedding and the output head; None is ``q8_0``, or as a mixture has it.
    progress : callable, optional
        Called with the weights done so far and the weights in all.

    Raises
    ------
    FormatError
        If the source is missing or damaged, or its weights cannot be stored in this type.
    UnsupportedModelError
        If lowbit does not know the architecture or a tensor type.
    LowbitError
        If the target cannot be written.
    ValueError
        If `type` or `head` is none of the above.
    """
    if type not in TARGET_TYPES:
        raise ValueError(f"type must be one of {', '.join(TARGET_TYPES)}, not {type!r}")
    if head is not None and head not in HEAD_TYPES:
        raise ValueError(f"head must be one of {', '.join(HEAD_TYPES)}, not {head!r}")
    source, target = os.fspath(source), os.fspath(target)
    with opened(source, target) as file:
        return _Converter(file, type, head).write(target, progress or (lambda done, total: None))


class _Converter:
    def __init__(self, file: ModelFile, target: str, head: str | None) -> None:
        self.plan, self.target = plan_of(file), target.upper()
        mixture = MIXTURES.get(target)
        self.kind = mixture.type if mixture else self.target
        usual = find_family(file.architecture).rope_pairing
        self.file: ModelFile = file if self.plan.rope_pairing == usual else _AdjacentPairs(file, self.plan)
        self.result = Conversion("")
        if not file.tensors:
            raise FormatError("has no tensors to convert")
        asked = mixed(target, file, self.plan) if mixture else {}
        if head is not None or not mixture:
            tables = [weight.name for weight in self.plan.weights() if weight.kind in ("embedding", "head")]
            asked |= dict.fromkeys(tables, (head or "q8_0").upper())
        self.kinds = {info.name: self._kind(info, asked.get(info.name, self.kind)) for info in file.tensors.values()}
        if not mixture and self.kind not in self.kinds.values():
            size = type_of(self.kind).block_elements
            raise FormatError(f"no linear layer has rows that are a multiple of the {self.kind} block of {size}")

    def _purpose(self, name: str) -> str | None:
        return self.plan.by_name[name].kind if name in self.plan.by_name else None

    def _kind(self, info: TensorInfo, asked: str) -> str:
        purpose = self._purpose(info.name)
        if len(info.shape) == 1 or purpose not in ("linear", "embedding", "head"):
            return "F32"
        kind = fitting(info, asked)  # keeps the values, where rows are no whole number of blocks
        if kind != asked:
            self.result.instead[info.name] = kind
        return kind

    def write(self, target: str, progress: Callable[[int, int], None]) -> Conversion:
        result = self.result
        result.no_tokenizer = write_model(self.file, target, self.kinds, self.target, self._made, progress)
        for kind in self.kinds.values():
            result.types[kind] = result.types.get(kind, 0) + 1
        result.path, result.nbytes = target, os.path.getsize(target)
        return result

    def _made(self, info: TensorInfo) -> Iterator[np.ndarray]:
        """The stored bytes of the new tensor, a few rows at a time; complaints name the tensor."""
        with named(f"the tensor {info.name}"):
            yield from self._parts(info)

    def _parts(self, info: TensorInfo) -> Iterator[np.ndarray]:
        kind, bit_linear = self.kinds[info.name], self.plan.bit_linear
        linear = self._purpose(info.name) == "linear"
        if kind == info.type and not (linear and (bit_linear or self.kind in TERNARY)):
            yield self.file.read(info.name)
        elif linear and bit_linear:
            yield from self._bit_linear(info, kind)
        elif kind == "I2_S":
            yield from self._i2_s(info, _extremes(self._values(info))[0])
        else:
            for values in self._values(info):
                if linear and self.kind in TERNARY:
                    _refuse_unless_ternary(values, type_of(kind).block_elements if kind in TERNARY else values.shape[1])
                yield quantize(kind, values)

    def _bit_linear(self, info: TensorInfo, kind: str) -> Iterator[np.ndarray]:
        """A BitNet layer: ternary with one scale, or masters that absmean makes so."""
        largest, mean, one_magnitude = _extremes(self._values(info))
        if info.type in TERNARY and not one_magnitude:
            if kind == "I2_S":
                raise FormatError(_SEVERAL_SCALES)
            for values in self._values(info):
                yield quantize(kind, values)
            return
        scale = np.float32(largest if one_magnitude else max(np.float32(mean), np.float32(ABSMEAN_FLOOR)))
        tail = np.zeros(0, np.uint8)
        for values in self._values(info):
            with np.errstate(divide="ignore", invalid="ignore"):
                signs = np.sign(values) if one_magnitude else np.clip(np.rint(values / scale), -1, 1)
            if kind == "I2_S":
                packed = pack_codes(kind, (signs + 1).astype(np.uint8), float(scale))
                tail = packed[-32:]
                yield packed[:-32]
            else:
                yield quantize(kind, signs.astype(np.float32) * scale)
        yield tail

    def _i2_s(self, info: TensorInfo, largest: float) -> Iterator[np.ndarray]:
        """One scale for the whole tensor, behind all codes."""
        tail = np.zeros(32, np.uint8)
        for values in self._values(info):
            _refuse_unless_ternary(values, 128)
            signs = np.where(np.abs(values) > NEARLY * largest, np.sign(values), np.float32(0))
            if (np.abs(values - signs * np.float32(largest)) > NEARLY * largest).any():
                raise FormatError(_SEVERAL_SCALES)
            packed = pack_codes("I2_S", (signs + 1).astype(np.uint8), largest)
            tail = packed[-32:]
            yield packed[:-32]
        yield tail

    def _values(self, info: TensorInfo) -> Iterator[np.ndarray]:
        """Decoded rows of a tensor, checked to be finite: (some rows, cols) float32 at a time."""
        raw, cols = self.file.read(info.name), info.shape[-1]
        rows = int(np.prod(info.shape[:-1], dtype=np.int64))
        step = max(1, CHUNK // cols)
        for start in range(0, rows, step):
            n = min(step, rows - start)
            values = _rows(info.type, raw, rows, cols, start, n)
            if not np.isfinite(values).all():
                raise FormatError("has weights that are infinite or not a number")
            yield values


class _AdjacentPairs:
    """A model that rotates channels (j, j + d/2) of a head, with query and key rows reordered to rotate (2j, 2j + 1).

    GGUF's `llama` is stored so; see `LlamaModel.permute` in llama.cpp's converter.
    """

    def __init__(self, file: ModelFile, plan: ModelPlan) -> None:
        self._file, self._plan = file, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, name: str) -> np.ndarray:
        raw, info = self._file.read(name), self._file.tensors[name]
        weight = self._plan.by_name.get(name)
        attention = self._plan.layers[weight.layer].mixer if weight is not None and weight.layer >= 0 else None
        if weight is None or not isinstance(attention, Attention) or weight.role not in ("attn_q", "attn_k"):
            return raw
        heads = attention.n_heads if weight.role == "attn_q" else attention.n_kv_heads
        rows, tail = info.shape[0], type_of(info.type).tail_bytes
        order = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        stored = raw[: len(raw) - tail].reshape(rows, -1)[order].reshape(-1)
        return np.concatenate([stored, raw[len(raw) - tail :]])


_SEVERAL_SCALES = "has several scales, and I2_S holds one per tensor; --type tq2_0 keeps them"


def _rows(kind: str, raw: np.ndarray, rows: int, cols: int, start: int, n: int) -> np.ndarray:
    """Decode rows `start` to `start + n` of a stored matrix."""
    if kind == "Q8_L2C":  # all int8 values, then the scales of groups that know nothing of rows
        group = rows * cols // ((raw.nbytes - rows * cols) // 4)
        first, last = start * cols, (start + n) * cols
        scales = raw[rows * cols :][first // group * 4 : -(-last // group) * 4].copy().view("<f4")
        wide = np.repeat(scales, group)[first % group :][: last - first]
        return (raw[first:last].view(np.int8) * wide).astype(np.float32).reshape(n, cols)
    tail = type_of(kind).tail_bytes
    row_bytes = (raw.nbytes - tail) // rows
    part = raw[start * row_bytes : (start + n) * row_bytes]
    if tail:
        part = np.concatenate([part, raw[-tail:]])
    return dequantize(kind, part, (n, cols))


def _extremes(parts: Iterator[np.ndarray]) -> tuple[float, float, bool]:
    """Largest and mean magnitude, and whether there is exactly one magnitude besides 0."""
    largest, total, count, one = 0.0, 0.0, 0, True
    for values in parts:
        magnitudes = np.abs(values)
        here = float(magnitudes.max())
        one = one and ((magnitudes == here) | (magnitudes == 0)).all() and (here in (0.0, largest) or largest == 0.0)
        largest = max(largest, here)
        total += float(magnitudes.sum(dtype=np.float64))
        count += magnitudes.size
    return largest, total / count, bool(one)


def _refuse_unless_ternary(values: np.ndarray, block: int) -> None:
    magnitudes = np.abs(values).reshape(-1, block)
    largest = magnitudes.max(axis=1, keepdims=True)
    if (np.minimum(magnitudes, largest - magnitudes) > np.float32(NEARLY) * largest).any():
        raise FormatError("is not ternary, and making it so would ruin the model; --type q8_0, q4_0 or f16 keeps it")
