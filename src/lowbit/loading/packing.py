"""From the tensors of a file to packed matrices: how each type is packed, and which tensors become one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._kernels.matrix import BLOCK_TYPES, FLOAT_TYPES, MAX_COLS, UNPACKED_TYPES, PackedMatrix
from .._kernels.paging import PagedMatrix
from .._kernels.stored import STORED_TYPES
from ..errors import FormatError, UnsupportedModelError
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import TERNARY, dequantize, integer_codes, is_ternary, ternary_codes
from ..formats.files import named
from ..plan import Linear, ModelPlan, Weight
from ..quantize.ggml_types import type_of
from .latent import taken_apart
from .paging import Paging, stored_of
from .ternary import GROUP, all_ternary, blockwise_ternary, ternary_of

HEADS = ("auto", "file", "q8_0")
"""What becomes of float embeddings and heads: 8 bits if they are large, as in the file, or 8 bits."""
FLOAT_WEIGHTS = ("auto", "file")
"""What becomes of the float weights of linear layers: ternary if that is what they are, else 8 bits if they are large;
or as in the file."""
PACKS = ("auto", "dense")
"""How ternary weights lie in memory: four to a byte, or five."""
DENSE_GROUP = 128
"""Weights of a scale group from which on five to a byte save something."""
LARGE_TABLE = 1 << 22
"""Weights of a float matrix from which on 8 bits are worth their error."""
GLANCE = 64
"""Blocks that are looked at to tell whether a tensor has one scale, where a few have to do."""
WITH_CODE_3 = " with code 3"
"""Behind the name of a type that is ternary where no code is 3."""
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
    rope_factors : list of tuple of float
        From the tensors of the plan's `rope_freqs`.
    unpacked : set of str
        Types that stay as they are in the file, and are unpacked at each use.
    """

    layers: list[dict[str, Any]]
    token_embd: PackedMatrix | PagedMatrix
    output: PackedMatrix | PagedMatrix
    output_norm: np.ndarray
    rope_factors: list[tuple[float, ...]]
    unpacked: set[str]


def check_tensors(file: ModelFile, plan: ModelPlan) -> None:
    """Compare a file's tensors with the plan; no weight is read.

    Raises
    ------
    FormatError
        If a tensor is missing or has the wrong shape.
    UnsupportedModelError
        If the file has a tensor that the plan does not know: leaving it out would change the text.
    """
    for weight in plan.weights():
        info = file.tensors.get(weight.name)
        if info is None:
            raise FormatError(f"the tensor {weight.name} is missing")
        if info.shape != weight.shape and not (weight.kind == "router" and (1, *info.shape) == weight.shape):
            raise FormatError(f"the tensor {weight.name} has shape {info.shape}, not {weight.shape}")
    for name in file.tensors:
        if name not in plan.by_name and not plan.is_unused(name):
            raise UnsupportedModelError(f"the tensor {name} is not known in the family {plan.family}")


def read_weights(
    file: ModelFile, plan: ModelPlan, threads: int, head: str = "auto", weights: str = "auto",
    paging: Paging | None = None, pack: str = "auto",
) -> Weights:  # fmt: skip
    """Read and pack every weight of a model; `head`, `weights` and `pack` are of `HEADS`, `FLOAT_WEIGHTS`, `PACKS`.

    With `paging`, matrices stay in files, and only norms and biases are read, and what heads have of their own.

    Raises
    ------
    FormatError, UnsupportedModelError
        As `check_tensors`, or if a tensor holds values that cannot be.
    """
    file, plan = taken_apart(file, plan)
    read = _Reader(file, plan, threads, head, weights, paging, pack=pack)
    layers = []
    for i in range(plan.n_layers):
        layer: dict[str, Any] = {}
        for part in plan.parts(i):
            if isinstance(part, Weight):
                layer[part.role] = read.vector(part)
                continue
            layer[part.name] = read.linear(part)
            if part.biases:
                layer[part.name + "_bias"] = np.concatenate([read.vector(bias) for bias in part.biases], axis=-1)
            if part.norms:
                layer[part.name + "_norms"] = [read.vector(norm) for norm in part.norms]
            folded = [plan.is_folded(weight) for weight in part.weights]
            layer[part.name + "_folded"] = folded[: len(layer[part.name])]
        layers.append(layer)
    output_norm = read.vector(plan.output_norm)
    tied = plan.tied_embeddings
    token_embd = read.table(plan.token_embd, lookup=True, product=tied)
    output = token_embd if tied else read.table(plan.output)
    rope_factors = [read.factors(weight) for weight in plan.rope_freqs]
    return Weights(layers, token_embd, output, output_norm, rope_factors, paging.unpacked if paging else set())


