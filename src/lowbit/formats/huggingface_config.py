"""A Hugging Face config.json in GGUF's words: keys, tensor names, and what the weights of the linear layers are.

What a config asks for and lowbit cannot do is refused here, never skipped: a bias, a window or a scaling that is left
out gives fluent nonsense. Facts: transformers 5 (`models/*/configuration_*.py`, `modeling_rope_utils.py`,
`integrations/bitnet.py`); for BitnetForCausalLM the remote code of 1bitLLM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.config_keys import Keys
from lowbit.formats.huggingface_experts import EXPERT_NAMES, expert_keys
from lowbit.formats.huggingface_latent import LATENT_NAMES, check_float8, latent_keys, latent_rope
from lowbit.formats.huggingface_layers import recurrent_keys, window_keys
from lowbit.formats.huggingface_rope import llama3_factors, longrope, yarn_magnitude

MAX_HEAD = 512
"""Channels of a head; published models have up to 256."""
LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Linear layers of a block: what BitNet makes ternary."""
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"{module}.norm": f"{role}_norm_in" for module, role in LINEARS.items()},  # bitnet-embedding
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True)
class ModelClass:
    """A row per class of `architectures`."""

    architecture: str
    """Key into `lowbit.families`."""
    model_types: tuple[str, ...]
    norms: Mapping[str, str] = field(default_factory=dict)
    """Norms beside the usual two, by their names in the folder."""
    activation: str = "silu"
    theta: float = 10000.0
    head_dim: int | None = None
    """If config.json gives none; None is hidden size over heads."""
    bias: bool = False
    """Query, key and value have a bias whatever `attention_bias` says."""
    attention_bias: bool = False
    """What `attention_bias` has to say."""
    tied: bool = False
    """The head is the embedding if config.json does not say."""
    windows: bool = False
    """Some layers may have a window."""
    plus_one: bool = False
    """RMSNorms multiply by 1 + their weight, but for those inside of linear layers."""
    partial: float | None = None
    """Share of a head's channels that are rotated, if config.json does not say; None is all, whatever it says."""
    inside: str = ""
    """Key of the object in config.json that describes the language model; the folder may hold more than that, and its
    tensors then have longer names."""
    experts: Literal["", "rows", "columns"] = ""
    """Feed-forwards are of experts, whose outputs are rows of the stored matrices, or columns."""
    recurrent: Literal["", "tiled", "grouped"] = ""
    """Some layers are recurrent; how GGUF has the value heads that share a key head."""
    latent: bool = False
    """Latent attention, and experts as DeepSeek has them."""


