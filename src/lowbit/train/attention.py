"""Causal attention of training: the same mathematics in the two forms that are fastest on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["causal_attention"]

QUERY_BLOCK = 128
"""Queries that share one run of keys in the bfloat16 form: only the last part of that run is masked."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, compute: torch.dtype) -> Tensor:
    """Mix values by softmax(q k / sqrt(head_dim)) over the tokens up to each query.

    Parameters
    ----------
    q : Tensor of float32, shape (batch, time, heads, head_dim)
    k, v : Tensor of float32, shape (batch, time, kv_heads, head_dim)
        Neighbouring query heads share a key and value head.
    compute : torch.float32 or torch.bfloat16
        Of the matrix products. In bfloat16 the scores and their softmax are rounded to it too; float32 is exact.

    Returns
    -------
    Tensor of float32, shape (batch, time, heads * head_dim)
    """
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    share = heads // kv_heads
    if compute == torch.float32:
        k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, time, heads * width)
    # Torch's own attention spends most of its time outside of the matrix products when heads are this narrow. Here the
    # products are plain batched ones, over all queries that read the same keys.
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
