"""DeepSeek: one model in each of its layouts, and what does not fit together is refused in one line."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest
from pieces import logits_on_every_set

import lowbit
from lowbit import FormatError, UnsupportedModelError, reference
from lowbit.convert import convert
from lowbit.convert.requantize import quantize_model
from lowbit.families import find_family, plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.inspection import inspect_file
from lowbit.quantize import quantize

EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
IDS = np.random.default_rng(6).integers(0, checkpoints.VOCAB, 80).tolist()
V3 = checkpoints.config_of("deepseek_v3")
HEADS, NOPE, ROPE, VALUE, RANK = 4, 32, 16, 32, 64
NAMES = ("deepseek_v2_lite", "deepseek_v2", "deepseek_v3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latent")
    return {name: checkpoints.write(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def older(folders, tmp_path_factory):
    """The layout with one tensor for keys and values, which `convert` writes."""
    path = tmp_path_factory.mktemp("older") / "model.gguf"
    convert(folders["deepseek_v3"], path, "f16", head="f16")
    return path


def rewritten(source, target, keys=None, kinds=None, apart=False, more=None):
    """A GGUF file with other keys (None takes one away), types and more tensors; in the newer layout if `apart`."""
    kinds, newer = kinds or {}, {}
    if apart:
        newer = {
            "attention.head_count_kv": 1, "attention.key_length": RANK + ROPE, "attention.value_length": RANK,
            "attention.key_length_mla": NOPE + ROPE, "attention.value_length_mla": VALUE,
        }  # fmt: skip
    with open_model(source) as file, GGUFWriter(target, file.architecture) as out:
        changed = {f"deepseek2.{key}": value for key, value in {**newer, **(keys or {})}.items()}
        for key, value in {**file.metadata, **changed}.items():
            if key != "general.architecture" and value is not None:
                out.add_metadata(key, value, file.metadata_types.get(key) if key not in changed else None)
        tensors = {}
        for name, info in file.tensors.items():
            values = dequantize(info.type, file.read(name), info.shape)
            role = name.split(".")[-2]
            if apart and role == "attn_kv_b":
                both = values.reshape(HEADS, NOPE + VALUE, RANK)
                block = name.removesuffix("attn_kv_b.weight")
                tensors[f"{block}attn_k_b.weight"] = both[:, :NOPE].swapaxes(1, 2), kinds.get("attn_k_b", info.type)
                tensors[f"{block}attn_v_b.weight"] = both[:, NOPE:], kinds.get("attn_v_b", info.type)
            else:
                tensors[name] = values, kinds.get(role, info.type)
        for name, (values, kind) in {**tensors, **(more or {})}.items():
            values = np.ascontiguousarray(values, np.float32)
            out.add_tensor(name, kind, quantize(kind, values.reshape(-1, values.shape[-1])), values.shape)
    return target


def test_keys_and_values_in_one_tensor_or_two_are_the_same_model(older, tmp_path):
    newer = rewritten(older, tmp_path / "newer.gguf", apart=True)
    with open_model(older) as one, open_model(newer) as two:
        assert plan_of(one).layers[0].mixer.joined
        assert not plan_of(two).layers[0].mixer.joined
    a, b = (lowbit.load(path, **EXACT).logits(IDS) for path in (older, newer))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("kinds", [
    {"attn_kv_b": "Q8_0"}, {"attn_kv_b": "Q4_0", "attn_output": "Q8_0"}, {"attn_kv_b": "F32"},
    {"attn_k_b": "Q8_0", "attn_v_b": "Q8_0"}, {"attn_k_b": "Q4_0", "attn_v_b": "F32"}, {"attn_k_b": "BF16"},
])  # fmt: skip
def test_each_type_of_the_heads_matrices_gives_the_reference_on_every_set(older, tmp_path, kinds):
    path = rewritten(older, tmp_path / "model.gguf", kinds=kinds, apart="attn_k_b" in kinds)
    with open_model(path) as file:
        plan = plan_of(file)
        weights = {
            weight.name.removesuffix(".weight").replace(".bias", "_bias"): dequantize(
                file.tensors[weight.name].type, file.read(weight.name), file.tensors[weight.name].shape
            )
            for weight in plan.weights()
        }
    expected = reference.forward(plan, weights, IDS)
    assert inspect_file(path)["weight_bytes"] == lowbit.load(path, threads=1).info()["weight_bytes"]
    want = logits_on_every_set(path, IDS, **EXACT)
    floats = not any(kind.startswith("Q") for kind in kinds.values())
    worst = np.abs(want - expected).max(1) / (expected.max() - expected.min())
    assert np.median(worst) <= (1e-5 if floats else 2e-2)  # activations become int8 before integer weights


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
def test_a_token_takes_a_latent_and_not_its_heads(folders, kv_type):
    model = lowbit.load(folders["deepseek_v3"], **{**EXACT, "kv_type": kv_type})
    element = {"f32": 4, "f16": 2, "int8": 1}[kv_type]
    scales = 4 if kv_type == "int8" else 0
    assert model.info()["kv_bytes_per_token"] == 3 * (element * (RANK + ROPE) + scales)
    described = inspect_file(folders["deepseek_v3"])
    assert f"latents of {RANK} and {ROPE} rotated" in next(iter(described["network"]))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_converted_or_made_smaller_is_the_same_model(folders, tmp_path, name):
    want = lowbit.load(folders[name], **EXACT).logits(IDS)
    for kind, most in (("f16", 5e-3), ("q8_0", 5e-2)):
        convert(folders[name], tmp_path / f"{kind}.gguf", kind, head="f16")
        got = lowbit.load(tmp_path / f"{kind}.gguf", **EXACT).logits(IDS)
        worst = np.abs(got - want).max(1) / (want.max() - want.min())
        assert np.median(worst) <= most  # where two experts are nearly equal, the other one may be chosen
    quantize_model(tmp_path / "f16.gguf", tmp_path / "small.gguf", method="int8")
    with open_model(tmp_path / "small.gguf") as file:
        assert file.tensors["blk.0.attn_kv_b.weight"].type == "Q8_0"
    got = lowbit.load(tmp_path / "small.gguf", **EXACT).logits(IDS)
    worst = np.abs(got - want).max(1) / (want.max() - want.min())
    assert np.median(worst) <= 5e-2


def float8(folder, tensors, name="deepseek_v3"):
    """Write a folder whose linear layers are float8, with a scale for each block of 128 x 128."""
    (folder / "model.safetensors").write_bytes(checkpoints.safetensors_bytes(tensors))
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = checkpoints.config_of(name) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_float8(change=None):
    """Tensors of V3 with random float8 weights; and the same as float32."""
    rng, small, wide = np.random.default_rng(3), {}, {}
    for key, (dtype, shape, raw) in checkpoints.tensors_of("deepseek_v3").items():
        small[key] = wide[key] = (dtype, shape, raw)
        if "_proj" not in key:
            continue
        codes = rng.integers(0, 127, shape).astype(np.uint8) | rng.integers(0, 2, shape).astype(np.uint8) << 7
        values = [float("nan")] * 256
        for code in range(256):  # by the book: sign, exponent of bias 7, fraction
            exponent, fraction = code >> 3 & 15, code & 7
            value = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6
            values[code] = -value if code >> 7 else value
        blocks = tuple(-(-n // 128) for n in shape)
        scales = (10.0 ** rng.uniform(-4, -3.5, blocks)).astype(np.float32)
        each = np.array([[scales[i // 128, j // 128] for j in range(shape[1])] for i in range(shape[0])])
        decoded = (np.array(values, np.float32)[codes] * each).astype(np.float32)
        small[key] = ("F8_E4M3", shape, codes.tobytes())
        small[f"{key}_scale_inv"] = ("F32", blocks, scales.tobytes())
        wide[key] = ("F32", shape, decoded.tobytes())
    if change is not None:
        change(small)
    return small, wide


def test_float8_weights_are_code_times_scale(tmp_path):
    small, wide = in_float8()
    folders = [tmp_path / "small", tmp_path / "wide"]
    for folder in folders:
        folder.mkdir()
    float8(folders[0], small)
    float8(folders[1], wide)
    a, b = (lowbit.load(folder, **EXACT).logits(IDS) for folder in folders)
    assert np.isfinite(a).all()
    assert np.array_equal(a, b)


O_PROJ = "model.layers.0.self_attn.o_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(("change", "error"), [
    (lambda t: t.pop(f"{O_PROJ}_scale_inv"), FormatError),
    (lambda t: t.pop(f"{EXPERT}_scale_inv"), FormatError),
    (lambda t: t.pop(O_PROJ), FormatError),
    (lambda t: t.__setitem__(f"{O_PROJ}_scale_inv", ("F32", (2, 1), bytes(8))), FormatError),
    (lambda t: t.__setitem__(f"{O_PROJ}_scale_inv", ("BF16", (1, 1), bytes(2))), FormatError),
    (lambda t: t.__setitem__(f"{O_PROJ}_scale_inv", ("F32", (1, 1), np.float32("inf").tobytes())), FormatError),
    (lambda t: t.__setitem__(EXPERT, ("F8_E4M3", (32, 128), b"\x7f" * 4096)), FormatError),
    (lambda t: t.__setitem__("model.norm.weight", ("F8_E4M3", (128,), bytes(128))), UnsupportedModelError),
    (lambda t: t.__setitem__("x_scale_inv", ("F32", (1, 1), bytes(4))), FormatError),
])  # fmt: skip
def test_float8_weights_and_scales_that_do_not_fit_are_refused(tmp_path, change, error):
    with pytest.raises(error) as caught:
        lowbit.load(float8(tmp_path, in_float8(change)[0]))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [
    {"weight_block_size": [64, 128]}, {"weight_block_size": None}, {"fmt": "e5m2"}, {"quant_method": "gptq"},
])  # fmt: skip
def test_other_float8_scales_are_refused(tmp_path, changes):
    folder = float8(tmp_path, in_float8()[0])
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError):
        lowbit.load(folder)


@pytest.mark.parametrize(("name", "changes", "error"), [
    ("deepseek_v3", {"kv_lora_rank": 48}, FormatError), ("deepseek_v3", {"kv_lora_rank": 0}, FormatError),
    ("deepseek_v3", {"kv_lora_rank": None}, FormatError), ("deepseek_v3", {"q_lora_rank": 64}, FormatError),
    ("deepseek_v3", {"q_lora_rank": None}, FormatError), ("deepseek_v3", {"qk_nope_head_dim": 16}, FormatError),
    ("deepseek_v3", {"qk_rope_head_dim": 8}, FormatError), ("deepseek_v3", {"qk_rope_head_dim": 15}, FormatError),
    ("deepseek_v3", {"v_head_dim": 64}, FormatError), ("deepseek_v3", {"v_head_dim": 24}, UnsupportedModelError),
    ("deepseek_v3", {"n_group": 3}, FormatError), ("deepseek_v3", {"n_group": 8}, FormatError),
    ("deepseek_v3", {"topk_group": 5}, FormatError), ("deepseek_v3", {"n_routed_experts": 12}, FormatError),
    ("deepseek_v3", {"num_experts_per_tok": 5}, FormatError), ("deepseek_v3", {"n_shared_experts": 2}, FormatError),
    ("deepseek_v3", {"first_k_dense_replace": 2}, FormatError),
    ("deepseek_v3", {"first_k_dense_replace": 4}, FormatError),
    ("deepseek_v3", {"moe_layer_freq": 2}, UnsupportedModelError),
    ("deepseek_v3", {"rope_interleave": False}, UnsupportedModelError),
    ("deepseek_v3", {"attention_bias": True}, UnsupportedModelError),
    ("deepseek_v3", {"scoring_func": "softmax"}, UnsupportedModelError),
    ("deepseek_v3", {"topk_method": "greedy"}, UnsupportedModelError),
    ("deepseek_v3", {"routed_scaling_factor": -1.0}, FormatError),
    ("deepseek_v2", {"topk_method": "best"}, UnsupportedModelError),
    ("deepseek_v2", {"norm_topk_prob": True}, UnsupportedModelError),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, UnsupportedModelError),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(folders, tmp_path, name, changes, error):
    folder = checkpoints.write(name, tmp_path / name)
    (folder / "config.json").write_text(json.dumps(checkpoints.config_of(name) | changes))
    with pytest.raises(error) as caught:
        lowbit.load(folder)
    assert "\n" not in str(caught.value)


OLDER = {
    "embedding_length": 128, "attention.head_count": 4, "attention.head_count_kv": 4, "attention.key_length": 48,
    "attention.value_length": 32, "attention.kv_lora_rank": 64, "attention.q_lora_rank": 48,
    "rope.dimension_count": 16, "feed_forward_length": 256, "block_count": 3, "context_length": 128, "vocab_size": 96,
    "attention.layer_norm_rms_epsilon": 1e-6, "leading_dense_block_count": 1, "expert_count": 8,
    "expert_used_count": 2, "expert_feed_forward_length": 32, "expert_shared_count": 1, "expert_gating_func": 2,
}  # fmt: skip
NEWER = OLDER | {
    "attention.head_count_kv": 1, "attention.key_length": 80, "attention.value_length": 64,
    "attention.key_length_mla": 48, "attention.value_length_mla": 32,
}  # fmt: skip


def plan(keys, tensors=(), **changes):
    values = {key: value for key, value in {**keys, **changes}.items() if value is not None}
    return find_family("deepseek2").plan({f"deepseek2.{key}": v for key, v in values.items()}, "deepseek2", tensors)


@pytest.mark.parametrize("keys", [OLDER, NEWER])
def test_both_layouts_say_the_same_numbers(keys):
    mixer = plan(keys).layers[2].mixer
    assert (mixer.n_heads, mixer.rank, mixer.nope_dim, mixer.value_size, mixer.q_rank) == (4, 64, 32, 32, 48)
    assert (mixer.rope.dim, mixer.rope.pairing) == (16, "adjacent")
    assert mixer.scale == pytest.approx(48**-0.5)
    assert plan(keys, **{"attention.q_lora_rank": None}).layers[0].mixer.q_rank == 0


@pytest.mark.parametrize(("keys", "key", "value"), [
    *[(keys, "attention.kv_lora_rank", v) for keys in (OLDER, NEWER) for v in (None, 0, -1, 513, 2**40, "64", 64.0)],
    *[(keys, "rope.dimension_count", v) for keys in (OLDER, NEWER) for v in (None, 0, 1, 15, 48, 513, "16")],
    *[(OLDER, "attention.key_length", v) for v in (None, 0, 16, 1025, "48")],
    *[(OLDER, "attention.value_length", v) for v in (None, 0, 513, -32)],
    *[(OLDER, "attention.head_count_kv", v) for v in (1, 2, 3, 5)],
    *[(NEWER, "attention.head_count_kv", v) for v in (None, 2, 4, 0)],
    *[(NEWER, "attention.key_length", v) for v in (48, 64, 81)],
    *[(NEWER, "attention.value_length", v) for v in (32, 80)],
    *[(NEWER, "attention.key_length_mla", v) for v in (16, 15, 0, 1025, "48")],
    *[(NEWER, "attention.value_length_mla", v) for v in (None, 0, 513)],
    *[(NEWER, "attention.q_lora_rank", v) for v in (-1, 2**20, "48")],
    *[(NEWER, "attention.head_count", v) for v in (None, 0, 2**20)],
    *[(NEWER, "rope.scaling.yarn_log_multiplier", v) for v in (-0.1, float("nan"), 1e9, "0.1")],
    *[(NEWER, "expert_group_count", v) for v in (3, 5, 8, 16, -1)],
    (NEWER, "nextn_predict_layers", 3), (NEWER, "leading_dense_block_count", 4),
])  # fmt: skip
def test_a_number_that_cannot_be_is_a_format_error(keys, key, value):
    with pytest.raises(FormatError):
        plan(keys, **{key: value})


def test_heads_of_no_whole_row_groups_are_not_supported():
    for changes in ({"attention.value_length": 24}, {"attention.kv_lora_rank": 40}):
        with pytest.raises(UnsupportedModelError):
            plan(OLDER, **changes)


@pytest.mark.parametrize("keys", [
    {"attention.kv_lora_rank": 48}, {"attention.q_lora_rank": 64}, {"attention.q_lora_rank": None},
    {"attention.key_length": 64}, {"attention.value_length": 16}, {"rope.dimension_count": 8},
    {"attention.head_count": 8, "attention.head_count_kv": 8}, {"expert_count": 12, "expert_group_count": 4},
])  # fmt: skip
def test_numbers_and_tensors_that_contradict_each_other_are_a_format_error(older, tmp_path, keys):
    with pytest.raises(FormatError, match="tensor"):
        lowbit.load(rewritten(older, tmp_path / "model.gguf", keys))


def test_files_that_do_not_count_groups_have_those_of_their_model():
    for gating, n, groups in ((2, 256, (8, 4)), (1, 160, (8, 3)), (2, 64, (1, 1))):
        experts = plan(OLDER, expert_count=n, expert_gating_func=gating).layers[2].feed_forward
        assert (experts.groups, experts.top_groups) == groups
    assert plan(OLDER, expert_count=256, expert_group_count=1).layers[2].feed_forward.groups == 1


def test_a_bias_means_a_sigmoid_where_the_file_does_not_say_the_router():
    for tensors, gating, router in (
        ((), None, "softmax"), (("blk.1.exp_probs_b.bias",), None, "sigmoid"),
        (("blk.1.exp_probs_b.bias",), 1, "softmax"), ((), 2, "sigmoid"),
    ):  # fmt: skip
        assert plan(OLDER, tensors, expert_gating_func=gating).layers[2].feed_forward.router == router


def test_groups_compete_by_their_best_or_their_two_best():
    for gating, best in ((1, 1), (2, 2)):
        assert plan(OLDER, expert_gating_func=gating).layers[2].feed_forward.group_best == best


def test_yarn_lengthens_scores_by_its_own_factor():
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0, "rope.scaling.original_context_length": 64}
    with_word = plan(OLDER, **yarn, **{"rope.scaling.yarn_log_multiplier": 0.1}).layers[0].mixer
    without = plan(OLDER, **yarn).layers[0].mixer
    stretch = 1 + 0.1 * np.log(40)
    assert with_word.scale == pytest.approx(stretch**2 / 48**0.5)
    assert with_word.rope.scale == 1.0
    assert without.scale == pytest.approx(48**-0.5)
    assert without.rope.scale == pytest.approx(stretch)


def test_layers_of_further_tokens_are_left_alone(older, folders, tmp_path):
    want = lowbit.load(older, **EXACT).logits(IDS)
    more = {f"blk.3.{name}": (np.ones((64, 64)), "F32") for name in ("nextn.eh_proj.weight", "attn_q_a.weight")}
    keys = {"block_count": 4, "nextn_predict_layers": 1}
    path = rewritten(older, tmp_path / "more.gguf", keys, more=more)
    assert np.array_equal(lowbit.load(path, **EXACT).logits(IDS), want)
    tensors = checkpoints.tensors_of("deepseek_v3")
    tensors["model.layers.3.eh_proj.weight"] = ("BF16", (2, 2), bytes(8))
    tensors["model.layers.3.mlp.experts.7.up_proj.weight"] = ("BF16", (2, 2), bytes(8))
    folder = checkpoints.write("deepseek_v3", tmp_path / "folder")
    (folder / "model.safetensors").write_bytes(checkpoints.safetensors_bytes(tensors))
    want = lowbit.load(folders["deepseek_v3"], **EXACT).logits(IDS)
    assert np.array_equal(lowbit.load(folder, **EXACT).logits(IDS), want)
