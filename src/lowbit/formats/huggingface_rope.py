"""Scalings of rotary positions in a config.json: what GGUF keeps of them in tensors, or in other numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats.config_keys import Keys


def longrope(
    keys: Keys, scaling: Keys, rotated: int, context: int, phi: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
    """Translate LongRoPE: two divisors for each rotary frequency, for contexts up to the original one and for longer.

    Parameters
    ----------
    keys, scaling : Keys
        config.json, and the object in it that describes the scaling.
    rotated : int
        Channels of a head that are rotated.
    context : int
        In tokens.
    phi : bool
        config.json is Phi-3's, whose original context is never in `scaling`.

    Returns
    -------
    metadata : dict
    tensors : dict of str to ndarray of float32, shape (rotated / 2,)

    Notes
    -----
    Source: Ding et al., LongRoPE (arXiv 2402.13753); for the keys and the attention factor transformers,
    `_compute_longrope_parameters`. MiniCPM's own program computes the same factor.
    """
    default = 4096 if phi else scaling.whole("original_max_position_embeddings", context)
    original = keys.whole("original_max_position_embeddings", default)
    stretch = scaling.number("factor", 1e-3, 1e6, context / original)
    if stretch > 1 and original == 1:
        raise FormatError("config.json has an original_max_position_embeddings of 1")
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    tensors = {}
    for which in ("short", "long"):
        values = scaling.numbers(f"{which}_factor", 1e-6, 1e6)
        if len(values) != rotated // 2:
            raise FormatError(f"config.json has a {which}_factor of {len(values)} numbers, not {rotated // 2}")
        tensors[f"rope_factors_{which}"] = np.array(values, "<f4")
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": scaling.number("attention_factor", 1e-3, 1e3, attention),
    }, tensors


def llama3_factors(head_dim: int, theta: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Long waves are slowed down by `factor`, short ones left alone, and those between by something between."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves = 2 * math.pi / frequencies
    share = np.clip((original / waves - low) / (high - low), 0.0, 1.0)  # 1 for short waves, 0 for long ones
    return (1.0 / ((1.0 - share) / factor + share)).astype("<f4")


def yarn_magnitude(scaling: Keys, factor: float) -> float:
    """What YaRN multiplies cosines and sines by."""

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = scaling.number("mscale", 0.0, 1e3, 0.0), scaling.number("mscale_all_dim", 0.0, 1e3, 0.0)
    default = magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)
    return scaling.number("attention_factor", 1e-3, 1e3, default)
