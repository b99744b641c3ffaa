"""Older files with latent attention as if they were newer: two matrices of each head in place of one tensor for both.

A query meets the latents, and not the keys made of them, so the matrix that makes keys is needed the other way round.
Its blocks would then go across those of the file; it is decoded, and packed as floats are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._kernels.matrix import FLOAT_TYPES
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import dequantize
from ..plan import LatentAttention, ModelPlan
from ..quantize.ggml_types import type_of

__all__ = ["taken_apart"]


def taken_apart(file: ModelFile, plan: ModelPlan) -> tuple[ModelFile, ModelPlan]:
    """Return a file and its plan, whose tensors are as expected, with the matrices of heads apart from each other."""
    if not any(isinstance(layer.mixer, LatentAttention) and layer.mixer.joined for layer in plan.layers):
        return file, plan
    mixers = (layer.mixer for layer in plan.layers)
    apart = (replace(mixer, joined=False) if isinstance(mixer, LatentAttention) else mixer for mixer in mixers)
    layers = tuple(replace(layer, mixer=mixer) for layer, mixer in zip(plan.layers, apart))
    return _Apart(file, plan), replace(plan, layers=layers)


class _Apart:
    def __init__(self, file: ModelFile, plan: ModelPlan) -> None:
        self._file = file
        self.tensors = dict(file.tensors)
        self._parts: dict[str, tuple[str, LatentAttention]] = {}  # tensor that it is made of, and of which attention
        self._latest: tuple[str, np.ndarray] = ("", np.zeros(0, np.uint8))
        for number, layer in enumerate(plan.layers):
            if not isinstance(mixer := layer.mixer, LatentAttention) or not mixer.joined:
                continue
            name = f"blk.{number}.attn_kv_b.weight"
            both = self.tensors.pop(name)
            whole = type_of(both.type)
            rows = both.type if not whole.tail_bytes and both.type != "Q8_L2C" else "F32"
            for part, kind, shape in (
                ("attn_k_b", both.type if both.type in FLOAT_TYPES else "F32", (mixer.rank, mixer.nope_dim)),
                ("attn_v_b", rows, (mixer.value_size, mixer.rank)),
            ):
                made, stored = f"blk.{number}.{part}.weight", type_of(kind)
                blocks = mixer.n_heads * shape[0] * shape[1] // stored.block_elements
                self._parts[made] = name, mixer
                self.tensors[made] = TensorInfo(
                    made, kind, (mixer.n_heads, *shape), both.offset, blocks * stored.block_bytes
                )  # fmt: skip

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
        self._file.release(self._parts[name][0] if name in self._parts else name)

    def _made(self, name: str) -> np.ndarray:
        source, mixer = self._parts[name]
        both, kind = self._file.tensors[source], self.tensors[name].type
        raw = self._file.read(source)
        if kind != both.type:
            raw = dequantize(both.type, raw, both.shape).view(np.uint8)
        heads = raw.reshape(mixer.n_heads, mixer.nope_dim + mixer.value_size, -1)  # a row is its bytes
        if ".attn_v_b." in name:
            return np.ascontiguousarray(heads[:, mixer.nope_dim :]).reshape(-1)
        values = heads[:, : mixer.nope_dim].copy().view(f"u{type_of(kind).block_bytes}")  # (heads, nope_dim, rank)
        return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(-1).view(np.uint8)
