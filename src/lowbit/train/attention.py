"""Causal attention of training: the same mathematics in the two forms that are fastest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

QUERY_BLOCK = 64
"""Queries that share one run of keys in `blockwise_attention`: only the last part of that run is masked."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None) -> Tensor:
    """Mix values by softmax(q k / sqrt(head_dim)) over the tokens up to each query.

    Parameters
    ----------
    q : Tensor of float32 or bfloat16, shape (batch, time, heads, head_dim)
    k, v : Tensor of the same type, shape (batch, time, kv_heads, head_dim)
        Neighbouring query heads share a key and value head.
    first : Tensor of int, shape (batch, time), optional
        Place of the first token that each query may look at; 0 if not given.

    Returns
    -------
    Tensor of the same type, shape (batch, time, heads * head_dim)
        float32 is exact; in bfloat16 scores and their softmax are rounded to it too.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.compiler.is_compiling():
        return blockwise_attention(q, k, v, first)
    return fused_attention(q, k, v, first)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None) -> Tensor:
    """Attention by torch's own operator; arguments as in `causal_attention`."""
    time, share = q.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if first is None:
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        places = torch.arange(time, device=q.device)
        seen = (places <= places[:, None]) & (places >= first[..., None])
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
    return mixed.transpose(1, 2).flatten(2)


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None = None) -> Tensor:
    """Attention as plain batched products; arguments as in `causal_attention`.

    Torch's operator on a CPU spends most of its time outside of the matrix products when heads are narrow. Here all
    queries of a block that read the same keys go into one product.
    """
    batch, time, heads, width = q.shape
    kv_heads = k.shape[2]
    share = heads // kv_heads
    q = (q * width**-0.5).view(batch, time, kv_heads, share, width).permute(0, 2, 3, 1, 4)
    k, v = (t.transpose(1, 2).reshape(batch * kv_heads, time, width) for t in (k, v))
    places = torch.arange(time, device=q.device)
    mixed = []
    for begin in range(0, time, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, time)
        rows = end - begin
        scores = q[:, :, :, begin:end].reshape(batch * kv_heads, share * rows, width) @ k[:, :end].mT
        hidden = places[:end] > places[begin:end, None]
        if first is not None:
            hidden = hidden | (places[:end] < first[:, None, None, begin:end, None])
        scores = scores.view(batch, kv_heads, share, rows, end).float().masked_fill(hidden, -torch.inf)
        shares = scores.softmax(-1).to(v.dtype).view(-1, share * rows, end)
        mixed.append((shares @ v[:, :end]).view(batch, kv_heads, share, rows, width))
    return torch.cat(mixed, 3).permute(0, 3, 1, 2, 4).reshape(batch, time, heads * width)
