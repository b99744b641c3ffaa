"""The mixtures of types that llama.cpp's users know by name: most weights in one type, the sensitive ones in more bits.

Facts from llama.cpp `src/llama-quant.cpp` (`llama_tensor_get_type_impl`, `tensor_type_fallback`), without an importance
matrix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..formats.base import ModelFile, TensorInfo
from ..plan import ModelPlan
from ..quantize.ggml_types import type_of


@dataclass(frozen=True)
class Mixture:
    """What a name stands for."""

    type: str
    """Of most linear layers."""
    number: int
    """In ``general.file_type``."""
    more: str | None = None
    """Of values, and of down projections, in the layers that `_use_more_bits` picks."""


MIXTURES = {
    "q4_1": Mixture("Q4_1", 3),
    "q4_k_m": Mixture("Q4_K", 15, "Q6_K"),
    "q5_k_m": Mixture("Q5_K", 17, "Q6_K"),
    "q6_k": Mixture("Q6_K", 18),
    "iq4_nl": Mixture("IQ4_NL", 25),
}
INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""With blocks of 32, where rows are no whole 256s."""
VALUES = re.compile(r"attn_(?:v|qkv|kv_b)\.weight")


def mixed(name: str, file: ModelFile, plan: ModelPlan) -> dict[str, str]:
    """Choose a type for each matrix of a model.

    Returns
    -------
    dict
        Type by the names of linear layers, embedding and output head; `fitting` says what their rows allow.
    """
    mixture, experts = MIXTURES[name], int(file.metadata.get(f"{file.architecture}.expert_count", 0))
    weights = {w.name: w for w in plan.weights() if w.kind in ("linear", "embedding", "head")}
    layer_first = sorted(weights.values(), key=lambda weight: weight.layer)
    values = [weight.name for weight in layer_first if VALUES.search(weight.name)]
    groups = max((m.n_heads // max(m.n_kv_heads, 1) for m in plan.attentions[:1]), default=1)
    seventy = file.architecture in ("llama", "qwen2") and plan.n_layers == 80 and groups > 1
    kinds = {}
    for weight in layer_first:
        kind = mixture.type
        if weight.kind == "head" or (weight.kind == "embedding" and plan.tied_embeddings):
            kind = "Q6_K"
        elif weight.name in values:
            if mixture.more and _use_more_bits(values.index(weight.name), len(values)):
                kind = mixture.more
            elif name == "iq4_nl" and groups >= 4:
                kind = "Q5_K"
            kind = "Q5_K" if seventy and kind == "Q4_K" else kind
            kind = "Q8_0" if experts == 8 else kind
        elif experts == 8 and "attn_k.weight" in weight.name:
            kind = "Q8_0"
        elif experts == 8 and "attn_output.weight" in weight.name and name in ("q4_k_m", "iq4_nl"):
            kind = "Q5_K"
        elif "ffn_down" in weight.name:
            if mixture.more and _use_more_bits(weight.layer, plan.n_layers):
                kind = mixture.more
            elif name == "iq4_nl" and weight.layer < plan.n_layers // 8:
                kind = "Q5_K"
        kinds[weight.name] = kind
    return kinds


def fitting(info: TensorInfo, kind: str) -> str:
    """Return a type, or the one in its place that has blocks for the rows of a tensor."""
    for one in (kind, INSTEAD.get(kind, kind)):
        if info.shape[-1] % type_of(one).block_elements == 0:
            return one
    return "F16"


def _use_more_bits(layer: int, n_layers: int) -> bool:
    """Whether a layer is of the first or the last eighth, or each third one between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
