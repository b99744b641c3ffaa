"""How metadata becomes latent attention (DeepSeek)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from ..plan import JOINED_HEADS, LatentAttention, Rope

MAX_RANK = 512
"""Channels of a latent, which is the widest value there is."""
MAX_QUERY = 1024
ROWS = 16
"""The matrices of all heads are one, in which each begins with a row group."""


def latent_attention(keys: Any, rope: Rope, tensors: Collection[str]) -> LatentAttention:
    """Return the attention of all layers, from either of the two layouts there are.

    Newer files count one key head, that of the latents, and say in keys of their own how long those of the heads are.
    Older ones count the heads as if no latent were there, and have one tensor for keys and values.

    Parameters
    ----------
    keys : families.base._Keys
    rope : Rope
        Without scalings, of the channels that the file says.
    tensors : collection of str
        Names of the file's tensors.

    Raises
    ------
    FormatError
        If a key is missing, of the wrong type, out of range, or contradicts another.
    UnsupportedModelError
        If the heads are of a size that lowbit does not run.
    """
    heads = keys.whole("attention.head_count", 1, 1 << 14)
    rank, rotated = keys.whole("attention.kv_lora_rank", 1, MAX_RANK), rope.dim
    if rotated % 2:
        raise FormatError(f"{rotated} channels cannot be rotated in pairs")
    key, value, kept = "attention.key_length", "attention.value_length", (rank + rotated, rank)
    newer = keys.has(f"{key}_mla")
    if newer:
        found = keys.whole(key, 1, 1 << 14, default=kept[0]), keys.whole(value, 1, 1 << 14, default=kept[1])
        if found != kept:
            raise FormatError(f"keys and values of {found[0]} and {found[1]} are no latents of {rank} and {rotated}")
    kv_heads = keys.whole("attention.head_count_kv", 1, heads, default=heads)
    if kv_heads != (1 if newer else heads):
        raise FormatError(f"latents for {heads} heads do not have {kv_heads} key heads")
    query = keys.whole(f"{key}_mla" if newer else key, 2, MAX_QUERY)
    value_size = keys.whole(f"{value}_mla" if newer else value, 1, MAX_RANK)
    if query <= rotated:
        raise FormatError(f"queries of {query} channels have none beside {rotated} that are rotated")
    if rank % ROWS or value_size % ROWS:
        raise UnsupportedModelError(f"latents of {rank} and values of {value_size}: not both multiples of {ROWS}")
    q_rank = keys.whole("attention.q_lora_rank", 0, 1 << 16, default=0)
    longer = keys.real("rope.scaling.yarn_log_multiplier", 0.0, 10.0, default=0.0)
    factors, magnitude = keys.rope_factors(query), keys.rope_scale()
    stretch = 1.0
    if longer and factors:
        # What YaRN does to the length of queries and keys is done to the scores; the rest, to cosines and sines.
        stretch += longer * math.log(max(keys.real("rope.scaling.factor", 1e-6, 1e6), 1.0))
        magnitude = magnitude if keys.has("rope.scaling.attn_factor") else 1.0
    return LatentAttention(
        n_heads=heads,
        rank=rank,
        nope_dim=query - rotated,
        value_size=value_size,
        rope=replace(rope, factors=factors, scale=magnitude),
        q_rank=q_rank,
        scale=stretch * stretch / math.sqrt(query),
        joined=JOINED_HEADS in tensors,
    )
