"""Experts in Hugging Face folders: keys of config.json, and the tensors of many experts as one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import TensorInfo
from lowbit.formats.config_keys import Keys
from lowbit.formats.safetensors import DTYPE_BYTES
from lowbit.quantize.ggml_types import tensor_nbytes

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
_FLOATS = ("F32", "F16", "BF16")
_COLUMNS = re.compile(_ALL.pattern + "(|_bias|_blocks|_scales)")


def expert_keys(keys: Keys, normalized: bool = False) -> dict[str, Any]:
    """Translate what a config.json says about experts; `normalized`: their weights are divided by their sum if it does
    not say.
    """
    if keys.whole("decoder_sparse_step", 1) != 1 or keys.values.get("mlp_only_layers"):
        raise UnsupportedModelError("models in which only some layers have experts are not supported")
    if keys.values.get("clip_qkv") is not None:
        raise UnsupportedModelError("config.json sets clip_qkv, which is not supported")
    if keys.values.get("num_shared_experts") or keys.values.get("n_shared_experts"):
        raise UnsupportedModelError("config.json sets num_shared_experts, which is not supported")
    if not keys.flag("qkv_bias", True):
        raise UnsupportedModelError("config.json unsets qkv_bias, which is not supported")
    if keys.number("swiglu_alpha", 0.0, 1e6, 1.702) != 1.702 or keys.number("swiglu_limit", 0.0, 1e6, 7.0) != 7.0:
        raise UnsupportedModelError("swiglu_alpha and swiglu_limit other than 1.702 and 7 are not supported")
    values = {
        "expert_count": keys.whole("num_experts", keys.values.get("num_local_experts")),
        "expert_used_count": keys.whole("num_experts_per_tok", keys.values.get("experts_per_token")),
        "expert_feed_forward_length": keys.whole("moe_intermediate_size", keys.whole("intermediate_size")),
        "expert_weights_norm": keys.flag("norm_topk_prob", normalized),
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


@dataclass(frozen=True)
class Made:
    """A tensor that is made of stored ones."""

    info: TensorInfo
    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]
    """From the bytes of these to its own."""


def from_columns(name: str, infos: Mapping[str, TensorInfo]) -> Iterator[Made] | None:
    """Return what a tensor of gpt-oss's experts is in GGUF, whose gates and what they multiply are two tensors.

    Floats lie (experts, in, out) in the folder, with gates in even columns and the others in odd ones; MXFP4 and biases
    have these as rows. A block of MXFP4 has its elements 2 i and 2 i + 1 in byte i, and in GGUF i and i + 16.

    Of another tensor None; `infos` are all tensors of the folder, by their names there.

    Raises
    ------
    FormatError
        If its shape is not of that kind, or blocks or scales are alone.
    """
    found = _COLUMNS.fullmatch(name)
    if found is None:
        return None
    layer, projection, what = found.groups()
    rows = {"gate": slice(0, None, 2), "up": slice(1, None, 2)} if projection == "gate_up" else {"down": slice(None)}
    stem = name.removesuffix(what) if what else name
    if what in ("_blocks", "_scales"):
        blocks, scales = infos.get(stem + "_blocks"), infos.get(stem + "_scales")
        if blocks is None or scales is None:
            raise FormatError(f"the tensor {name} is there without its blocks or scales")
        right = blocks.type == scales.type == "U8" and len(blocks.shape) == 4 and blocks.shape == (*scales.shape, 16)
        shape: tuple[int, ...] = (*blocks.shape[:2], 32 * blocks.shape[2]) if right else ()
        sources: tuple[str, ...] = (stem + "_blocks", stem + "_scales")
    else:
        info = infos[name]
        if info.type not in _FLOATS:
            raise UnsupportedModelError(f"the tensor {name} is of type {info.type}, where floats belong")
        right = len(info.shape) == (2 if what else 3)
        shape = info.shape if what else (*info.shape[:1], *info.shape[:0:-1])
        sources = (name,)
    if not right or shape[1] % len(rows):
        raise FormatError(f"the tensor {name} has a shape that experts cannot have")
    if what == "_scales":
        return iter(())
    kind = "MXFP4" if what == "_blocks" else infos[name].type
    return _made(layer, rows, shape, kind, sources, "bias" if what == "_bias" else "weight")


def _made(
    layer: str, rows: Mapping[str, slice], shape: tuple[int, ...], kind: str, sources: tuple[str, ...], role: str
) -> Iterator[Made]:
    for part, chosen in rows.items():
        target = f"blk.{layer}.ffn_{part}_exps.{role}"
        own = (shape[0], shape[1] // len(rows), *shape[2:])

        def floats(raw: np.ndarray, chosen: slice = chosen) -> np.ndarray:
            stored = np.ascontiguousarray(raw).view(f"<u{DTYPE_BYTES[kind]}")
            values = stored.reshape(shape) if role == "bias" else stored.reshape(shape[0], *shape[:0:-1])
            values = values[:, chosen] if role == "bias" else values.swapaxes(1, 2)[:, chosen]
            return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

        def mxfp4(blocks: np.ndarray, scales: np.ndarray, chosen: slice = chosen) -> np.ndarray:
            scales = scales.reshape(*shape[:2], -1)[:, chosen]
            out = np.empty((*scales.shape, 17), np.uint8)
            out[..., 0] = scales
            for one, block in zip(out, blocks.reshape(*shape[:2], -1, 16)):  # one expert at a time, for less memory
                pairs = block[chosen]
                one[..., 1::2] = pairs[..., :8] & 15 | pairs[..., 8:] << 4
                one[..., 2::2] = pairs[..., :8] >> 4 | pairs[..., 8:] & 0xF0
            return out.reshape(-1)

        make = mxfp4 if kind == "MXFP4" else floats
        yield Made(TensorInfo(target, kind, own, 0, tensor_nbytes(kind, own)), sources, make)
