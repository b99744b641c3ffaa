"""Experts in Hugging Face folders: keys of config.json, and the tensors of many experts as one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import TensorInfo
from lowbit.formats.config_keys import Keys

__all__ = ["EXPERT_NAMES", "expert_keys", "expert_of", "stacked"]

EXPERT_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
"""Modules of a block in the folder, besides the experts themselves -> GGUF's names."""
_ONE = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.experts\.(0|[1-9][0-9]{0,4})\.(gate|up|down)_proj\.weight")
_ALL = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.experts\.(gate_up|down)_proj")


def expert_keys(keys: Keys) -> dict[str, Any]:
    """Translate what a config.json says about experts.

    Parameters
    ----------
    keys : Keys

    Raises
    ------
    FormatError, UnsupportedModelError
        As `translate`.
    """
    if keys.whole("decoder_sparse_step", 1) != 1 or keys.values.get("mlp_only_layers"):
        raise UnsupportedModelError("models in which only some layers have experts are not supported")
    if keys.values.get("clip_qkv") is not None:
        raise UnsupportedModelError("config.json sets clip_qkv, which is not supported")
    if keys.values.get("num_shared_experts") or keys.values.get("n_shared_experts"):
        raise UnsupportedModelError("config.json sets num_shared_experts, which is not supported")
    if not keys.flag("qkv_bias", True):
        raise UnsupportedModelError("config.json unsets qkv_bias, which is not supported")
    values = {
        "expert_count": keys.whole("num_experts"),
        "expert_used_count": keys.whole("num_experts_per_tok"),
        "expert_feed_forward_length": keys.whole("moe_intermediate_size", keys.whole("intermediate_size")),
        "expert_weights_norm": keys.flag("norm_topk_prob"),
    }
    if keys.values.get("shared_expert_intermediate_size") is not None:
        values["expert_shared_feed_forward_length"] = keys.whole("shared_expert_intermediate_size")
    return values


def expert_of(name: str) -> tuple[str, int] | None:
    """Return the GGUF tensor that a tensor is a part of, and which: the number of an expert, or -1 for all of them."""
    one, all_of_them = _ONE.fullmatch(name), _ALL.fullmatch(name)
    if one is not None:
        return f"blk.{one[1]}.ffn_{one[3]}_exps.weight", int(one[2])
    if all_of_them is not None:
        return f"blk.{all_of_them[1]}.ffn_{all_of_them[2]}_exps.weight", -1
    return None


def stacked(target: str, parts: Mapping[int, TensorInfo]) -> TensorInfo:
    """Describe the tensor of all experts.

    Raises
    ------
    FormatError
        If one is missing, or they are not alike.
    """
    if sorted(parts) != list(range(len(parts))):
        raise FormatError(f"the tensor {target} lacks experts: it has {len(parts)}, up to number {max(parts)}")
    first = parts[0]
    for number, info in parts.items():
        if (info.type, info.shape) != (first.type, first.shape) or len(info.shape) != 2:
            raise FormatError(
                f"the tensor {target}: expert {number} is {info.type} {info.shape}, and the first is "
                f"{first.type} {first.shape}"
            )
    nbytes = first.nbytes * len(parts)
    return TensorInfo(target, first.type, (len(parts), *first.shape), 0, nbytes)
