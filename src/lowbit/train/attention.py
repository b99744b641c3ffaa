"""Causal attention of training: the same mathematics in the two forms that are fastest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["blockwise_attention", "causal_attention", "fused_attention"]

QUERY_BLOCK = 64
"""Queries that share one run of keys in `blockwise_attention`: only the last part of that run is masked."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, compute: torch.dtype) -> Tensor:
    """Mix values by softmax(q k / sqrt(head_dim)) over the tokens up to each query.

    Parameters
    ----------
    q : Tensor of float32, shape (batch, time, heads, head_dim)
    k, v : Tensor of float32, shape (batch, time, kv_heads, head_dim)
        Neighbouring query heads share a key and value head.
    compute : torch.float32 or torch.bfloat16
        Of the matrix products. float32 is exact; in bfloat16, on a CPU, where torch.compile fuses what lies between
        the products, scores and their softmax are rounded to it too.

    Returns
    -------
    Tensor of float32, shape (batch, time, heads * head_dim)
    """
    if compute == torch.bfloat16 and q.device.type == "cpu" and torch.compiler.is_compiling():
        return blockwise_attention(q, k, v, compute)
    return fused_attention(q, k, v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by torch's own operator; arguments as in `causal_attention`."""
    share = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, compute: torch.dtype) -> Tensor:
    """Attention as plain batched products; arguments as in `causal_attention`.

    Torch's operator on a CPU spends most of its time outside of the matrix products when heads are narrow. Here all
    queries of a block that read the same keys go into one product.
    """
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    share = heads // kv_heads
    q = (q * width**-0.5).to(compute).view(batch, time, kv_heads, share, width).permute(0, 2, 3, 1, 4)
    k, v = (t.to(compute).transpose(1, 2).reshape(batch * kv_heads, time, width) for t in (k, v))
    mixed = []
    for first in range(0, time, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, time)
        rows = last - first
        scores = q[:, :, :, first:last].reshape(batch * kv_heads, share * rows, width) @ k[:, :last].mT
        future = torch.ones(rows, last, dtype=torch.bool, device=q.device).triu(first + 1)
        scores = scores.view(-1, share, rows, last).float().masked_fill(future, -torch.inf)
        shares = scores.softmax(-1).to(compute).view(-1, share * rows, last)
        mixed.append((shares @ v[:, :last]).view(batch, kv_heads, share, rows, width))
    return torch.cat(mixed, 3).permute(0, 3, 1, 2, 4).reshape(batch, time, heads * width).float()
