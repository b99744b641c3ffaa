"""The kernels, for use on their own: packing, products, and the block cache."""

from __future__ import annotations

from ._kernels.blockcache import BlockCache
from ._kernels.matrix import PackedMatrix, matmul, matmul_sums, quantize_activations
from ._kernels.ternary import pack_ternary, ternary_matmul, unpack_ternary

__all__ = [
    "BlockCache",
    "PackedMatrix",
    "matmul",
    "matmul_sums",
    "pack_ternary",
    "quantize_activations",
    "ternary_matmul",
    "unpack_ternary",
]
