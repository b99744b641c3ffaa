"""From the tensors of a file to packed matrices: which tensor plays which role, and how each type is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._kernels.matrix import BLOCK_TYPES, FLOAT_TYPES, MAX_COLS, PackedMatrix
from ._kernels.paging import PagedMatrix
from .config import ModelConfig
from .errors import FormatError, UnsupportedModelError
from .families import Family
from .formats.base import ModelFile, TensorInfo
from .formats.blocks import TERNARY, dequantize, ternary_codes
from .formats.ggml_types import DECODABLE, type_of
from .paging import Paging
from .quantize.ternary import absmean

__all__ = ["FLOAT_WEIGHTS", "HEADS", "Weights", "read_weights"]

HEADS = ("auto", "file", "q8_0")
"""What becomes of float embeddings and heads: 8 bits if they are large, as in the file, or 8 bits."""
FLOAT_WEIGHTS = ("auto", "file")
"""What becomes of the float weights of linear layers: ternary if that is what they are, else 8 bits if they are large;
or as in the file."""
LARGE_TABLE = 1 << 22
"""Weights of a float matrix from which on 8 bits are worth their error."""
GROUP = 256
"""Channels that share one int8 scale where the model does not say how activations are quantised."""
CHUNK_ROWS = 256
"""Rows that are decoded at a time on the way to 8 bits; a multiple of the row group of 16."""


@dataclass
class Weights:
    """All weights of a model, packed.

    Attributes
    ----------
    layers : list of dict
        As `lowbit._kernels.graph.Graph` takes them.
    token_embd, output : PackedMatrix or PagedMatrix
        The same object if the embeddings are tied.
    output_norm : ndarray of float32, shape (hidden_size,)
    rope_factors : tuple of float
        From the file's ``rope_freqs`` tensor; empty if it has none.
    """

    layers: list[dict[str, Any]]
    token_embd: PackedMatrix | PagedMatrix
    output: PackedMatrix | PagedMatrix
    output_norm: np.ndarray
    rope_factors: tuple[float, ...]


def read_weights(
    file: ModelFile, config: ModelConfig, family: Family, threads: int, head: str = "auto", weights: str = "auto",
    paging: Paging | None = None,
) -> Weights:  # fmt: skip
    """Read and pack every weight of a model; `head` is one of `HEADS`, `weights` one of `FLOAT_WEIGHTS`.

    With `paging`, matrices stay in files, and only norms and biases are read.

    Raises
    ------
    FormatError
        If a tensor is missing, has the wrong shape, or holds values that cannot be.
    UnsupportedModelError
        If the file has a tensor that the family does not know: leaving it out would change the text.
    """
    read = _Reader(file, config, family, threads, head, weights, paging)
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    hidden, wide = config.hidden_size, config.intermediate_size
    layers = []
    for i in range(config.n_layers):
        b = f"blk.{i}."
        layer: dict[str, Any] = {
            "attn_norm": read.vector(b + "attn_norm", hidden),
            "ffn_norm": read.vector(b + "ffn_norm", hidden),
        }
        for name, parts, cols in (
            ("qkv", [(b + "attn_q", q_size), (b + "attn_k", kv_size), (b + "attn_v", kv_size)], hidden),
            ("attn_output", [(b + "attn_output", hidden)], q_size),
            ("gate_up", [(b + "ffn_gate", wide), (b + "ffn_up", wide)], hidden),
            ("ffn_down", [(b + "ffn_down", hidden)], wide),
        ):
            layer[name] = read.linear(parts, cols)
        if config.attn_sub_norm:
            layer["attn_sub_norm"] = read.vector(b + "attn_sub_norm", q_size)
        if config.ffn_sub_norm:
            layer["ffn_sub_norm"] = read.vector(b + "ffn_sub_norm", wide)
        if config.qk_norm:
            layer["attn_q_norm"] = read.vector(b + "attn_q_norm", config.head_dim)
            layer["attn_k_norm"] = read.vector(b + "attn_k_norm", config.head_dim)
        if config.attn_bias:
            sizes = {"attn_q": q_size, "attn_k": kv_size, "attn_v": kv_size}
            layer["qkv_bias"] = np.concatenate([read.vector(b + n, size, ".bias") for n, size in sizes.items()])
        layers.append(layer)
    output_norm = read.vector("output_norm", hidden)
    tied = config.tied_embeddings
    token_embd = read.table("token_embd", config.vocab_size, hidden, lookup=True, product=tied)
    output = token_embd if tied else read.table("output", config.vocab_size, hidden)
    rope_factors: tuple[float, ...] = ()
    if "rope_freqs.weight" in file.tensors:
        factors = read.vector("rope_freqs", (config.rope_dim or config.head_dim) // 2)
        if not (factors > 0).all():
            raise FormatError("a RoPE factor is not positive")
        rope_factors = tuple(float(f) for f in factors)
    read.refuse_unread()
    return Weights(layers, token_embd, output, output_norm, rope_factors)


def ternary_of(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes and scale of a BitNet linear's float weights.

    Weights that are ternary already (one magnitude besides 0) keep that magnitude; masters are quantised by absmean,
    which would get the scale of weights that are ternary already wrong.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols)

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
    scale : float
    """
    largest = np.abs(values).max()
    if np.isfinite(largest) and ((values == largest) | (values == -largest) | (values == 0)).all():
        return (np.sign(values) + 1).astype(np.uint8), float(largest)
    return absmean(values)


