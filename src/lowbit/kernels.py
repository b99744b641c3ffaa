"""The kernels, for use on their own: packing, products, and the block cache."""

from __future__ import annotations

from ._kernels.blockcache import BlockCache
from ._kernels.matrix import PackedMatrix
from ._kernels.products import matmul, matmul_sums, quantize_activations
from ._kernels.sparse import channel_major, sparse_matmul, sparse_ternary_matmul
from ._kernels.ternary import pack_ternary, ternary_matmul, unpack_ternary
from ._kernels.topk import top_k

__all__ = [
    "BlockCache",
    "PackedMatrix",
    "channel_major",
    "matmul",
    "matmul_sums",
    "pack_ternary",
    "quantize_activations",
    "sparse_matmul",
    "sparse_ternary_matmul",
    "ternary_matmul",
    "top_k",
    "unpack_ternary",
]
