"""Layers that differ from one another in a config.json: recurrent ones, and those with a window."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.config_keys import Keys


def recurrent_keys(keys: Keys, n_layers: int) -> dict[str, Any]:
    """Translate the numbers of recurrent layers, and which these are; errors as of `translate`."""
    size, heads = keys.whole("linear_key_head_dim", 128), keys.whole("linear_num_value_heads", 32)
    if keys.whole("linear_value_head_dim", 128) != size:
        raise UnsupportedModelError("recurrent layers whose keys and values differ in size are not supported")
    if not keys.flag("attn_output_gate", True):
        raise UnsupportedModelError("Qwen3.5 without gated attention is not supported")
    special: dict[str, Any] = {
        "ssm.conv_kernel": keys.whole("linear_conv_kernel_dim", 4),
        "ssm.state_size": size,
        "ssm.group_count": keys.whole("linear_num_key_heads", 16),
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * size,
        "full_attention_interval": keys.whole("full_attention_interval", 4),
    }
    types = _types(keys, n_layers)
    if types:
        special["attention.recurrent_layers"] = np.array([t == "linear_attention" for t in types])
    return special


def window_keys(keys: Keys, gemma: bool, n_layers: int) -> dict[str, Any]:
    """Translate the window, and which layers have it; without a word on it Gemma's are five of six.

    With `gemma`, layers with a window have a base of frequencies of their own.
    """
    if "sliding_window" in keys.values and keys.values["sliding_window"] is None:
        return {}
    special: dict[str, Any] = {"attention.sliding_window": keys.whole("sliding_window", 4096)}
    types = _types(keys, n_layers)
    if types:
        special["attention.sliding_window_pattern"] = np.array([t == "sliding_attention" for t in types])
    elif gemma:
        special["attention.sliding_window_pattern"] = keys.whole("sliding_window_pattern", 6)
    if gemma:
        near = keys.nested("rope_parameters", "sliding_attention")
        theta = keys.number("rope_local_base_freq", 1.0, 1e12, 10000.0)
        special["rope.freq_base_swa"] = near.number("rope_theta", 1.0, 1e12, theta) if near else theta
    return special


def _types(keys: Keys, n_layers: int) -> list[str]:
    types = keys.strings("layer_types")
    if types and len(types) != n_layers:
        raise FormatError(f"config.json has layer_types of {len(types)} layers, and {n_layers} layers")
    return types