def blockwise_ternary(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and scales of float weights that are ternary already, with a magnitude for each block of a row.

    That is how TriLM's published weights look: a scale for each part of a tensor that was on a processor of its own.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols)

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
    scales : ndarray of float32, shape (rows, ceil(cols / 256))
        None instead of both if a block has more than one magnitude beside 0, or nothing but zeros is there.
    """
    magnitudes = np.abs(values)
    scales = np.maximum.reduceat(magnitudes, np.arange(0, values.shape[1], GROUP), axis=1)
    spread = np.repeat(scales, GROUP, axis=1)[:, : values.shape[1]]
    if not (np.isfinite(scales).all() and ((magnitudes == spread) | (magnitudes == 0)).all() and scales.any()):
        return None
    return (np.sign(values) + 1).astype(np.uint8), scales


def _make_one(infos: Sequence[TensorInfo], kinds: Sequence[str], scales: Sequence[float | None]) -> bool:
    """Tell whether tensors can be the rows of one matrix: packed alike, and in whole row groups."""
    alike = len({(kind, scale is None) for kind, scale in zip(kinds, scales)}) == 1
    return alike and not any(info.shape[0] % 16 for info in infos[:-1])


class _Reader:
    """Reads tensors by role, checks their shapes, and remembers which were read."""

    def __init__(
        self, file: ModelFile, config: ModelConfig, family: Family, threads: int, head: str, weights: str,
        paging: Paging | None,
    ) -> None:  # fmt: skip
        self.file, self.config, self.family, self.threads, self.paging = file, config, family, threads, paging
        self.head, self.weights = head, weights
        self.masters = family.has_masters(file.metadata)
        self.seen: set[str] = set()
        # Codes and scales of float tensors that become ternary, from looking for them until they are packed.
        self.codes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _find(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.file.tensors.get(name)
        if info is None:
            raise FormatError(f"the tensor {name} is missing")
        if info.shape != shape:
            raise FormatError(f"the tensor {name} has shape {info.shape}, not {shape}")
        self.seen.add(name)
        return info

    def refuse_unread(self) -> None:
        for name in self.file.tensors:
            if name not in self.seen:
                raise UnsupportedModelError(f"the tensor {name} is not known in the family {self.family.name}")

    def vector(self, role: str, size: int, suffix: str = ".weight") -> np.ndarray:
        info = self._find(role + suffix, (size,))
        values = dequantize(info.type, self.file.read(info.name), info.shape).copy()  # no view that keeps the map alive
        if not np.isfinite(values).all():
            raise FormatError(f"the tensor {info.name} has values that are not finite")
        return values

    def table(
        self, role: str, rows: int, cols: int, lookup: bool = False, product: bool = True
    ) -> PackedMatrix | PagedMatrix:
        """The embedding or the head: in the type of the file, but large float ones in 8 bits unless told otherwise.

        `lookup` and `product` say what it is for.
        """
        info = self._find(role + ".weight", (rows, cols))
        rounded = self.head == "q8_0" or (self.head == "auto" and rows * cols >= LARGE_TABLE)
        kind = "8 bits" if info.type in FLOAT_TYPES and rounded else info.type
        if self.paging is not None:
            return self._paged(self.paging, kind, info, None, lookup, product)
        packed = self._new(kind, rows, cols, None)
        self._fill(packed, info, None, 0)
        return packed

    def linear(self, parts: Sequence[tuple[str, int]], cols: int) -> list[PackedMatrix] | list[PagedMatrix]:
        """Tensors that read the same input, as one matrix where their types and row counts allow it."""
        infos = [self._find(role + ".weight", (rows, cols)) for role, rows in parts]
        scales = [self._one_scale(info) for info in infos]
        kinds = [self._kind(info) for info in infos]
        if self.paging is not None:
            return [self._paged(self.paging, *one) for one in zip(kinds, infos, scales)]
        if not _make_one(infos, kinds, scales):
            packed = [self._new(kind, info.shape[0], cols, scale) for kind, info, scale in zip(kinds, infos, scales)]
            for matrix, info, scale in zip(packed, infos, scales):
                self._fill(matrix, info, scale, 0)
            return packed
        matrix = self._new(kinds[0], sum(info.shape[0] for info in infos), cols, scales[0])
        row = 0
        for info, scale in zip(infos, scales):
            self._fill(matrix, info, scale, row)
            row += info.shape[0]
        return [matrix]

    def _kind(self, info: TensorInfo) -> str:
        """What a linear layer's tensor is packed as: its own type, or what becomes of floats."""
        if info.type not in FLOAT_TYPES or self.weights == "file" or self.config.activation_quant == "token":
            return info.type
        raw, (rows, cols) = self.file.read(info.name), info.shape
        few = min(16, rows)  # a look at these settles it for weights that are not ternary
        first = dequantize(info.type, raw[: info.nbytes // rows * few], (few, cols))
        if not first.any() or blockwise_ternary(first) is not None:
            found = blockwise_ternary(dequantize(info.type, raw, info.shape))
            if found is not None:
                self.codes[info.name] = found
                return "ternary floats"
        return "8 bits" if rows * cols >= LARGE_TABLE else info.type

    def _one_scale(self, info: TensorInfo) -> float | None:
        """The scale that all weights of a ternary tensor share, or None."""
        raw = self.file.read(info.name)
        if info.type == "I2_S":
            return float(raw[-32:-28].view("<f4")[0])
        if info.type == "TQ2_0" and self.config.activation_quant == "token":
            scales = raw.reshape(-1, 66)[:, 64:].copy().view("<f2")
            largest = scales.max()
            if ((scales == largest) | (scales == 0)).all():
                return float(largest)
        if self.masters and info.type in FLOAT_TYPES:
            codes, scale = ternary_of(dequantize(info.type, raw, info.shape))
            self.codes[info.name] = codes, np.full((info.shape[0], 1), scale, np.float32)
            return scale
        return None

    def _new(self, kind: str, rows: int, cols: int, one_scale: float | None) -> PackedMatrix:
        """An empty matrix for tensors of this type."""
        if cols > MAX_COLS:
            raise UnsupportedModelError(f"rows of {cols} weights are longer than the {MAX_COLS} that lowbit supports")
        group = None if self.config.activation_quant == "token" else GROUP
        if one_scale is not None:
            return PackedMatrix("u2", rows, cols, group_cols=group)
        if kind in FLOAT_TYPES:
            return PackedMatrix(FLOAT_TYPES[kind], rows, cols)
        if kind in BLOCK_TYPES:
            form, block = BLOCK_TYPES[kind]
            return PackedMatrix(form, rows, cols, group_cols=block, scales_f16=True)
        if kind in TERNARY:
            size = type_of(kind).block_elements
            return PackedMatrix("u2", rows, cols, group_cols=size, block_cols=min(size, 128))
        if kind == "ternary floats":
            return PackedMatrix("u2", rows, cols, group_cols=GROUP)
        if kind == "Q8_L2C":
            size = int(self.file.metadata["llama2c.group_size"])
            return PackedMatrix("u8", rows, cols, group_cols=size, block_cols=min(size, 32))
        if kind in DECODABLE or kind == "8 bits":  # what has no packed form of its own is kept in 8 bits
            return PackedMatrix("u8", rows, cols, group_cols=32, scales_f16=True)
        raise UnsupportedModelError(f"weights of type {kind} are not supported yet")

    def _paged(
        self, paging: Paging, kind: str, info: TensorInfo, one_scale: float | None, lookup: bool = False,
        product: bool = True,
    ) -> PagedMatrix:  # fmt: skip
        """Leave a tensor in the file if the kernels can take it from there, or pack it into the spill file."""
        rows, cols = info.shape
        whole = rows // 16 * 16
        pattern, tail = self._new(kind, 16, cols, one_scale), None
        if one_scale is not None:
            pattern.fill_scales(np.full((16, pattern.n_groups), one_scale, np.float32))
        if whole < rows:
            tail = self._new(kind, rows - whole, cols, one_scale)
            self._fill(tail, info, one_scale, 0, whole)
        if paging.in_file(info, kind):
            return paging.stored(info, pattern, tail, lookup=lookup, product=product)
        offset = paging.begin_spill()
        for start in range(0, whole, CHUNK_ROWS):
            part = self._new(kind, min(CHUNK_ROWS, whole - start), cols, one_scale)
            self._fill(part, info, one_scale, 0, start)
            paging.spill(part.groups())
        self.codes.pop(info.name, None)
        return paging.spilled(offset, rows, pattern, tail, lookup=lookup, product=product)

    def _fill(self, matrix: PackedMatrix, info: TensorInfo, one_scale: float | None, row: int, first: int = 0) -> None:
        """Fill rows of a matrix from `row` on with those of a tensor from `first` on, as many as there are room for."""
        raw, (_, cols) = self.file.read(info.name), info.shape
        rows = min(info.shape[0] - first, matrix.shape[0] - row)
        part = slice(first, first + rows)
        kind = type_of(info.type)
        row_bytes = cols // kind.block_elements * kind.block_bytes
        stored = raw[first * row_bytes : (first + rows) * row_bytes]
        try:
            if info.name in self.codes:
                codes, scales = self.codes[info.name]
                matrix.fill_codes(codes[part], row, self.threads)
                matrix.fill_scales(scales[part], row)
            elif matrix.format in FLOAT_TYPES.values():
                matrix.fill_floats(stored, rows, row, self.threads)
            elif info.type in BLOCK_TYPES:
                matrix.fill_blocks(info.type, stored, rows, one_scale, row, self.threads)
            elif info.type in TERNARY and matrix.format == "u2":
                codes, scales = ternary_codes(info.type, stored, (rows, cols))
                matrix.fill_codes(codes, row, self.threads)
                matrix.fill_scales(scales, row)
            elif info.type == "Q8_L2C":
                n = info.shape[0] * cols
                codes, scales = raw[:n].reshape(-1, cols)[part], raw[n:].view("<f4").reshape(info.shape[0], -1)[part]
                matrix.fill_codes(codes ^ np.uint8(128), row, self.threads)
                matrix.fill_scales(scales.astype(np.float32), row)
            elif info.type in FLOAT_TYPES:
                matrix.fill_rounded(info.type, stored, rows, row, self.threads)
            else:
                self._fill_decoded(matrix, info.type, stored.reshape(rows, -1), row)
        except FormatError as error:
            raise FormatError(f"the tensor {info.name}: {error}") from None
        if rows == info.shape[0]:
            self.codes.pop(info.name, None)
        self.file.release(info.name)

    def _fill_decoded(self, matrix: PackedMatrix, kind: str, stored: np.ndarray, row: int) -> None:
        """Decode a few rows at a time, and round them to 8 bits."""
        for start in range(0, len(stored), CHUNK_ROWS):
            part = stored[start : start + CHUNK_ROWS]
            values = dequantize(kind, part.reshape(-1), (len(part), matrix.shape[1]))
            matrix.fill_rounded("F32", values.reshape(-1).view(np.uint8), len(part), row + start, self.threads)
