"""An open model whose matrices are about to get other types: decoded, encoded, and replaced in memory for a trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from ..families import find_family, plan_of
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import TERNARY, dequantize
from ..loading.ternary import ternary_of
from ..plan import Weight
from ..quantize import pack_codes, quantize
from ..quantize.ggml_types import type_of
from ..quantize.ternary import nearest_ternary

METHODS: dict[str, tuple[str, ...]] = {
    "ternary": ("TQ2_0", "Q2_0"), "int4": ("Q4_0",), "int8": ("Q8_0",), "f16": ("F16",)
}  # fmt: skip
"""Stored types by what the user asks for, best first: the first whose blocks fit into the rows is taken. These are
what a budget is shared out among."""
TYPES = METHODS | {
    "q4_1": ("Q4_1",), "q5_0": ("Q5_0",), "q5_1": ("Q5_1",), "iq4_nl": ("IQ4_NL",), "q4_k": ("Q4_K", "Q5_0"),
    "q5_k": ("Q5_K", "Q5_1"), "q6_k": ("Q6_K", "Q8_0"),
}  # fmt: skip
"""And others, that can be asked for by name."""


PIECE = 1 << 18
"""Weights that are encoded at a time."""


class Source:
    """An open model whose matrices can be decoded and encoded anew.

    Raises
    ------
    UnsupportedModelError
        If the model is no GGUF file and no llama2.c checkpoint.
    """

    def __init__(self, file: ModelFile) -> None:
        if file.format not in ("gguf", "llama2c"):
            raise UnsupportedModelError("quantising starts from one file; make it GGUF with `lowbit convert` first")
        self.file = file
        self.plan = plan = plan_of(file)
        if plan.rope_pairing != find_family(file.architecture).rope_pairing:
            raise UnsupportedModelError("rotates other channels than its family; `lowbit convert` puts that right")
        self._masters = plan.bit_linear
        self._weights = plan.by_name
        wanted = ("linear", "embedding", "head")
        self.matrices = [i for i in file.tensors.values() if i.name in plan.by_name and self.of(i).kind in wanted]
        if not any(self.of(info).kind == "linear" for info in self.matrices):
            raise FormatError("has no linear layers to quantise")
        self.weights = sum(math.prod(info.shape) for info in file.tensors.values())

    def of(self, info: TensorInfo) -> Weight:
        """Return the plan's word on one of the matrices."""
        return self._weights[info.name]

    def layer_of(self, name: str) -> int:
        """Return the number of the layer that a matrix belongs to; -1 for embedding and output head."""
        return self._weights[name].layer

    def values(self, info: TensorInfo) -> np.ndarray:
        """Return the weights of a matrix as the model computes with them, float32 (rows, cols)."""
        values = dequantize(info.type, self.file.read(info.name), info.shape).reshape(-1, info.shape[-1])
        if not np.isfinite(values).all():
            raise FormatError(f"the tensor {info.name} has weights that are infinite or not a number")
        if self._masters and self.of(info).kind == "linear" and info.type in ("F32", "F16", "BF16"):
            codes, scale = ternary_of(values)
            values = (codes.astype(np.float32) - 1) * np.float32(scale)
        return values

    def kept_type(self, info: TensorInfo) -> str:
        """Return the type of a tensor that is not quantised."""
        return "F32" if len(info.shape) == 1 else info.type

    def fitting(self, info: TensorInfo, method: str) -> str | None:
        """Return the type by which a method stores a matrix, or None if no block fits into its rows."""
        return next((kind for kind in TYPES[method] if info.shape[-1] % type_of(kind).block_elements == 0), None)


def encode(kind: str, values: np.ndarray) -> np.ndarray:
    """Encode a matrix in a stored type; ternary types get the weights that are nearest in squared error."""
    # Some rows at a time, which a cache holds, and Ctrl-C is heard in between: no type has blocks of several rows.
    rows = max(1, PIECE // values.shape[1])
    return np.concatenate([_encode(kind, values[i : i + rows]) for i in range(0, len(values), rows)])


def _encode(kind: str, values: np.ndarray) -> np.ndarray:
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
