"""Tiny random models in the layout in which each family is published, made from a seed with NumPy alone.

`make_goldens.py` gives the same folders to transformers; its logits and texts are what the tests compare with.
"""

from __future__ import annotations

import json
import struct

import numpy as np

VOCAB, HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS = 96, 128, 256, 2, 4, 2
PROMPT = [1, 17, 5, 80, 33, 2, 64, 9]
LOGITS_IDS = np.random.default_rng(5).integers(0, VOCAB, 40).tolist()
NEW_TOKENS = 64

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.0,
    "rope_theta": 10000.0,
}  # fmt: skip
YARN_OWN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0, "beta_slow": 2.0,
    "rope_theta": 1000000.0,
}  # fmt: skip
YARN_MSCALE = {**YARN, "attention_factor": None, "mscale": 2.0, "mscale_all_dim": 0.5}
GEMMA = {
    "head_dim": 64, "num_key_value_heads": 1, "num_hidden_layers": 7, "query_pre_attn_scalar": 48, "sliding_window": 8,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
QWEN35 = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 32, "rms_norm_eps": 1e-6,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
PACKED = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"], "quantization_mode": "offline"}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}

MAPLE = {
    **EXPERTS, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 64, "num_hidden_layers": 5,
    "sliding_window": 9, "partial_rotary_factor": 0.5, "nope_on_global_attention": True, "num_shared_experts": 0,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"], "rms_norm_eps": 1e-6,
}  # fmt: skip
QWEN35_MOE = {
    **QWEN35, **EXPERTS, "linear_num_value_heads": 4, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
MINICPM = {
    "num_hidden_layers": 3, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32, "tie_word_embeddings": True,
}  # fmt: skip
GPT_OSS = {
    "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64, "head_dim": 16, "sliding_window": 9,
    "num_hidden_layers": 3, "attention_bias": True, "swiglu_limit": 7.0, "pad_token_id": None,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False},
    "rope_theta": 150000.0,
}  # fmt: skip

DEEPSEEK = {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "kv_lora_rank": 64, "rms_norm_eps": 1e-6, "attention_bias": False,
}  # fmt: skip
DEEPSEEK_YARN = {
    "type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0,
}  # fmt: skip


def longrope(pairs, original, **more):
    """LongRoPE's keys for so many pairs of channels."""
    return {
        "rope_type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.0 + 0.4 * i**1.5 for i in range(pairs)], "original_max_position_embeddings": original, **more,
    }  # fmt: skip


# name: architecture class, model_type, keys of config.json, what the linear weights are, dtype of the floats.
# A case's random numbers follow from its place: new ones go to the end.
CASES = {
    "llama1": ("LlamaForCausalLM", "llama", {"num_key_value_heads": 4}, "float", "F16"),
    "llama2_linear": ("LlamaForCausalLM", "llama", {"rope_scaling": LINEAR, "rope_theta": 5000.0}, "float", "F32"),
    "llama3": ("LlamaForCausalLM", "llama", {"rope_parameters": LLAMA3}, "float", "BF16"),
    "llama_yarn": (
        "LlamaForCausalLM", "llama", {"rope_parameters": YARN, "tie_word_embeddings": True}, "float", "BF16",
    ),
    "falcon3": (
        "LlamaForCausalLM", "llama",
        {"head_dim": 64, "rope_theta": 1000042.0, "rms_norm_eps": 1e-6, "quantization_config": PACKED},
        "divide", "BF16",
    ),
    "falcon_e": (
        "LlamaForCausalLM", "llama", {"quantization_config": {**PACKED, "linear_class": "bitlinear"}}, "divide", "F16",
    ),
    "trilm": ("LlamaForCausalLM", "llama", {}, "trilm", "F16"),
    "bitnet_1bitllm": (
        "BitnetForCausalLM", "llama",
        {"weight_bits": 1, "input_bits": 8, "tie_word_embeddings": True, "num_key_value_heads": 4}, "float", "F16",
    ),
    "bitnet_2b4t": (
        "BitNetForCausalLM", "bitnet",
        {"hidden_act": "relu2", "rope_theta": 500000.0, "tie_word_embeddings": True,
         "quantization_config": {**PACKED, "linear_class": "autobitlinear"}},
        "multiply", "BF16",
    ),
    "bitnet_2b4t_masters": (
        "BitNetForCausalLM", "bitnet",
        {"hidden_act": "relu2", "rope_theta": 500000.0, "tie_word_embeddings": True,
         "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                 "quantization_mode": "online"}},
        "float", "BF16",
    ),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0}, "float", "BF16"),
    "qwen3": (
        "Qwen3ForCausalLM", "qwen3",
        {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "head_dim": 64, "tie_word_embeddings": True}, "float", "BF16",
    ),
    "qwen3_yarn": (
        "Qwen3ForCausalLM", "qwen3",
        {"rms_norm_eps": 1e-6, "head_dim": 64, "rope_parameters": YARN_OWN}, "float", "BF16",
    ),
    "llama_yarn_mscale": ("LlamaForCausalLM", "llama", {"rope_parameters": YARN_MSCALE}, "float", "F16"),
    "mistral": ("MistralForCausalLM", "mistral", {"sliding_window": 9, "head_dim": 48}, "float", "BF16"),
    "smollm3": (
        "SmolLM3ForCausalLM", "smollm3",
        {"num_hidden_layers": 5, "rope_theta": 5000000.0, "tie_word_embeddings": True, "pad_token_id": None}, "float",
        "BF16",
    ),
    "hunyuan": (
        "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense",
        {"head_dim": 16, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}, "pad_token_id": None},
        "float", "BF16",
    ),
    "minicpm": (
        "MiniCPMForCausalLM", "minicpm",
        MINICPM, "float", "BF16",
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "gemma3_text",
        {**GEMMA, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
        "float", "F32",
    ),
    "qwen3_embedding": (
        "Qwen3ForCausalLM", "qwen3",
        {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "head_dim": 32, "tie_word_embeddings": True}, "normed", "F16",
    ),
    "gemma3_embedding": (
        "Gemma3ForCausalLM", "gemma3_text",
        {**GEMMA, "num_hidden_layers": 2, "sliding_window": 4096, "rope_theta": 10000.0,
         "rope_local_base_freq": 10000.0}, "normed", "F32",
    ),
    "qwen3moe": (
        "Qwen3MoeForCausalLM", "qwen3_moe",
        {**EXPERTS, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 64, "decoder_sparse_step": 1,
         "mlp_only_layers": [], "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
        "float", "BF16",
    ),
    "qwen2moe": (
        "Qwen2MoeForCausalLM", "qwen2_moe",
        {**EXPERTS, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "norm_topk_prob": False,
         "num_key_value_heads": 4, "decoder_sparse_step": 1, "mlp_only_layers": [], "qkv_bias": True},
        "float", "BF16",
    ),
    "olmoe": (
        "OlmoeForCausalLM", "olmoe",
        {**EXPERTS, "intermediate_size": 64, "norm_topk_prob": False, "num_key_value_heads": 4, "clip_qkv": None},
        "float", "F16",
    ),
    "qwen35": (
        "Qwen3_5ForCausalLM", "qwen3_5_text",
        {**QWEN35, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10], "mrope_interleaved": True}},
        "float", "BF16",
    ),
    "deepseek_v2_lite": (
        "DeepseekV2ForCausalLM", "deepseek_v2",
        {**DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
         "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
         "rope_parameters": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        "float", "BF16",
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM", "deepseek_v2",
        {**DEEPSEEK, "q_lora_rank": 40, "n_shared_experts": 1, "topk_method": "group_limited_greedy", "n_group": 4,
         "topk_group": 2, "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 4.0},
        "float", "F32",
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM", "deepseek_v3",
        {**DEEPSEEK, "q_lora_rank": 48, "n_shared_experts": 1, "topk_method": "noaux_tc", "n_group": 4,
         "topk_group": 2, "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
         "rope_parameters": DEEPSEEK_YARN},
        "float", "BF16",
    ),
    "qwen35moe": (
        "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text",
        {**QWEN35_MOE, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10], "mrope_interleaved": True}},
        "float", "BF16",
    ),
    "qwen3next": (
        "Qwen3NextForCausalLM", "qwen3_next",
        {**QWEN35_MOE, "linear_num_value_heads": 6, "norm_topk_prob": True, "decoder_sparse_step": 1,
         "mlp_only_layers": [], "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
        "float", "BF16",
    ),
    "gpt_oss": ("GptOssForCausalLM", "gpt_oss", GPT_OSS, "float", "BF16"),
    "gpt_oss_mxfp4": (
        "GptOssForCausalLM", "gpt_oss",
        {**GPT_OSS, "quantization_config": {
            "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}},
        "mxfp4", "BF16",
    ),
    "phi3": (
        "Phi3ForCausalLM", "phi3",
        {"sliding_window": 9, "partial_rotary_factor": 0.75, "pad_token_id": None, "tie_word_embeddings": True,
         "original_max_position_embeddings": 72,
         "rope_scaling": {k: v for k, v in longrope(12, 72, type="su").items() if k != "rope_type"}},
        "float", "BF16",
    ),
    "phi3_long": (
        "Phi3ForCausalLM", "phi3",
        {"sliding_window": None, "pad_token_id": None, "original_max_position_embeddings": 7,
         "rope_scaling": {k: v for k, v in longrope(16, 7, type="longrope").items() if k != "rope_type"}},
        "float", "F16",
    ),
    "minicpm4": ("MiniCPMForCausalLM", "minicpm", {**MINICPM, "rope_scaling": longrope(16, 128)}, "float", "BF16"),
    "minicpm4_long": (
        "MiniCPMForCausalLM", "minicpm", {**MINICPM, "rope_scaling": longrope(16, 7)}, "float", "BF16",
    ),
}  # fmt: skip

CONTEXTS = {"phi3": 72}
"""Contexts to load models for, if not their own: the original one, up to which LongRoPE has its short factors."""

OWN = {"maple": ("MapleForCausalLM", "maple", MAPLE, "float", "BF16")}
"""Cases that transformers cannot run."""

PLACES = {
    "qwen35": 21,
    "maple": 25,
    "deepseek_v2_lite": 125,
    "deepseek_v2": 126,
    "deepseek_v3": 127,
    "qwen35moe": 101,
    "qwen3next": 102,
    "gpt_oss": 103,
    "gpt_oss_mxfp4": 104,
}
"""Where a case stood when its golden was made, if not where it stands now."""

SEEDS = {"llama1": 1, "llama_yarn": 1, "bitnet_2b4t": 1, "bitnet_2b4t_masters": 1, "gemma3_embedding": 3}
"""Other seeds for models in which an activation times its scale lies so close to a half that float32 programs round it
to different integers, or two logits so close together that they choose different tokens. Both are chance, and rare."""


def config_of(name):
    """The parsed config.json of a case."""
    architecture, model_type, keys, _, dtype = (CASES | OWN)[name]
    return {
        "architectures": [architecture], "model_type": model_type, "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.02,
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype], **keys,
    }  # fmt: skip


def stored_floats(values, dtype):
    """Raw bytes of floats, rounded to the type."""
    values = np.ascontiguousarray(values, "<f4")
    if dtype == "BF16":
        bits = values.view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def pack_quarters(codes):
    """Codes (4 R, cols) -> bytes (R, cols): bits 2i+1:2i hold row i R + r."""
    rows = len(codes) // 4
    return sum(codes[i * rows : (i + 1) * rows] << (2 * i) for i in range(4)).astype(np.uint8)


def tensors_of(name):
    """Tensors of a case by published name: (dtype, shape, bytes)."""
    architecture, _, _, weights, dtype = (CASES | OWN)[name]
    config = config_of(name)
    rng = np.random.default_rng([100, PLACES.get(name, list(CASES | OWN).index(name)), SEEDS.get(name, 0)])
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // HEADS)
    gemma, qwen35 = architecture == "Gemma3ForCausalLM", "linear_conv_kernel_dim" in config
    gpt_oss = architecture == "GptOssForCausalLM"
    q_size, kv_size = HEADS * head_dim, config["num_key_value_heads"] * head_dim
    tensors = {}

    def add(key, values):
        tensors[key] = (dtype, values.shape, stored_floats(values, dtype))

    def norm(key, size, middle=0.0 if gemma or qwen35 else 1.0):
        add(f"{key}.weight", middle + 0.2 * rng.standard_normal(size))

    def linear(key, rows, cols):
        if weights in ("divide", "multiply"):
            codes = rng.integers(0, 3, (rows, cols), dtype=np.uint8)
            # One of the directions hides a wrong one less well than a scale of 1 would.
            scale = rng.uniform(0.05, 0.15)
            tensors[f"{key}.weight"] = ("U8", (rows // 4, cols), pack_quarters(codes).tobytes())
            stored = scale if weights == "multiply" else 1.0 / scale
            tensors[f"{key}.weight_scale"] = (dtype, (1,), stored_floats(np.array([stored]), dtype))
        elif weights == "trilm":
            codes = rng.integers(-1, 2, (rows, cols))
            # Four parts, by rows or by columns, each with a scale of its own.
            scales = np.repeat(rng.uniform(0.05, 0.15, (4, 1)), rows // 4, axis=0)
            add(f"{key}.weight", codes * scales)
        else:
            if weights == "normed":
                norm(f"{key}.norm", cols, 1.0)
            add(f"{key}.weight", 0.12 * rng.standard_normal((rows, cols)))

    def latent(block):
        heads = config["num_attention_heads"]
        rank, q_rank, rotated = (config[key] for key in ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"))
        q_size = heads * (config["qk_nope_head_dim"] + rotated)
        linear(block + ("q_a_proj" if q_rank else "q_proj"), q_rank or q_size, hidden)
        if q_rank:
            norm(block + "q_a_layernorm", q_rank)
            linear(block + "q_b_proj", q_size, q_rank)
        linear(block + "kv_a_proj_with_mqa", rank + rotated, hidden)
        norm(block + "kv_a_layernorm", rank)
        linear(block + "kv_b_proj", heads * (config["qk_nope_head_dim"] + config["v_head_dim"]), rank)
        linear(block + "o_proj", hidden, heads * config["v_head_dim"])

    def columns(block):
        """gpt-oss: each output of an expert is a column, and those of gates are the even ones; MXFP4 has rows."""
        add(block + "mlp.router.weight", 0.12 * rng.standard_normal((8, hidden)))
        add(block + "mlp.router.bias", 0.3 * rng.standard_normal(8))
        for key, rows, cols in (("gate_up_proj", 2 * wide, hidden), ("down_proj", hidden, wide)):
            key = f"{block}mlp.experts.{key}"
            if weights == "mxfp4":
                packed = rng.integers(0, 256, (8, rows, cols // 32, 16), dtype=np.uint8)
                scales = rng.integers(122, 126, (8, rows, cols // 32), dtype=np.uint8)
                tensors[key + "_blocks"] = ("U8", packed.shape, packed.tobytes())
                tensors[key + "_scales"] = ("U8", scales.shape, scales.tobytes())
            else:  # large enough for some gates to be clamped
                add(key, 0.3 * rng.standard_normal((8, cols, rows)))
            add(key + "_bias", 0.3 * rng.standard_normal((8, rows)))

    def feed_forward(block, i=0):
        gated = {"mlp.": wide}
        n = config.get(
            "num_experts", config.get("n_routed_experts", 0) if i >= config.get("first_k_dense_replace", 0) else 0
        )
        if n:
            size = config.get("moe_intermediate_size", wide)
            gated = {f"mlp.experts.{e}.": size for e in range(n)}
            linear(block + "mlp.gate", n, hidden)
        if n and config.get("scoring_func") == "sigmoid":
            add(block + "mlp.gate.e_score_correction_bias", 0.05 * rng.standard_normal(n))
        if n and "n_shared_experts" in config:
            gated["mlp.shared_experts."] = size * config["n_shared_experts"]
        if "shared_expert_intermediate_size" in config:
            gated["mlp.shared_expert."] = config["shared_expert_intermediate_size"]
            linear(block + "mlp.shared_expert_gate", 1, hidden)
        for part, size in gated.items():
            if architecture == "Phi3ForCausalLM":
                linear(f"{block}{part}gate_up_proj", 2 * size, hidden)
            else:
                linear(f"{block}{part}gate_proj", size, hidden)
                linear(f"{block}{part}up_proj", size, hidden)
            linear(f"{block}{part}down_proj", hidden, size)

    def recurrent(block, config):
        heads, size = config["linear_num_value_heads"], config["linear_key_head_dim"]
        channels = (2 * config["linear_num_key_heads"] + heads) * size
        if architecture == "Qwen3NextForCausalLM":
            linear(block + "in_proj_qkvz", channels + heads * size, hidden)
            linear(block + "in_proj_ba", 2 * heads, hidden)
        else:
            linear(block + "in_proj_qkv", channels, hidden)
            linear(block + "in_proj_z", heads * size, hidden)
            linear(block + "in_proj_b", heads, hidden)
            linear(block + "in_proj_a", heads, hidden)
        add(block + "conv1d.weight", 0.5 * rng.standard_normal((channels, 1, config["linear_conv_kernel_dim"])))
        add(block + "A_log", rng.uniform(-1, 1, heads))
        add(block + "dt_bias", 0.5 * rng.standard_normal(heads))
        norm(block + "norm", size, 1.0)
        linear(block + "out_proj", hidden, heads * size)

    # A tied model whose embeddings outweigh its layers would only repeat its last token.
    size = 0.1 if config["tie_word_embeddings"] else 1.0
    size /= hidden**0.5 if gemma else config.get("scale_emb", 1)
    add(
        "model.word_embeddings.weight" if name == "maple" else "model.embed_tokens.weight",
        size * rng.standard_normal((VOCAB, hidden)),
    )
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        norm(block + "input_layernorm", hidden)
        if qwen35 and (i + 1) % 4:
            recurrent(block + "linear_attn.", config)
            norm(block + "post_attention_layernorm", hidden)
            feed_forward(block)
            continue
        if "kv_lora_rank" in config:
            latent(block + "self_attn.")
            norm(block + "post_attention_layernorm", hidden)
            feed_forward(block, i)
            continue
        phi3 = architecture == "Phi3ForCausalLM"
        apart = ("q_proj", (2 if qwen35 else 1) * q_size), ("k_proj", kv_size), ("v_proj", kv_size)
        for key, rows in (("qkv_proj", q_size + 2 * kv_size),) if phi3 else apart:
            linear(f"{block}self_attn.{key}", rows, hidden)
            if architecture in ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "GptOssForCausalLM"):
                add(f"{block}self_attn.{key}.bias", 0.5 * rng.standard_normal(rows))
        if architecture == "HunYuanDenseV1ForCausalLM":
            norm(block + "self_attn.query_layernorm", head_dim)
            norm(block + "self_attn.key_layernorm", head_dim)
        if architecture in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "MapleForCausalLM") or gemma or qwen35:
            norm(block + "self_attn.q_norm", head_dim)
            norm(block + "self_attn.k_norm", head_dim)
        if architecture == "OlmoeForCausalLM":
            norm(block + "self_attn.q_norm", q_size)
            norm(block + "self_attn.k_norm", kv_size)
        linear(block + "self_attn.o_proj", hidden, q_size)
        if gpt_oss:
            add(block + "self_attn.o_proj.bias", 0.3 * rng.standard_normal(hidden))
            add(block + "self_attn.sinks", rng.uniform(-1, 3, HEADS))
        norm(block + "post_attention_layernorm", hidden)
        if gemma:
            norm(block + "pre_feedforward_layernorm", hidden)
            norm(block + "post_feedforward_layernorm", hidden)
        (columns if gpt_oss else feed_forward)(block)
        if architecture == "BitnetForCausalLM":
            norm(block + "self_attn.inner_attn_ln", hidden)
            norm(block + "mlp.ffn_layernorm", wide)
        if architecture == "BitNetForCausalLM":
            norm(block + "self_attn.attn_sub_norm", q_size)
            norm(block + "mlp.ffn_sub_norm", wide)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", rng.standard_normal((VOCAB, hidden)))
    return tensors


def safetensors_bytes(tensors, metadata=None):
    """A safetensors file of tensors (dtype, shape, bytes) by name."""
    header, data = {"__metadata__": metadata or {"format": "pt"}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write(name, folder, shards=1):
    """Write the folder of a case; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(name)))
    tensors = tensors_of(name)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        (folder / file).write_bytes(safetensors_bytes({key: tensors[key] for key in part}))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
