"""Older files with latent attention as if they were newer: two matrices of each head in place of one tensor for both.

A query meets the latents, and not the keys made of them, so the matrix that makes keys is needed the other way round.
Its blocks would then go across those of the file; it is decoded, and packed as floats are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from .._kernels.matrix import FLOAT_TYPES
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import dequantize
from ..plan import LatentAttention, ModelPlan, Weight
from ..quantize.ggml_types import type_of


def taken_apart(file: ModelFile, plan: ModelPlan) -> tuple[ModelFile, ModelPlan]:
    """Return a file and its plan, whose tensors are as expected, with the matrices of heads apart from each other."""
    mixers = [layer.mixer for layer in plan.layers]
    if not any(isinstance(mixer, LatentAttention) and mixer.joined for mixer in mixers):
        return file, plan
    layers = tuple(
        replace(layer, mixer=replace(mixer, joined=False)) if isinstance(mixer, LatentAttention) else layer
        for layer, mixer in zip(plan.layers, mixers)
    )
    apart = replace(plan, layers=layers)
    parts: dict[str, _Part] = {}
    for number, mixer in enumerate(mixers):
        if isinstance(mixer, LatentAttention) and mixer.joined:
            source = next(part.weights[0] for part in plan.linears(number) if part.name == "kv_b")
            made = {part.name: part.weights[0] for part in apart.linears(number) if part.name in ("k_b", "v_b")}
            parts[made["k_b"].name] = _Part(source.name, made["k_b"], mixer.nope_dim, True)
            parts[made["v_b"].name] = _Part(source.name, made["v_b"], mixer.nope_dim, False)
    return cast(ModelFile, _Apart(file, parts)), apart


@dataclass(frozen=True)
class _Part:
    """What is made of a tensor: of the rows of each head the first `keys`, the other way round, or the others."""

    source: str
    weight: Weight
    keys: int
    turned: bool


class _Apart:
    def __init__(self, file: ModelFile, parts: dict[str, _Part]) -> None:
        self._file, self._parts = file, parts
        self._latest: tuple[str, np.ndarray] = ("", np.zeros(0, np.uint8))
        sources = {part.source for part in parts.values()}
        self.tensors = {name: info for name, info in file.tensors.items() if name not in sources}
        for name, part in parts.items():
            kind, shape = file.tensors[part.source].type, part.weight.shape
            by_rows = not type_of(kind).tail_bytes and kind != "Q8_L2C"
            if kind not in FLOAT_TYPES and (part.turned or not by_rows):
                kind = "F32"
            nbytes = math.prod(shape) // type_of(kind).block_elements * type_of(kind).block_bytes
            self.tensors[name] = TensorInfo(name, kind, shape, 0, nbytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor."""
        if name not in self._parts:
            return self._file.read(name)
        if self._latest[0] != name:
            self._latest = name, self._made(name)
        return self._latest[1]

    def release(self, name: str) -> None:
        """As the file's."""
        self._latest = ("", np.zeros(0, np.uint8))
        self._file.release(self._parts[name].source if name in self._parts else name)

    def _made(self, name: str) -> np.ndarray:
        part = self._parts[name]
        both, kind = self._file.tensors[part.source], self.tensors[name].type
        raw = self._file.read(part.source)
        if kind != both.type:
            raw = dequantize(both.type, raw, both.shape).view(np.uint8)
        heads = raw.reshape(part.weight.shape[0], -1, raw.size // both.shape[0])  # a row is its bytes
        if not part.turned:
            return np.ascontiguousarray(heads[:, part.keys :]).reshape(-1)
        values = heads[:, : part.keys].copy().view(f"u{type_of(kind).block_bytes}")
        return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(-1).view(np.uint8)