def packed_bytes(
    file: ModelFile, plan: ModelPlan, head: str = "auto", weights: str = "auto", thorough: bool = False,
    pack: str = "auto",
) -> tuple[int, set[str]]:  # fmt: skip
    """Compute what the weights of a file would take in memory; of each tensor a few rows are read at most.

    If `thorough`, Q2_0 and PQ2_0 are read to the end: a code 3 anywhere makes them 4 bits.

    Returns
    -------
    nbytes : int
        As `lowbit.load` would pack them.
    ternary : set of str
        Names of the tensors that would be packed as ternary codes.
    """
    file, plan = taken_apart(file, plan)
    read = _Reader(file, plan, 1, head, weights, glance=True, pack=pack)
    read.thorough = thorough
    nbytes, ternary = 0, set[str]()
    for weight in plan.weights():
        info = file.tensors[weight.name]
        if weight.kind not in ("linear", "router", "embedding", "head"):
            nbytes += 0 if weight.kind == "factors" else 4 * math.prod(weight.shape)
            continue
        rows, cols = matrix_shape(info)
        scale = read.one_scale(info) if weight.kind == "linear" else None
        kind = read.table_kind(info) if weight.kind in ("embedding", "head") else read.kind(info, weight.kind)
        group = read.new(kind, 16, cols, scale)  # all groups of 16 rows are as large as this one
        nbytes += group.nbytes * -(-rows // 16)
        if group.format in ("u2", "t5"):
            ternary.add(weight.name)
        file.release(weight.name)
    return nbytes, ternary


def kept_as(kind: str) -> str:
    """Say what weights of a type are in memory; empty for those that are as in the file, and for floats."""
    if kind in TERNARY and kind not in BLOCK_TYPES:
        return "ternary codes, equal" + (" (4 bits where a code is 3)" if kind in ("Q2_0", "PQ2_0") else "")
    form, options = UNPACKED_TYPES.get(kind, ("", {}))
    return f"8 bits, equal, a scale for {options['group_cols']}" if form == "u8" else ""


def matrix_shape(info: TensorInfo) -> tuple[int, int]:
    """Rows and columns of a tensor; those of experts follow one another."""
    return math.prod(info.shape[:-1]), info.shape[-1]


def _make_one(infos: Sequence[TensorInfo], kinds: Sequence[str], scales: Sequence[float | None]) -> bool:
    """Tell whether tensors can be the rows of one matrix: packed alike, and in whole row groups."""
    alike = len({(kind, scale is None) for kind, scale in zip(kinds, scales)}) == 1
    return alike and not any(info.shape[0] % 16 for info in infos[:-1]) and len(infos[0].shape) == 2


class _Reader:
    """Reads and packs the tensors that a plan names; their shapes are known to be right.

    With `glance`, a few rows of a tensor decide how it would be packed; nothing can be packed then.
    """

    def __init__(
        self, file: ModelFile, plan: ModelPlan, threads: int, head: str, weights: str, paging: Paging | None = None,
        glance: bool = False, pack: str = "auto",
    ) -> None:  # fmt: skip
        self.file, self.plan, self.threads, self.paging, self.glance = file, plan, threads, paging, glance
        self.head, self.weights, self.pack, self.thorough = head, weights, pack, not glance
        # Codes and scales of float tensors that become ternary, from looking for them until they are packed.
        self.codes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def vector(self, weight: Weight) -> np.ndarray:
        info = self.file.tensors[weight.name]
        values = dequantize(
            info.type, self.file.read(info.name), weight.shape
        ).copy()  # no view that keeps the map alive
        if not np.isfinite(values).all():
            raise FormatError(f"the tensor {info.name} has values that are not finite")
        return values

    def factors(self, weight: Weight) -> tuple[float, ...]:
        values = self.vector(weight)
        if not (values > 0).all():
            raise FormatError(f"the tensor {weight.name} has a RoPE factor that is not positive")
        return tuple(float(f) for f in values)

    def table(self, weight: Weight, lookup: bool = False, product: bool = True) -> PackedMatrix | PagedMatrix:
        """The embedding or the head; `lookup` and `product` say what it is for."""
        info = self.file.tensors[weight.name]
        kind = self.table_kind(info)
        if self.paging is not None:
            return self._paged(self.paging, kind, info, None, lookup, product)
        packed = self.new(kind, weight.shape[0], weight.shape[1], None)
        self._fill(packed, info, None, 0)
        return packed

    def table_kind(self, info: TensorInfo) -> str:
        """What a table is packed as: its own type, but large float ones in 8 bits unless told otherwise."""
        rounded = self.head == "q8_0" or (self.head == "auto" and math.prod(info.shape) >= LARGE_TABLE)
        return "8 bits" if info.type in FLOAT_TYPES and rounded else self.own_kind(info)

    def own_kind(self, info: TensorInfo) -> str:
        """The type of a tensor; what is ternary by name may hold a code that is not, and has to be looked through."""
        if info.type in TERNARY:
            raw = self.file.read(info.name)
            if not is_ternary(info.type, raw if self.thorough else raw[: GLANCE * type_of(info.type).block_bytes]):
                return info.type + WITH_CODE_3
        return info.type

    def linear(self, linear: Linear) -> list[PackedMatrix] | list[PagedMatrix]:
        """Tensors that read the same input, as one matrix where their types and row counts allow it."""
        infos = [self.file.tensors[weight.name] for weight in linear.weights]
        what = linear.weights[0].kind
        scales = [self.one_scale(info) if what == "linear" else None for info in infos]
        kinds = [self.kind(info, what) for info in infos]
        if self.paging is not None and linear.name not in ("k_b", "v_b"):
            return [self._paged(self.paging, *one) for one in zip(kinds, infos, scales)]
        mixed = len({self.plan.is_folded(weight) for weight in linear.weights}) > 1
        if linear.norms or mixed or not _make_one(infos, kinds, scales):
            packed = [self.new(kind, *matrix_shape(info), scale) for kind, info, scale in zip(kinds, infos, scales)]
            for matrix, info, scale in zip(packed, infos, scales):
                self._fill(matrix, info, scale, 0)
            return packed
        matrix = self.new(kinds[0], linear.n_out, linear.n_in, scales[0])
        row = 0
        for info, scale in zip(infos, scales):
            self._fill(matrix, info, scale, row)
            row += info.shape[0]
        return [matrix]

    def kind(self, info: TensorInfo, what: str = "linear") -> str:
        """What a linear layer's tensor is packed as: its own type, or what becomes of floats."""
        if what == "router":
            return self._router_kind(info)
        if info.type not in FLOAT_TYPES or self.weights == "file" or self.plan.activation_quant == "token":
            return self.own_kind(info)
        raw, (rows, cols) = self.file.read(info.name), matrix_shape(info)
        few = min(16, rows)  # a look at these settles it for weights that are not ternary
        first = dequantize(info.type, raw[: info.nbytes // rows * few], (few, cols))
        if not first.any() or blockwise_ternary(first) is not None:
            if self.glance:
                return "ternary floats"
            found = all_ternary(info, raw)
            if found is not None:
                self.codes[info.name] = found
                return "ternary floats"
        return "8 bits" if rows * cols >= LARGE_TABLE else info.type

    def _router_kind(self, info: TensorInfo) -> str:
        """What chooses among experts stays as exact as it is, since the smallest error could choose others.

        Weights that were bfloat16 once are kept so: half the bytes, and the same products.
        """
        if info.type not in FLOAT_TYPES:
            raise UnsupportedModelError(f"the tensor {info.name} is of type {info.type}, where floats belong")
        halves = info.type == "F32" and not self.file.read(info.name).view("<u2")[::2].any()
        return "BF16" if halves else info.type

    def one_scale(self, info: TensorInfo) -> float | None:
        """The scale that all weights of a ternary tensor share, or None."""
        if self.glance and (info.type == "I2_S" or (self.plan.bit_linear and info.type in FLOAT_TYPES)):
            return 1.0  # it has one, and which does not matter
        raw = self.file.read(info.name)
        if info.type == "I2_S":
            return float(raw[-32:-28].view("<f4")[0])
        if info.type == "TQ2_0" and self.plan.activation_quant == "token":
            scales = raw.reshape(-1, 66)[: GLANCE if self.glance else None, 64:].copy().view("<f2")
            largest = scales.max()
            if ((scales == largest) | (scales == 0)).all():
                return float(largest)
        if self.plan.bit_linear and info.type in FLOAT_TYPES:
            rows, cols = matrix_shape(info)
            codes, scale = ternary_of(dequantize(info.type, raw, (rows, cols)))
            self.codes[info.name] = codes, np.full((rows, 1), scale, np.float32)
            return scale
        return None

    def new(self, kind: str, rows: int, cols: int, one_scale: float | None) -> PackedMatrix:
        """An empty matrix for tensors of this type."""
        if cols > MAX_COLS:
            raise UnsupportedModelError(f"rows of {cols} weights are longer than the {MAX_COLS} that lowbit supports")
        group = None if self.plan.activation_quant == "token" else GROUP
        if one_scale is not None:
            return self._ternary(rows, cols, group)
        if kind in FLOAT_TYPES:
            return PackedMatrix(FLOAT_TYPES[kind], rows, cols)
        if kind in BLOCK_TYPES:
            form, block = BLOCK_TYPES[kind]
            if form == "u2":
                return self._ternary(rows, cols, block, halves=True)
            return PackedMatrix(form, rows, cols, group_cols=block, scales_f16=True)
        if kind in TERNARY:
            size = type_of(kind).block_elements
            return self._ternary(rows, cols, size, min(size, 128))
        if kind.endswith(WITH_CODE_3):
            return PackedMatrix("u4", rows, cols, group_cols=type_of(kind.removesuffix(WITH_CODE_3)).block_elements)
        if kind in UNPACKED_TYPES:
            form, options = UNPACKED_TYPES[kind]
            return PackedMatrix(form, rows, cols, **options)
        if kind == "ternary floats":
            return self._ternary(rows, cols, GROUP)
        if kind == "Q8_L2C":
            # Groups may go on in the next row; what divides both has one scale within a row.
            size = math.gcd(int(self.file.metadata["llama2c.group_size"]), cols)
            return PackedMatrix("u8", rows, cols, group_cols=size, block_cols=min(size, 32))
        if kind == "8 bits":
            return PackedMatrix("u8", rows, cols, group_cols=32, scales_f16=True)
        raise UnsupportedModelError(f"weights of type {kind} are not supported yet")

    def _ternary(
        self, rows: int, cols: int, group: int | None, block: int | None = None, halves: bool = False
    ) -> PackedMatrix:
        """An empty matrix for ternary weights; `halves`: with scales as the file has them, in float16."""
        if self.pack == "dense" and (group or cols) >= DENSE_GROUP:
            return PackedMatrix("t5", rows, cols, group_cols=group, scales_f16=halves or block is not None)
        return PackedMatrix("u2", rows, cols, group_cols=group, scales_f16=halves, block_cols=block)

    def _paged(
        self, paging: Paging, kind: str, info: TensorInfo, one_scale: float | None, lookup: bool = False,
        product: bool = True,
    ) -> PagedMatrix:  # fmt: skip
        """Leave a tensor in the file if the kernels can take it from there, or pack it into the spill file."""
        rows, cols = matrix_shape(info)
        whole = rows // 16 * 16
        use = {"lookup": lookup, "product": product, "parts": math.prod(info.shape[:-2])}
        pattern, tail = self.new(kind, 16, cols, one_scale), None
        if one_scale is not None:
            pattern.fill_scales(np.full((16, pattern.n_groups), one_scale, np.float32))
        if whole < rows:
            tail = self.new(kind, rows - whole, cols, one_scale)
            self._fill(tail, info, one_scale, 0, whole)
        if pattern.format != "t5" and paging.in_file(info, kind):
            return paging.stored(info, pattern, tail, **use)
        offset = paging.begin_spill()
        for start in range(0, whole, CHUNK_ROWS):
            part = self.new(kind, min(CHUNK_ROWS, whole - start), cols, one_scale)
            self._fill(part, info, one_scale, 0, start)
            paging.spill(part.groups())
        self.codes.pop(info.name, None)
        return paging.spilled(offset, rows, pattern, tail, **use)

    def _fill(self, matrix: PackedMatrix, info: TensorInfo, one_scale: float | None, row: int, first: int = 0) -> None:
        """Fill rows of a matrix from `row` on with those of a tensor from `first` on, as many as there are room for."""
        raw, (all_rows, cols) = self.file.read(info.name), matrix_shape(info)
        rows = min(all_rows - first, matrix.shape[0] - row)
        part = slice(first, first + rows)
        kind = type_of(info.type)
        row_bytes = cols // kind.block_elements * kind.block_bytes
        stored = raw[first * row_bytes : (first + rows) * row_bytes]
        with named(f"the tensor {info.name}"):
            if info.name in self.codes:
                codes, scales = self.codes[info.name]
                matrix.fill_codes(codes[part], row, self.threads)
                matrix.fill_scales(scales[part], row)
            elif matrix.format in FLOAT_TYPES.values():
                if matrix.format != FLOAT_TYPES[info.type]:  # F32 that were BF16
                    stored = stored.view("<u2")[1::2].copy().view(np.uint8)
                matrix.fill_floats(stored, rows, row, self.threads)
            elif matrix.format == "t5" and info.type in BLOCK_TYPES:
                for start in range(0, rows, CHUNK_ROWS):
                    fours = PackedMatrix(
                        "u2", min(CHUNK_ROWS, rows - start), cols, group_cols=matrix.group_cols,
                        scales_f16=one_scale is None,
                    )  # fmt: skip
                    chunk = stored[start * row_bytes : (start + fours.shape[0]) * row_bytes]
                    fours.fill_blocks(info.type, chunk, fours.shape[0], one_scale, threads=self.threads)
                    matrix.fill_dense(fours, row + start, self.threads)
            elif matrix.format == "t5" or (
                info.type in TERNARY and info.type not in BLOCK_TYPES and matrix.format == "u2"
            ):
                self._fill_ternary(matrix, info.type, stored.reshape(rows, -1), raw[-32:], one_scale, row)
            elif info.type in BLOCK_TYPES:
                matrix.fill_blocks(info.type, stored, rows, one_scale, row, self.threads)
            elif info.type in STORED_TYPES:
                matrix.fill_stored(stored_of(info.type), stored, rows, row, self.threads)
            elif matrix.format == "u4":
                self._fill_with_code_3(matrix, info.type, stored.reshape(rows, -1), row)
            elif info.type == "Q8_L2C":
                n = all_rows * cols
                scales = raw[n:].view("<f4").astype(np.float32)
                scales = scales.repeat(all_rows * matrix.n_groups // len(scales)).reshape(all_rows, -1)
                matrix.fill_codes(raw[:n].reshape(-1, cols)[part] ^ np.uint8(128), row, self.threads)
                matrix.fill_scales(scales[part], row)
            else:
                matrix.fill_rounded(info.type, stored, rows, row, self.threads)
        if rows == all_rows:
            self.codes.pop(info.name, None)
        self.file.release(info.name)

    def _fill_ternary(
        self, matrix: PackedMatrix, kind: str, stored: np.ndarray, tail: np.ndarray, one_scale: float | None, row: int
    ) -> None:
        """Decode a few rows at a time; `tail` are the bytes behind all blocks of I2_S."""
        for start in range(0, len(stored), CHUNK_ROWS):
            part = stored[start : start + CHUNK_ROWS]
            raw = np.concatenate([part.reshape(-1), tail]) if kind == "I2_S" else part.reshape(-1)
            codes, scales = ternary_codes(kind, raw, (len(part), matrix.shape[1]))
            if one_scale is not None:
                codes.reshape(*scales.shape, -1)[scales == 0] = 1
                scales = np.full((len(part), matrix.n_groups), one_scale, np.float32)
            matrix.fill_codes(codes, row + start, self.threads)
            matrix.fill_scales(scales, row + start)

    def _fill_with_code_3(self, matrix: PackedMatrix, kind: str, stored: np.ndarray, row: int) -> None:
        """Take over codes of four values and their scales, a few rows at a time."""
        for start in range(0, len(stored), CHUNK_ROWS):
            part = stored[start : start + CHUNK_ROWS]
            codes, scales = integer_codes(kind, part.reshape(-1), (len(part), matrix.shape[1]))
            matrix.fill_codes(codes.view(np.uint8) + np.uint8(8), row + start, self.threads)
            matrix.fill_scales(scales, row + start)
