"""Windows, factors, sections, state sizes and intervals that cannot be are refused, by name."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit import FormatError, UnsupportedModelError
from lowbit.convert import convert
from lowbit.families import find_family
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter

NAN, INF = float("nan"), float("inf")
SIZES = {
    "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
    "feed_forward_length": 96, "block_count": 4, "context_length": 128, "vocab_size": 96,
    "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
RECURRENT = {
    "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 96,
    "rope.dimension_count": 8, "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
}  # fmt: skip


EXPERTS = {
    "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 48,
}  # fmt: skip
MORE = {
    "qwen35": RECURRENT, "qwen35moe": RECURRENT | EXPERTS, "qwen3next": RECURRENT | EXPERTS,
    "gpt-oss": {
        **EXPERTS, "expert_shared_feed_forward_length": None, "attention.sliding_window": 9,
        "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
    },
}  # fmt: skip


def plan(architecture, **keys):
    values = {**SIZES, **MORE.get(architecture, {}), **keys}
    metadata = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return find_family(architecture).plan(metadata, architecture, ())


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "gemma3",
        "minicpm",
        "smollm3",
        "hunyuan-dense",
        "qwen35",
        "mistral3",
        "qwen35moe",
        "qwen3next",
        "gpt-oss",
    ],
)
def test_the_numbers_that_the_others_are_made_of_are_right(architecture):
    assert plan(architecture).n_layers == 4


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        *[("gemma3", "attention.sliding_window", v) for v in (-1, 2**31, "8", 8.0, True, np.array([8, 9]))],
        *[("gemma3", "attention.sliding_window_pattern", v)
          for v in (0, -6, "6", 1025, np.array([True] * 3), np.array([1, 0, 1, 0]), np.array([[True] * 4]), [])],
        *[("gemma3", "rope.freq_base_swa", v) for v in (0.0, NAN, INF, "1e4")],
        *[("llama", "attention.scale", v) for v in (-1.0, NAN, INF, "1")],
        *[("llama", "final_logit_softcapping", v) for v in (-1.0, NAN)],
        *[("llama", "pooling_type", v) for v in (-1, "last", 1.5)],
        *[("minicpm", key, v) for key in ("embedding_scale", "residual_scale", "logit_scale")
          for v in (0.0, -1.0, NAN, INF, 1e300, "12")],
        *[("qwen35", "ssm.state_size", v) for v in (None, 0, 15, 32, 513, 2**31, "16")],
        *[("qwen35", "ssm.inner_size", v) for v in (None, 0, 95, 2**31)],
        *[("qwen35", "ssm.group_count", v) for v in (None, 0, 4, 7, -2)],
        *[("qwen35", "ssm.time_step_rank", v) for v in (None, 0, 5, 2**20)],
        *[("qwen35", "ssm.conv_kernel", v) for v in (None, 0, 65, "4")],
        *[("qwen35", "full_attention_interval", v) for v in (0, -1, 1025, "4")],
        *[("qwen35", "attention.recurrent_layers", v)
          for v in (np.array([True] * 3), np.array([1, 1, 1, 0]), True, "yes", np.array([[True] * 4]))],
        *[("qwen3next", "ssm.group_count", v) for v in (None, 0, 4, 7, -2)],
        *[("qwen35moe", "expert_used_count", v) for v in (None, 0, 9, "2")],
        *[("gpt-oss", "attention.sliding_window", v) for v in (None, -1, 2**31, "9", True)],
        *[("gpt-oss", "attention.sliding_window_pattern", v) for v in (0, "2", np.array([True] * 3))],
        *[("gpt-oss", "swiglu_clamp_exp", v) for v in (-1.0, NAN, INF, "7")],
        *[("gpt-oss", "rope.scaling.yarn_truncate", v) for v in (0, "no")],
        *[("gpt-oss", "rope.scaling.factor", v) for v in (None, 0.0, NAN)],
        *[("gpt-oss", "expert_count", v) for v in (None, 0, 1, 2**20)],
        *[("qwen35", "nextn_predict_layers", v) for v in (4, -1, 2**31)],
        *[("qwen35", "rope.dimension_sections", v)
          for v in (np.array([1.0, 2.0, 3.0]), np.array([1, 2]), 4, "abc", np.array([11, 11, -10, 0]))],
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_a_format_error(architecture, key, value):
    with pytest.raises(FormatError):
        plan(architecture, **{key: value})


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "final_logit_softcapping", 30.0), ("gemma3", "attn_logit_softcapping", 50.0),
        ("mistral3", "attention.temperature_scale", 0.1), ("qwen3", "pooling_type", 4),
        ("qwen35", "full_attention_interval", 5), ("qwen35", "attention.recurrent_layers", np.array([True] * 4)),
        ("qwen35", "rope.dimension_sections", np.array([0, 0, 0, 4], np.int32)),
        ("qwen35", "rope.dimension_sections", np.array([1, 11, 20, 0], np.int32)),
        ("qwen35", "rope.scaling.type", "longrope"), ("gemma3", "rope.scaling.type", "longrope"),
    ],
)  # fmt: skip
def test_what_would_change_the_text_is_refused_and_not_ignored(architecture, key, value):
    with pytest.raises((UnsupportedModelError, FormatError), match=r"not supported"):
        plan(architecture, **{key: value})


def test_every_second_layer_of_gpt_oss_has_a_window_and_yarn_keeps_its_bounds():
    found = plan("gpt-oss")
    assert [layer.mixer.window for layer in found.layers] == [9, 0, 9, 0]
    kept, rounded = found.rope_factors, plan("gpt-oss", **{"rope.scaling.yarn_truncate": True}).rope_factors
    assert kept != rounded
    assert kept[0] == rounded[0] == 1.0
    assert kept[-1] == rounded[-1] == pytest.approx(32.0)


def test_layers_of_further_tokens_are_counted_and_not_run():
    found = plan("qwen35", block_count=5, nextn_predict_layers=1)
    assert (found.n_layers, found.unused_layers) == (4, 1)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurrent")
    checkpoints.write("qwen35", folder / "qwen35")
    convert(folder / "qwen35", folder / "model.gguf", "f16", head="f16")
    return folder / "model.gguf"


def rewritten(source, target, keys, tensors=None):
    """A GGUF file with other keys, and with other or more tensors (None takes one away)."""
    with open_model(source) as file, GGUFWriter(target, file.architecture) as out:
        for key, value in {**file.metadata, **keys}.items():
            if key != "general.architecture":
                out.add_metadata(key, value, file.metadata_types.get(key) if key not in keys else None)
        shapes = {name: info.shape for name, info in file.tensors.items()} | (tensors or {})
        for name, shape in shapes.items():
            if shape is not None:
                out.add_tensor(name, "F32", np.full(shape, 0.5, np.float32))
    return target


@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"qwen35.ssm.conv_kernel": 5}, {}),
        ({"qwen35.ssm.state_size": 8, "qwen35.ssm.time_step_rank": 12}, {}),
        ({"qwen35.ssm.group_count": 3}, {}),
        ({"qwen35.full_attention_interval": 2, "qwen35.attention.recurrent_layers": np.array([True, False] * 2)}, {}),
        ({}, {"blk.0.ssm_conv1d.weight": (4, 160)}),
        ({}, {"blk.0.ssm_a": None}),
        ({}, {"blk.0.ssm_dt.bias": (5,)}),
        ({}, {"blk.1.ssm_norm.weight": (32,)}),
        ({}, {"blk.3.attn_q.weight": (128, 64)}),
    ],
)
def test_numbers_and_tensors_that_contradict_each_other_are_a_format_error(recurrent, tmp_path, keys, tensors):
    with pytest.raises(FormatError, match="tensor"):
        lowbit.load(rewritten(recurrent, tmp_path / "m.gguf", keys, tensors))


def test_tensors_of_layers_that_are_not_run_are_left_alone(recurrent, tmp_path):
    keys = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    more = {"blk.4.nextn.eh_proj.weight": (64, 128), "blk.4.attn_norm.weight": (64,)}
    with_them = lowbit.load(rewritten(recurrent, tmp_path / "a.gguf", keys, more))
    without = lowbit.load(rewritten(recurrent, tmp_path / "b.gguf", {}))
    assert np.array_equal(with_them.logits([1, 2, 3]), without.logits([1, 2, 3]))
    with pytest.raises(UnsupportedModelError, match="blk"):
        lowbit.load(rewritten(recurrent, tmp_path / "c.gguf", keys, more | {"blk.5.x.weight": (4,)}))


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("gemma3", {"layer_types": ["sliding_attention"] * 6}, FormatError),
        ("gemma3", {"layer_types": ["chunked_attention"] * 7}, UnsupportedModelError),
        ("gemma3", {"sliding_window": 0}, FormatError), ("gemma3", {"sliding_window": "8"}, FormatError),
        ("gemma3", {"query_pre_attn_scalar": 0}, FormatError),
        ("gemma3", {"final_logit_softcapping": 30.0}, UnsupportedModelError),
        ("gemma3", {"use_bidirectional_attention": True}, UnsupportedModelError),
        ("gemma3", {"hidden_activation": "gelu"}, UnsupportedModelError),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, UnsupportedModelError),
        ("smollm3", {"no_rope_layer_interval": 3}, UnsupportedModelError),
        ("hunyuan", {"rope_scaling": {"type": "dynamic", "alpha": -1.0}}, FormatError),
        ("minicpm", {"dim_model_base": 0}, FormatError), ("minicpm", {"scale_emb": 0.0}, FormatError),
        ("qwen35", {"linear_value_head_dim": 32}, UnsupportedModelError),
        ("qwen35", {"linear_num_value_heads": 5}, FormatError), ("qwen35", {"linear_num_key_heads": 3}, FormatError),
        ("qwen35", {"linear_conv_kernel_dim": 3}, FormatError), ("qwen35", {"linear_key_head_dim": 0}, FormatError),
        ("qwen35", {"layer_types": ["linear_attention"] * 3}, FormatError),
        ("qwen35", {"layer_types": ["linear_attention"] * 4}, UnsupportedModelError),
        ("qwen35", {"attn_output_gate": False}, UnsupportedModelError),
        ("qwen35", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError),
        ("qwen35moe", {"shared_expert_intermediate_size": 64}, FormatError),
        ("qwen3next", {"linear_num_value_heads": 5}, FormatError),
        ("qwen3next", {"linear_num_key_heads": 3}, FormatError),
        ("qwen3next", {"decoder_sparse_step": 2}, UnsupportedModelError),
        ("gpt_oss", {"attention_bias": False}, UnsupportedModelError),
        ("gpt_oss", {"swiglu_limit": 8.0}, UnsupportedModelError),
        ("gpt_oss", {"swiglu_alpha": 1.0}, UnsupportedModelError),
        ("gpt_oss", {"swiglu_limit": "7"}, FormatError),
        ("gpt_oss", {"rope_scaling": None}, FormatError),
        ("gpt_oss", {"sliding_window": None}, FormatError),
        ("gpt_oss", {"sliding_window": 0}, FormatError),
        ("gpt_oss", {"num_local_experts": None}, FormatError),
        ("gpt_oss", {"num_local_experts": 7}, FormatError),
        ("gpt_oss", {"intermediate_size": 32}, FormatError),
        ("gpt_oss", {"layer_types": ["sliding_attention"] * 2}, FormatError),
        ("gpt_oss", {"layer_types": ["linear_attention"] * 3}, UnsupportedModelError),
        ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, UnsupportedModelError),
        ("llama3", {"attention_bias": True}, UnsupportedModelError),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(tmp_path, name, changes, error):
    folder = checkpoints.write(name, tmp_path / name)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error):
        lowbit.load(folder)
