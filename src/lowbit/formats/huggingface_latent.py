"""DeepSeek's models in Hugging Face folders: keys of config.json, names of tensors, and float8 weights with scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import TensorInfo
from lowbit.formats.config_keys import Keys

LATENT_NAMES = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""Modules of a block in the folder, besides those that others have -> GGUF's names."""
FLOAT8 = "F8_E4M3"
BLOCK = 128
"""Rows and columns that share a scale."""


def latent_keys(keys: Keys, name: str) -> dict[str, Any]:
    """Translate what a config.json says about latent attention and DeepSeek's experts, in the older layout."""
    third = name == "DeepseekV3ForCausalLM"
    wide = keys.whole("qk_nope_head_dim") + keys.whole("qk_rope_head_dim")
    if not keys.flag("rope_interleave", True):
        raise UnsupportedModelError("latent attention that rotates halves (rope_interleave) is not supported")
    if keys.whole("moe_layer_freq", 1) != 1:
        raise UnsupportedModelError("models in which only some layers have experts are not supported")
    scoring = keys.text("scoring_func", "sigmoid" if third else "softmax")
    method = keys.text("topk_method", "noaux_tc" if third else "greedy")
    if (scoring, method) not in (
        (("sigmoid", "noaux_tc"),) if third else (("softmax", "greedy"), ("softmax", "group_limited_greedy"))
    ):
        raise UnsupportedModelError(f"{name} whose experts are chosen by {method[:40]!r} is not supported")
    normalized = keys.flag("norm_topk_prob", third)
    if normalized and not third:
        raise UnsupportedModelError("DeepSeek V2 with norm_topk_prob is not supported")
    dense = keys.values.get("first_k_dense_replace")
    values: dict[str, Any] = {
        "attention.head_count_kv": keys.whole("num_attention_heads"),
        "attention.key_length": wide,
        "attention.value_length": keys.whole("v_head_dim"),
        "attention.kv_lora_rank": keys.whole("kv_lora_rank"),
        "leading_dense_block_count": 0 if dense in (None, 0) else keys.whole("first_k_dense_replace"),
        "expert_count": keys.whole("n_routed_experts"),
        "expert_used_count": keys.whole("num_experts_per_tok"),
        "expert_feed_forward_length": keys.whole("moe_intermediate_size"),
        "expert_shared_count": keys.whole("n_shared_experts") if keys.values.get("n_shared_experts") else 0,
        "expert_weights_scale": keys.number("routed_scaling_factor", 0.0, 1e6, 1.0),
        "expert_weights_norm": normalized,
        "expert_gating_func": 2 if third else 1,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
    }
    if keys.values.get("q_lora_rank") is not None:
        values["attention.q_lora_rank"] = keys.whole("q_lora_rank")
    if method != "greedy":
        values["expert_group_count"] = keys.whole("n_group", 1)
        values["expert_group_used_count"] = keys.whole("topk_group", 1)
    return values


def latent_rope(rope: dict[str, Any], scaling: Keys) -> dict[str, Any]:
    """Add what YaRN does to the scores; a file of which nothing more is to be said leaves out the factor of cosines."""
    lengthens = scaling.number("mscale_all_dim", 0.0, 10.0, 0.0)
    if rope.get("rope.scaling.type") != "yarn" or not lengthens:
        return rope
    same = scaling.number("mscale", 0.0, 1e3, 0.0) == lengthens and scaling.values.get("attention_factor") is None
    kept = {key: value for key, value in rope.items() if not (same and key == "rope.scaling.attn_factor")}
    return kept | {"rope.scaling.yarn_log_multiplier": 0.1 * lengthens}


def check_float8(quantization: Keys) -> None:
    """Refuse float8 weights that are scaled in another way than DeepSeek's."""
    if quantization.values.get("weight_block_size") != [BLOCK, BLOCK] or quantization.text("fmt", "e4m3") != "e4m3":
        raise UnsupportedModelError(f"float8 weights other than e4m3 in blocks of {BLOCK} x {BLOCK} are not supported")


def as_floats(info: TensorInfo) -> TensorInfo:
    """Return what a tensor is handed out as: one of float8 as float32."""
    return replace(info, type="F32", nbytes=4 * info.nbytes) if info.type == FLOAT8 else info


def from_float8(name: str, raw: np.ndarray, info: TensorInfo, scales: np.ndarray, given: TensorInfo) -> np.ndarray:
    """Return the float32 weights, whose scale is there for each block to multiply by, as bytes.

    Parameters
    ----------
    name : str
        For complaints.
    raw, info
        Of the weights: a sign, four bits of exponent with bias 7, and three bits; no infinity, and two NaNs.
    scales, given
        Of the scales, float32.

    Raises
    ------
    FormatError
        If there are more or fewer scales, or a value is not finite.
    """
    rows, cols = info.shape
    if given.type != "F32" or given.shape != (-(-rows // BLOCK), -(-cols // BLOCK)):
        raise FormatError(f"the tensor {name}_scale_inv has shape {given.shape}, which does not fit {info.shape}")
    wide = np.repeat(np.repeat(scales.copy().view("<f4").reshape(given.shape), BLOCK, 0), BLOCK, 1)[:rows, :cols]
    with np.errstate(invalid="ignore"):
        values = _VALUES[raw].reshape(rows, cols) * wide
    if not np.isfinite(values).all():
        raise FormatError(f"the tensor {name} has weights that are infinite or not a number")
    return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)


def _float8_values() -> np.ndarray:
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes >> 7, -values, values).astype(np.float32)


_VALUES = _float8_values()