_GEMMA_NORMS = {
    **_QK_NORMS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_CLASSES = {
    "LlamaForCausalLM": ModelClass("llama", ("llama",)),
    "BitnetForCausalLM": ModelClass(
        "bitnet",
        ("llama", "bitnet"),
        {"self_attn.inner_attn_ln": "attn_sub_norm", "mlp.ffn_layernorm": "ffn_sub_norm"},
    ),
    "BitNetForCausalLM": ModelClass(
        "bitnet-b1.58",
        ("bitnet",),
        {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"},
        activation="relu2",
        theta=500000.0,
    ),
    "Qwen2ForCausalLM": ModelClass("qwen2", ("qwen2",), bias=True),
    "Qwen3ForCausalLM": ModelClass(
        "qwen3",
        ("qwen3",),
        _QK_NORMS,
        head_dim=128,
    ),
    "MistralForCausalLM": ModelClass("llama", ("mistral",), windows=True),
    "SmolLM3ForCausalLM": ModelClass("smollm3", ("smollm3",), theta=2e6, tied=True),
    "HunYuanDenseV1ForCausalLM": ModelClass(
        "hunyuan-dense",
        ("hunyuan_v1_dense",),
        {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    ),
    "MiniCPMForCausalLM": ModelClass("minicpm", ("minicpm",), tied=True),
    "Gemma3ForCausalLM": ModelClass(
        "gemma3",
        ("gemma3_text",),
        _GEMMA_NORMS,
        activation="gelu_pytorch_tanh",
        theta=1e6,
        head_dim=256,
        tied=True,
        windows=True,
        plus_one=True,
    ),
    "Qwen2MoeForCausalLM": ModelClass("qwen2moe", ("qwen2_moe",), bias=True, experts="rows"),
    "Qwen3MoeForCausalLM": ModelClass(
        "qwen3moe",
        ("qwen3_moe",),
        _QK_NORMS,
        experts="rows",
    ),
    "MapleForCausalLM": ModelClass("maple", ("maple",), _QK_NORMS, windows=True, partial=1.0, experts="rows"),
    "Phi3ForCausalLM": ModelClass(
        "phi3",
        ("phi3",),
        {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
        windows=True,
        partial=1.0,
    ),
    "OlmoeForCausalLM": ModelClass(
        "olmoe",
        ("olmoe",),
        _QK_NORMS,
        experts="rows",
    ),
    "GptOssForCausalLM": ModelClass(
        "gpt-oss",
        ("gpt_oss",),
        {"post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp"},
        theta=150000.0,
        head_dim=64,
        attention_bias=True,
        windows=True,
        experts="columns",
    ),
    "DeepseekV2ForCausalLM": ModelClass("deepseek2", ("deepseek_v2",), LATENT_NAMES, experts="rows", latent=True),
    "DeepseekV3ForCausalLM": ModelClass(
        "deepseek2", ("deepseek_v3", "kimi_k2"), LATENT_NAMES, experts="rows", latent=True
    ),
}
_CLASSES["Qwen3_5ForCausalLM"] = ModelClass(
    "qwen35",
    ("qwen3_5_text",),
    {
        **_QK_NORMS,
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_qkvz": "ssm_in",
        "linear_attn.in_proj_ba": "ssm_ba",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
    },
    theta=1e7,
    head_dim=256,
    plus_one=True,
    partial=0.25,
    recurrent="tiled",
)
_CLASSES["Qwen3_5ForConditionalGeneration"] = replace(
    _CLASSES["Qwen3_5ForCausalLM"], model_types=("qwen3_5",), inside="text_config"
)
_CLASSES["Qwen3_5MoeForCausalLM"] = replace(
    _CLASSES["Qwen3_5ForCausalLM"], architecture="qwen35moe", model_types=("qwen3_5_moe_text",), experts="rows"
)
_CLASSES["Qwen3_5MoeForConditionalGeneration"] = replace(
    _CLASSES["Qwen3_5MoeForCausalLM"], model_types=("qwen3_5_moe",), inside="text_config"
)
_CLASSES["Qwen3NextForCausalLM"] = replace(
    _CLASSES["Qwen3_5MoeForCausalLM"], architecture="qwen3next", model_types=("qwen3_next",), recurrent="grouped"
)
_CLASSES["Gemma3ForConditionalGeneration"] = replace(
    _CLASSES["Gemma3ForCausalLM"], model_types=("gemma3",), inside="text_config"
)
"""BitnetForCausalLM is 1bitLLM's, BitNetForCausalLM Microsoft's: they differ in more than a letter."""


@dataclass(frozen=True)
class Translation:
    """What a config.json says."""

    architecture: str
    metadata: dict[str, Any]
    tied: bool
    layer_names: Mapping[str, str]
    """Modules of a block in the folder -> GGUF's names."""
    linears: Literal["float", "masters", "divide", "multiply"]
    """Linear layers: floats, floats to be made ternary, or packed with a scale to divide or to multiply by."""
    rope_factors: Mapping[str, np.ndarray]
    """Divisors of the rotary frequencies that no metadata key can express, by role; float32."""
    kind: ModelClass


def translate(config: Mapping[str, Any]) -> Translation:
    """Translate a parsed config.json.

    Raises
    ------
    FormatError
        If a key is missing, or its value is of the wrong type or out of range.
    UnsupportedModelError
        If it describes a model that lowbit cannot run.
    """
    keys = Keys(config)
    name, kind = _model_class(keys)
    if kind.inside:
        keys = keys.table(kind.inside) or Keys({})
    if keys.flag("attention_bias", kind.attention_bias) != kind.attention_bias:
        state = "unsets" if kind.attention_bias else "sets"
        raise UnsupportedModelError(f"config.json {state} attention_bias, which is not supported")
    for flag in ("mlp_bias", "use_sliding_window"):
        if keys.flag(flag):
            raise UnsupportedModelError(f"config.json sets {flag}, which is not supported")
    known = {"full_attention", *(("sliding_attention",) if kind.windows else ())}
    known |= {"linear_attention"} if kind.recurrent else set()
    if not set(keys.strings("layer_types")) <= known:
        raise UnsupportedModelError("config.json lists layers of a kind that is not supported")
    activation = keys.text("hidden_activation", keys.text("hidden_act", kind.activation))
    if activation != kind.activation:
        raise UnsupportedModelError(f"{name} with the activation {activation[:40]!r} is not supported")

    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    head_dim = keys.whole("qk_rope_head_dim" if kind.latent else "head_dim", kind.head_dim or hidden // heads)
    if head_dim > MAX_HEAD:  # tables are made of it before the families see it
        raise FormatError(f"config.json has a head_dim of {head_dim}, limit {MAX_HEAD}")
    context = keys.whole("max_position_embeddings")
    values: dict[str, Any] = {
        "embedding_length": hidden,
        "feed_forward_length": keys.whole("intermediate_size", keys.values.get("moe_intermediate_size")),
        "block_count": keys.whole("num_hidden_layers"),
        "attention.head_count": heads,
        "attention.head_count_kv": keys.whole("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": keys.number("rms_norm_eps", 0.0, 1.0),
        "vocab_size": keys.whole("vocab_size"),
        "context_length": context,
    }
    if kind.experts:
        values |= latent_keys(keys, name) if kind.latent else expert_keys(keys, normalized=bool(kind.recurrent))
    rope, factors = _rope(keys, head_dim, context, kind)
    values |= _special(keys, kind, values)
    linears = _linears(keys, name)
    metadata = {f"{kind.architecture}.{key}": value for key, value in {**values, **rope}.items()}
    metadata |= {
        "general.architecture": kind.architecture,
        "lowbit.rope_pairing": "adjacent" if kind.latent else "halves",
        "lowbit.bit_linear": linears == "masters",
        "lowbit.activation_quant": "group" if linears == "float" else "token",
    }
    for token in ("bos", "eos"):
        number = config.get(f"{token}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < values["vocab_size"]:
            metadata[f"tokenizer.ggml.{token}_token_id"] = number
    layer_names = {**LINEARS, **_NORMS, **kind.norms, **(EXPERT_NAMES if kind.experts else {})}
    tied = keys.flag("tie_word_embeddings", kind.tied)
    return Translation(kind.architecture, metadata, tied, layer_names, linears, factors, kind)


def _special(keys: Keys, kind: ModelClass, values: Mapping[str, Any]) -> dict[str, Any]:
    """What only some families have: windows, factors, layers without RoPE."""
    special: dict[str, Any] = {}
    n_layers, hidden = values["block_count"], values["embedding_length"]
    if kind.windows and (kind.architecture != "phi3" or "sliding_window" in keys.values):
        special |= window_keys(keys, kind.architecture == "gemma3", n_layers)
    if kind.architecture == "gemma3":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            special[key] = keys.number(key, 0.0, 1e9, 0.0)
        if keys.flag("use_bidirectional_attention"):
            raise UnsupportedModelError("attention in both directions is not supported")
        special["attention.scale"] = keys.number("query_pre_attn_scalar", 1e-6, 1e6, 256.0) ** -0.5
    if kind.recurrent:
        special |= recurrent_keys(keys, n_layers)
    if kind.architecture == "minicpm":
        special["embedding_scale"] = keys.number("scale_emb", 1e-6, 1e6, 1.0)
        special["residual_scale"] = keys.number("scale_depth", 1e-6, 1e6, 1.0) / math.sqrt(n_layers)
        special["logit_scale"] = hidden / keys.whole("dim_model_base", 1)
    if kind.architecture == "maple":
        if not keys.flag("nope_on_global_attention", True):
            raise UnsupportedModelError("Maple with RoPE in all layers is not supported")
        special["swiglu_clamp_exp"] = 7.0  # a file without it is refused by llama.cpp
    if kind.architecture == "smollm3":
        every = keys.whole("no_rope_layer_interval", 4)
        has_rope = keys.values.get("no_rope_layers")
        usual = [int((i + 1) % 4 != 0) for i in range(min(n_layers, 1 << 16))]
        if has_rope not in (None, usual) or (has_rope is None and every != 4):
            raise UnsupportedModelError("SmolLM3 whose layers without RoPE are not each fourth is not supported")
    return special


def _model_class(keys: Keys) -> tuple[str, ModelClass]:
    names, model_type = keys.strings("architectures"), keys.text("model_type", "")
    if not names:
        names = [name for name, kind in _CLASSES.items() if kind.model_types == (model_type,)]
    if len(names) != 1 or names[0] not in _CLASSES:
        shown = ", ".join(repr(name[:40]) for name in names[:4]) or f"of type {model_type[:40]!r}"
        raise UnsupportedModelError(f"models {shown} are not supported; lowbit runs {', '.join(_CLASSES)}")
    kind = _CLASSES[names[0]]
    if model_type not in kind.model_types:
        raise UnsupportedModelError(f"{names[0]} of the model type {model_type[:40]!r} is not supported")
    return names[0], kind


def _linears(keys: Keys, name: str) -> Literal["float", "masters", "divide", "multiply"]:
    """Say how the linear layers are stored; the direction of a packed tensor's scale stands nowhere but here."""
    quantization = keys.table("quantization_config")
    if name == "BitnetForCausalLM":
        if keys.whole("weight_bits", 1) != 1 or keys.whole("input_bits", 8) != 8 or quantization is not None:
            raise UnsupportedModelError("BitNet with other than 1.58-bit weights and 8-bit activations")
        return "masters"
    if quantization is not None and name == "GptOssForCausalLM" and quantization.text("quant_method", "") == "mxfp4":
        return "float"  # which tensors are stored so can be seen from their names
    if quantization is None:
        if name == "BitNetForCausalLM":
            raise UnsupportedModelError("config.json has no quantization_config, which BitNet needs")
        return "float"
    method = quantization.text("quant_method", "none")
    if method == "fp8" and name.startswith("Deepseek"):
        check_float8(quantization)
        return "float"
    if method != "bitnet":
        raise UnsupportedModelError(f"weights quantised by {method[:40]!r} are not supported")
    if quantization.flag("use_rms_norm"):
        raise UnsupportedModelError("norms inside of linear layers (use_rms_norm) are not supported")
    for entry in quantization.strings("modules_to_not_convert"):
        if any(entry in f"model.layers.0.{module}" for module in LINEARS):
            raise UnsupportedModelError(f"a BitNet model with {entry[:40]!r} left unquantised is not supported")
    mode = quantization.text("quantization_mode", "offline")
    linear_class = quantization.text("linear_class", "bitlinear")
    if mode not in ("offline", "online") or linear_class not in ("bitlinear", "autobitlinear"):
        raise UnsupportedModelError(f"BitNet layers {linear_class[:40]!r} in mode {mode[:40]!r} are not supported")
    if mode == "online":
        return "masters"
    return "multiply" if linear_class == "autobitlinear" else "divide"


def _rope(keys: Keys, head_dim: int, context: int, of: ModelClass) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata of the rotary positions, and divisors of their frequencies that GGUF keeps in tensors, by role."""
    far = keys.nested("rope_parameters", "full_attention")
    scaling = far or keys.table("rope_parameters") or keys.table("rope_scaling") or Keys({})
    if of.architecture == "gpt-oss" and not scaling.values:
        raise FormatError("config.json has no rope_scaling, and gpt-oss is never without")
    theta = scaling.number("rope_theta", 1.0, 1e12, keys.number("rope_theta", 1.0, 1e12, of.theta))
    default = keys.number("partial_rotary_factor", 0.0, 1.0, 1.0 if of.partial is None else of.partial)
    share = scaling.number("partial_rotary_factor", 0.0, 1.0, default)
    if of.partial is None and share != 1.0:
        raise UnsupportedModelError("heads that are rotated in part are not supported")
    rope: dict[str, Any] = {"rope.freq_base": theta, "rope.dimension_count": int(head_dim * share)}
    if sections := scaling.wholes("mrope_section"):  # llama.cpp wants them; a text is rotated as without
        rope["rope.dimension_sections"] = np.array([*sections, *[0] * (4 - len(sections))], np.int32)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "dynamic" and scaling.values.get("alpha") is not None:  # Hunyuan: nothing but another base
        alpha = scaling.number("alpha", 1.0, 1e6)
        return rope | {"rope.freq_base": theta * alpha ** (head_dim / max(head_dim - 2, 1))}, {}
    original = scaling.whole("original_max_position_embeddings", context)
    # Dynamic scaling begins behind the original context, and lowbit stops there.
    if kind == "default" or (kind == "dynamic" and original == context):
        return rope, {}
    phi = of.architecture == "phi3"
    if kind in ("longrope", "su") or (phi and kind == "yarn"):  # Phi-3's names of it
        scaled, tensors = longrope(keys, scaling, rope["rope.dimension_count"], context, phi)
        return rope | scaled, tensors
    if share != 1.0:
        raise UnsupportedModelError("scaled positions of heads that are rotated in part are not supported")
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModelError(f"RoPE scaling of type {kind[:40]!r} is not supported")
    factor = scaling.number("factor", 1e-3, 1e6)
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor", 1e-3, 1e6), scaling.number("high_freq_factor", 1e-3, 1e6)
        if not low < high:
            raise FormatError("config.json has a low_freq_factor that is not below high_freq_factor")
        return rope, {"rope_freqs": llama3_factors(head_dim, theta, factor, low, high, original)}
    rope |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "yarn":
        rope |= {
            "rope.scaling.original_context_length": original,
            "rope.scaling.yarn_beta_fast": scaling.number("beta_fast", 1e-3, 1e6, 32.0),
            "rope.scaling.yarn_beta_slow": scaling.number("beta_slow", 1e-3, 1e6, 1.0),
            # GGUF multiplies its own 0.1 ln(factor) + 1 by this.
            "rope.scaling.attn_factor": yarn_magnitude(scaling, factor) / (0.1 * math.log(max(factor, 1.0)) + 1.0),
            "rope.scaling.yarn_truncate": scaling.flag("truncate", True),  # lowbit's own: GGUF has no key for it
        }
    return latent_rope(rope, scaling) if of.latent else rope, {}
