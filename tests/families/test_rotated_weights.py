"""Rotated weights times rotated activations are the plain product, whatever of the keys a file uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import rotated

import lowbit
from lowbit import FormatError, UnsupportedModelError, reference
from lowbit.convert import convert
from lowbit.convert.requantize import quantize_model
from lowbit.families import find_family, plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import TERNARY, dequantize, ternary_codes
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.packing import read_weights
from lowbit.reference import TernaryLinear

EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
IDS = np.random.default_rng(6).integers(0, checkpoints.VOCAB, 40).astype(np.int32)


@pytest.fixture(scope="module")
def qwen35(tmp_path_factory):
    return checkpoints.write("qwen35", tmp_path_factory.mktemp("rotated") / "qwen35")


@pytest.fixture(scope="module")
def plain(qwen35):
    return lowbit.load(qwen35, **EXACT).logits(IDS)


def apart(got, want):
    """Largest difference in parts of the range."""
    return np.abs(got - want).max() / (want.max() - want.min())


# --- a plain file and its rotated copy ---


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
def test_a_rotated_copy_gives_the_same_logits(isa, qwen35, plain, tmp_path, block):
    path = rotated.fold(qwen35, tmp_path / "rotated.gguf", block)
    assert apart(lowbit.load(path, **EXACT).logits(IDS), plain) <= 1e-5


@pytest.mark.parametrize(
    "how", [{"explicit": False}, {"grouped": False}, {"latent": False}, {"explicit": False, "latent": False}], ids=str
)
def test_so_it_does_without_signs_without_groups_and_with_a_plain_embedding(qwen35, plain, tmp_path, how):
    path = rotated.fold(qwen35, tmp_path / "rotated.gguf", 16, **how)
    assert apart(lowbit.load(path, **EXACT).logits(IDS), plain) <= 1e-5


def test_an_embedding_that_is_the_head_too_is_rotated_for_both(qwen35, tmp_path):
    _, architecture, metadata, tensors = rotated.read(qwen35)
    del tensors["output.weight"]
    want = lowbit.load(rotated.write(tmp_path / "tied.gguf", architecture, metadata, {}, tensors), **EXACT).logits(IDS)
    path = rotated.fold(qwen35, tmp_path / "rotated.gguf", 32, tied=True)
    assert lowbit.load(path).config.tied_embeddings
    assert apart(lowbit.load(path, **EXACT).logits(IDS), want) <= 1e-5


def test_a_rotated_copy_gives_the_logits_and_the_text_of_transformers(qwen35, tmp_path):
    golden = np.load(Path(__file__).parent / "goldens" / "qwen35.npz")
    model = lowbit.load(rotated.fold(qwen35, tmp_path / "rotated.gguf", 32), **EXACT)
    assert apart(model.logits(checkpoints.LOGITS_IDS)[::2], golden["logits"]) <= 1e-3
    out = model.generate(checkpoints.PROMPT, max_tokens=checkpoints.NEW_TOKENS, temperature=0)
    assert out.tokens == golden["ids"].tolist()


@pytest.mark.parametrize(
    "said",
    [
        {"gdn_v_grouped": False}, {"block_size": 16}, {"inverse_weight_names": None},
        {"sign_mode": "identity", "sign_widths": None, "sign_values": None},
        *({"weight_names": w} for w in (["blk.0.ssm_out.weight"], ["output.weight"], ["blk.3.attn_q.weight"])),
    ],
    ids=str,
)  # fmt: skip
def test_each_key_matters(qwen35, plain, tmp_path, said):
    """What is true of a file read as if it were not: that the other tests pass is no accident."""
    path = rotated.fold(qwen35, tmp_path / "rotated.gguf", 32, said=said)
    assert apart(lowbit.load(path, **EXACT).logits(IDS), plain) > 1e-2


def test_weights_of_one_layer_may_be_rotated_in_part(qwen35, plain, tmp_path):
    """Matrices that read the same input lie in one where they read it alike, in any order."""
    plan, architecture, metadata, tensors = rotated.read(qwen35)
    signs = rotated.signs_of(plan)
    roles = ("attn_k", "attn_gate", "ssm_beta", "ffn_up")
    names = [weight.name for weight in plan.weights() if weight.role in roles]
    for name in names:
        tensors[name] = tensors[name] @ rotated.rotation_of(plan, name, 8, signs, False).T
    keys = rotated.keys_of(plan, 8, signs, False, False) | {f"{rotated.PREFIX}weight_names": names}
    path = rotated.write(tmp_path / "rotated.gguf", architecture, metadata, keys, tensors)
    assert apart(lowbit.load(path, **EXACT).logits(IDS), plain) <= 1e-5


@pytest.mark.parametrize("name", ["llama3", "qwen3", "qwen3moe"])
def test_other_families_can_be_rotated_too(name, tmp_path):
    folder = checkpoints.write(name, tmp_path / name)
    plan, architecture, metadata, tensors = rotated.read(folder)
    names = [n for n in rotated.folded_names(plan) if not n.endswith("_exps.weight")]
    signs = rotated.signs_of(plan)
    for one in names:
        tensors[one] = tensors[one] @ rotated.rotation_of(plan, one, 64, signs, False).T
    keys = rotated.keys_of(replace(plan, tied_embeddings=False), 64, signs, False, False)
    keys[f"{rotated.PREFIX}weight_names"] = names
    path = rotated.write(tmp_path / "rotated.gguf", architecture, metadata, keys, tensors)
    assert apart(lowbit.load(path, **EXACT).logits(IDS), lowbit.load(folder, **EXACT).logits(IDS)) <= 1e-5


# --- the shape of Ternary Bonsai 2, with its types ---


@pytest.fixture(scope="module")
def bonsai(tmp_path_factory):
    """`bonsai(kind, tied)` writes a file once and returns its path."""
    folder, made = tmp_path_factory.mktemp("bonsai"), {}

    def write(kind, tied=False):
        if (kind, tied) not in made:
            path = folder / f"{kind}-{tied}.gguf"
            rotated.bonsai(path, kind, tied)
            made[kind, tied] = path
        return made[kind, tied]

    return write


def oracle(path):
    """The plan, and the weights as the reference computes with them: ternary ones take activations of 8 bits."""
    with open_model(path) as file:
        plan, weights = plan_of(file), {}
        for weight in plan.weights():
            info, raw = file.tensors[weight.name], file.read(weight.name)
            role = weight.name.removesuffix(".weight").replace(".bias", "_bias")
            if info.type in TERNARY:
                codes, scales = ternary_codes(info.type, raw, info.shape)
                weights[role] = TernaryLinear(codes.astype(np.int8) - 1, scales.astype(np.float64))
            else:
                weights[role] = dequantize(info.type, raw, info.shape)
        return plan, weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["PQ2_0", "PTQ1_0"])
def test_a_file_of_the_shape_of_bonsai_2_follows_the_oracle(isa, bonsai, kind, tied):
    path = bonsai(kind, tied)
    model = lowbit.load(path, kv_type="f32")
    assert model.info()["types"][kind] >= 25
    want = reference.forward(*oracle(path), IDS)
    worst = np.abs(model.logits(IDS) - want).max(1) / (want.max() - want.min())
    assert np.median(worst) <= 1e-3  # a value that lies at a half can be rounded to either side
    assert worst.max() <= 3e-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["PQ2_0", "PTQ1_0"])
def test_it_is_the_plain_model_up_to_the_rounding_of_activations(bonsai, tmp_path, kind, tied):
    path = bonsai(kind, tied)
    want = lowbit.load(rotated.unfold(path, tmp_path / "plain.gguf"), **EXACT).logits(IDS)
    plan, weights = oracle(path)
    exact = {role: w.weight if isinstance(w, TernaryLinear) else w for role, w in weights.items()}
    assert apart(reference.forward(plan, exact, IDS), want) <= 1e-5
    assert apart(lowbit.load(path, kv_type="f32").logits(IDS), want) <= 0.1


@pytest.mark.parametrize("kind", ["PQ2_0", "PTQ1_0"])
def test_its_matrices_are_ternary_in_memory_and_lie_together(bonsai, kind):
    with open_model(bonsai(kind)) as file:
        read = read_weights(file, plan_of(file), 1)
    recurrent, full = read.layers[0], read.layers[3]
    assert [m.format for m in recurrent["qkv"]] == ["u2", "u2", "bf16", "bf16"]
    assert recurrent["qkv_folded"] == [True, True, False, False]
    assert [(m.format, m.group_cols) for m in full["qkv"]] == [("u2", 128)]
    assert full["qkv_folded"] == [True]


def test_both_types_are_the_same_model(bonsai):
    assert np.array_equal(lowbit.load(bonsai("PQ2_0")).logits(IDS), lowbit.load(bonsai("PTQ1_0")).logits(IDS))


@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize("name", ["qkv", "attn_output", "gate_up", "ffn_down"])
def test_inputs_that_count_are_chosen_among_the_rotated_ones(bonsai, name, share):
    path = bonsai("PQ2_0")
    plan, weights = oracle(path)
    ids = IDS[:12]  # of two that are nearly equal, float32 may choose the other, and all later tokens see it
    want = reference.forward(plan, weights, ids, {name: share})
    got = lowbit.load(path, kv_type="f32", sparsity={name: share}).logits(ids)
    worst = np.abs(got - want).max(1) / (want.max() - want.min())
    assert np.median(worst) <= 1e-5
    assert apart(reference.forward(plan, weights, ids), want) > 1e-2


# --- what becomes of such a file ---


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["PQ2_0", "PTQ1_0"])
def test_weights_that_stay_in_the_file_give_the_same_bits(bonsai, stay_in_file, kind, tied):
    paged = lowbit.load(bonsai(kind, tied), max_ram="40MB", kv_type="f32")
    assert np.array_equal(paged.logits(IDS), lowbit.load(bonsai(kind, tied), kv_type="f32").logits(IDS))
    assert paged.info()["memory"]["misses"] > 0


def test_a_converted_file_is_rotated_as_before(bonsai, tmp_path):
    path = bonsai("PTQ1_0")
    want = lowbit.load(path, kv_type="f32").logits(IDS)
    convert(path, tmp_path / "exact.gguf", "f16", head="f16")
    assert apart(lowbit.load(tmp_path / "exact.gguf", kv_type="f32").logits(IDS), want) <= 0.1
    with open_model(path) as before, open_model(tmp_path / "exact.gguf") as after:
        assert plan_of(after).rotation == plan_of(before).rotation is not None


def test_a_quantised_file_is_rotated_as_before(bonsai, tmp_path):
    path = bonsai("PQ2_0")
    quantize_model(path, tmp_path / "q8.gguf", method="int8")
    got = lowbit.load(tmp_path / "q8.gguf", kv_type="f32").logits(IDS)
    assert apart(got, lowbit.load(path, kv_type="f32").logits(IDS)) <= 0.1


# --- keys that cannot be ---

SIZES = {
    "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
    "feed_forward_length": 96, "block_count": 5, "context_length": 128, "vocab_size": 96, "nextn_predict_layers": 1,
    "attention.layer_norm_rms_epsilon": 1e-6, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2,
    "ssm.time_step_rank": 6, "ssm.inner_size": 96, "rope.dimension_count": 8,
}  # fmt: skip
KEYS = {
    "version": 1, "block_size": 32, "transform": "normalized-sylvester-walsh-hadamard",
    "axis": "input-last-dimension", "sign_mode": "explicit", "sign_widths": np.array([64, 96, 128], np.int32),
    "sign_values": np.array([1, -1, -1, 1] * 72, np.int8), "gdn_v_grouped": True,
    "weight_names": [b"blk.0.attn_qkv.weight", b"blk.0.ssm_out.weight", b"blk.3.attn_output.weight", b"output.weight"],
    "inverse_weight_names": [b"token_embd.weight"],
}  # fmt: skip


def plan(architecture="qwen35", tensors=("output.weight",), sizes=SIZES, **keys):
    metadata = {f"{architecture}.{key}": value for key, value in sizes.items()}
    metadata |= {f"{rotated.PREFIX}{k}": value for k, value in {**KEYS, **keys}.items() if value is not None}
    return find_family(architecture).plan(metadata, architecture, tensors)


def test_the_keys_that_the_others_are_made_of_are_right():
    rotation = plan().rotation
    assert (rotation.block, rotation.latent, rotation.grouped) == (32, True, True)
    assert rotation.signs[96] == bytes([1, 255, 255, 1]) * 24
    assert plan(weight_names=[*KEYS["weight_names"], b"blk.4.attn_q.weight"]).rotation is not None  # nothing reads it
    tied = plan(tensors=(), version=2, tied_output=True, weight_names=KEYS["weight_names"][:3])
    assert tied.is_folded(tied.token_embd)
    assert not plan(inverse_weight_names=None).rotation.latent
    assert plan(sign_values=KEYS["sign_values"].astype(np.int64)).rotation == rotation


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("version", v) for v in (-1, 1.0, "1", True, 2)],  # 2 has a tied head
        *[("tied_output", v) for v in (True, 1, "false")],
        *[("block_size", v) for v in (None, 0, -32, 24, 33, 64, 128, 1 << 17, 2**63, "32", 32.0)],
        *[("transform", v) for v in (None, 1, [b"a"])],
        *[("axis", v) for v in (None, 0)],
        *[("sign_mode", v) for v in (None, 1, "identity")],  # with signs
        *[("sign_widths", v) for v in (
            None, 64, "64", [], np.array([64, 96]), np.array([64, 96, 0]), np.array([64, 96, -128]),
            np.array([64, 96, 120]), np.array([64, 64, 160]), np.array([128, 96, 64, 32]), np.array([64.0, 96, 128]),
            np.array([[64, 96, 128]]), np.array([96, 192]), np.array([2**63, 96, 128], np.uint64))],
        *[("sign_values", v) for v in (
            None, 1, [], np.ones(287, np.int8), np.ones(289, np.int8), np.zeros(288, np.int8), np.ones(288),
            np.array([True] * 288), np.full(288, 2, np.int8), np.full(288, 255, np.uint8))],
        *[("weight_names", v) for v in (
            None, [], "output.weight", 7, [1], np.array([1]), [b"output.weight"] * 2, [b"blk.9.attn_q.weight"],
            [b"\xff"], [b""], [b"blk.0.attn_q.weight"])],  # the first layer is recurrent
        *[("inverse_weight_names", v) for v in ("token_embd.weight", 1, [b"token_embd.weight"] * 2)],
        *[("gdn_v_grouped", v) for v in (1, "true")],
    ],
)  # fmt: skip
def test_a_key_out_of_range_or_against_another_is_a_format_error(key, value):
    with pytest.raises(FormatError, match="hadamard"):
        plan(**{key: value})


@pytest.mark.parametrize(
    "how",
    [
        {"tensors": ()},  # the plain head is the embedding that must be rotated back
        {"tensors": (), "version": 2},
        {"tensors": (), "version": 2, "tied_output": True, "inverse_weight_names": None},
        {"version": 2, "tied_output": True},
        {"tensors": (), "version": 2, "tied_output": True},  # names an output head that is not there
    ],
    ids=str,
)
def test_versions_that_contradict_the_tensors_are_format_errors(how):
    with pytest.raises(FormatError, match="hadamard"):
        plan(**how)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"version": 0}, "version"), ({"version": 3}, "version"), ({"version": None}, "prism.hadamard."),
        ({"transform": "walsh"}, "transform"), ({"axis": "output"}, "axis"), ({"sign_mode": "random"}, "sign_mode"),
        ({"permutation": 1}, "permutation"), ({"block_size.attn": 32}, "block_size.attn"),
        ({"inverse_weight_names": [b"output.weight"]}, "inverse_weight_names"),
        ({"inverse_weight_names": [b"token_embd.weight", b"x"]}, "inverse_weight_names"),
        ({"weight_names": [b"token_embd.weight"], "inverse_weight_names": None}, "token_embd"),
        ({"weight_names": [b"blk.0.attn_norm.weight"]}, "attn_norm"),
        ({"weight_names": [b"blk.0.ssm_conv1d.weight"]}, "ssm_conv1d"),
        ({"architecture": "gemma3"}, "gemma3"), ({"architecture": "qwen2"}, "qwen2"),
        ({"architecture": "qwen3", "tensors": ("blk.0.attn_q_norm_in.weight",)}, "qwen3"),
        ({"architecture": "qwen3moe", "weight_names": [b"blk.0.ffn_up_exps.weight"], "sizes": {
            **SIZES, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}}, "ffn_up_exps"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(how, named):
    with pytest.raises(UnsupportedModelError, match=named):
        plan(**how)


def test_a_file_of_another_transform_is_refused_by_the_name_of_its_key(tmp_path):
    with GGUFWriter(tmp_path / "other.gguf", "qwen35") as out:
        for key, value in SIZES.items():
            out.add_metadata(f"qwen35.{key}", value, "u32" if isinstance(value, int) else None)
        out.add_metadata("onebit.hadamard_q4_0", True)
        out.add_tensor("token_embd.weight", "F32", np.zeros((96, 64), np.float32))
    with pytest.raises(UnsupportedModelError, match=r"onebit\.hadamard_q4_0"):
        lowbit.load(tmp_path / "other.gguf")
