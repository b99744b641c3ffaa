"""A model folder that nobody vouches for loads, or is refused in one line that names it."""

from __future__ import annotations

import json
import os
import pickle

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import ternary_codes
from lowbit.formats.huggingface import _unpack


@pytest.fixture
def folder(tmp_path):
    """`folder(case, **changes)` writes a case, with keys of config.json changed; None removes one."""

    def write(name="llama1", shards=1, **changes):
        path = checkpoints.write(name, tmp_path / "model", shards)
        config = {**checkpoints.config_of(name), **changes}
        (path / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not ...}))
        return path

    return write


def refused(path, error, *words):
    with pytest.raises(error) as caught:
        lowbit.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count(str(path)) == 1
    assert "\n" not in message
    assert len(message) < 700 + len(str(path))
    for word in words:
        assert word in message


def with_tensors(path, change, name="llama1"):
    tensors = checkpoints.tensors_of(name)
    change(tensors)
    (path / "model.safetensors").write_bytes(checkpoints.safetensors_bytes(tensors))
    return path


MISSING = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "max_position_embeddings", "rms_norm_eps"]  # fmt: skip


@pytest.mark.parametrize("key", MISSING)
def test_missing_keys_are_named(folder, key):
    refused(folder(**{key: ...}), FormatError, key)


@pytest.mark.parametrize("key", [*MISSING, "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, "8", 2**63, 1e999, [4], {}, True, 10**400])
def test_impossible_numbers_are_format_errors(folder, key, value):
    if key == "rms_norm_eps" and value == 0:
        pytest.skip("an epsilon of 0 is possible")
    refused(folder(**{key: value}), FormatError)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True}, {"mlp_bias": True}, {"use_sliding_window": True}, {"hidden_act": "gelu"},
        {"layer_types": ["full_attention", "sliding_attention"]}, {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}},
        {"quantization_config": {"quant_method": "gptq"}}, {"quantization_config": {"bits": 4}},
        {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}},
        {"quantization_config": {"quant_method": "bitnet", "linear_class": "other"}},
        {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["mlp"]}},
        {"architectures": ["GPT2LMHeadModel"]}, {"architectures": []}, {"model_type": "mistral"},
        {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]}, {"architectures": None, "model_type": None},
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(folder, changes):
    if changes == {"architectures": []}:
        changes = {"architectures": [], "model_type": "gpt2"}
    refused(folder(**changes), UnsupportedModelError)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": "LlamaForCausalLM"}, {"architectures": [7]}, {"tie_word_embeddings": "no"},
        {"rope_scaling": [1]}, {"rope_scaling": {"type": 7}}, {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": -1}}, {"rope_theta": 0}, {"rope_theta": "big"},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        {"quantization_config": 4}, {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 32},
        {"hidden_size": 64}, {"intermediate_size": 128}, {"num_hidden_layers": 3}, {"vocab_size": 95},
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_a_format_error(folder, changes):
    refused(folder(**changes), FormatError)


def test_fewer_layers_than_stored_are_refused(folder):
    refused(folder(num_hidden_layers=1), UnsupportedModelError, "blk.1")


def test_yarn_without_its_factor_or_with_bounds_of_another_kind_is_refused_and_not_ignored(folder):
    refused(folder(rope_scaling={"rope_type": "yarn"}), FormatError, "factor")
    refused(folder(rope_scaling={"rope_type": "yarn", "factor": 4.0, "truncate": 0}), FormatError, "truncate")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"a": 1} x', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b'{"a": NaN}', b"{" * 100000,
     b'{"a": "' + b"x" * (2 << 20) + b'"}'],
    ids=["empty", "list", "cut", "trailing", "twice", "utf-16", "nan", "nested", "large"],
)  # fmt: skip
def test_a_config_that_is_none_is_a_format_error(folder, content):
    path = folder()
    (path / "config.json").write_bytes(content)
    refused(path, FormatError, "config.json")


def test_code_named_by_the_config_is_never_run(folder, tmp_path):
    path = folder(auto_map={"AutoModelForCausalLM": "evil.Model"})
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    lowbit.load(path)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_refused_and_never_run(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    refused(path, FormatError, "neither")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))
    refused(path, UnsupportedModelError, "pickle")


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", ".hidden.safetensors",
     "a\x00.safetensors", "C:model.safetensors", "model.bin", "absent.safetensors", "..\\model.safetensors"],
)  # fmt: skip
def test_the_index_leads_nowhere_else(folder, name):
    path = folder(shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(path, FormatError)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": {"a": None}}]
)
def test_an_index_without_a_map_is_a_format_error(folder, index):
    path = folder(shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(path, FormatError, "index.json")


def test_shards_hold_what_the_index_says(folder):
    path = folder(shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    weight_map = index["weight_map"]
    for change in ({"model.norm.weight": None}, {"more.weight": "model-00001-of-00002.safetensors"}):
        changed = {key: file for key, file in {**weight_map, **change}.items() if file}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": changed}))
        refused(path, FormatError, next(iter(change)))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_do_not_lead_out_of_the_folder(folder, tmp_path, name):
    path = folder()
    (path / name).rename(tmp_path / "outside")
    (path / name).symlink_to(tmp_path / "outside")
    refused(path, FormatError, "leads out")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_link_to_itself_is_refused_or_is_no_file(folder, name):
    path = folder()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(name)
    if (path / name).name in ("model.safetensors", "config.json"):
        refused(path, FormatError)
    else:  # as if it were not there
        lowbit.load(path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_part_that_is_a_link_to_itself_is_refused(folder):
    path = folder(shards=2)
    part = next(path.glob("model-00002*"))
    part.unlink()
    part.symlink_to(part.name)
    refused(path, FormatError, "cannot be read")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_of_the_download_cache_are_followed(folder, tmp_path):
    path = folder()
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(path.iterdir()):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert lowbit.load(snapshot).config.family == "llama"


def test_tensors_that_nobody_knows_are_refused(folder):
    extra = ("F16", (4,), bytes(8))
    path = with_tensors(folder(), lambda t: t.update({"model.layers.0.self_attn.extra.weight": extra}))
    refused(path, UnsupportedModelError, "extra")


def test_a_missing_head_is_not_taken_for_a_tied_one(folder):
    refused(with_tensors(folder(), lambda t: t.pop("lm_head.weight")), FormatError, "lm_head")


def test_a_head_beside_a_tied_embedding_is_left_out(folder):
    path = with_tensors(folder(tie_word_embeddings=True), lambda t: None)
    assert lowbit.load(path).config.tied_embeddings


def test_buffers_that_follow_from_the_config_are_left_out(folder):
    buffer = ("F32", (16,), bytes(64))
    path = with_tensors(folder(), lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": buffer}))
    lowbit.load(path)


FIRST = "model.layers.0.self_attn.q_proj.weight"


def test_a_missing_tensor_is_named(folder):
    refused(with_tensors(folder(), lambda t: t.pop(FIRST)), FormatError, "blk.0.attn_q")


@pytest.mark.parametrize("dtype", ["I8", "F64", "U8", "I64"])
def test_weights_that_are_no_floats_are_refused(folder, dtype):
    size = {"I8": 1, "U8": 1, "F64": 8, "I64": 8}[dtype]
    tensor = (dtype, (checkpoints.HIDDEN,), bytes(size * checkpoints.HIDDEN))
    refused(with_tensors(folder(), lambda t: t.update({"model.norm.weight": tensor})), UnsupportedModelError, dtype)


PACKED_CHANGES = {
    "code 3": lambda t: t.update({FIRST: ("U8", t[FIRST][1], b"\xff" * len(t[FIRST][2]))}),
    "no scale": lambda t: t.pop(FIRST + "_scale"),
    "a scale of two numbers": lambda t: t.update({FIRST + "_scale": ("F32", (2,), bytes(8))}),
    "a scale of 0": lambda t: t.update({FIRST + "_scale": ("F32", (1,), bytes(4))}),
    "a scale that is infinite": lambda t: t.update({FIRST + "_scale": ("F32", (1,), b"\x00\x00\x80\x7f")}),
    "a scale that is no number": lambda t: t.update({FIRST + "_scale": ("BF16", (1,), b"\xc0\x7f")}),
    "a scale whose inverse is infinite": lambda t: t.update({FIRST + "_scale": ("F32", (1,), b"\x01\x00\x00\x00")}),
    "a scale that is an integer": lambda t: t.update({FIRST + "_scale": ("I32", (1,), b"\x01\x00\x00\x00")}),
    "too few rows": lambda t: t.update({FIRST: ("U8", (32, 128), bytes(32 * 128))}),
    "a scale with nothing to scale": lambda t: t.pop(FIRST),
}


@pytest.mark.parametrize("change", PACKED_CHANGES.values(), ids=PACKED_CHANGES)
def test_packed_weights_that_break_a_rule_are_format_errors(folder, change):
    refused(with_tensors(folder("falcon3"), change, "falcon3"), FormatError)


def test_floats_among_packed_weights_are_refused(folder):
    floats = ("F16", (256, 128), bytes(2 * 256 * 128))
    path = with_tensors(folder("falcon3"), lambda t: t.update({FIRST: floats}), "falcon3")
    refused(path, UnsupportedModelError, "packed")


def test_packed_weights_without_a_quantization_config_are_refused(folder):
    refused(folder("falcon3", quantization_config=...), UnsupportedModelError, "U8")


def test_a_folder_says_what_is_in_it(folder):
    with open_model(folder("falcon3")) as file:
        assert (file.format, file.architecture) == ("huggingface", "llama")
        assert file.tensors["blk.0.attn_q.weight"].type == "I2_S"
        with pytest.raises(FormatError, match="no tensor"):
            file.read("blk.9.attn_q.weight")


def test_a_file_of_weights_alone_points_to_its_folder(folder):
    with pytest.raises(UnsupportedModelError, match="folder"):
        lowbit.load(folder() / "model.safetensors")


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 7, 8, 32])
@pytest.mark.parametrize("cols", [128, 384])
def test_packed_rows_are_a_quarter_of_the_rows_apart(rows, cols):
    """Against the layout spelled out, row by row; what fills the last quarter up is not looked at."""
    quarter = -(-rows // 4)
    packed = np.random.default_rng(rows).integers(0, 3, (4, quarter, cols), dtype=np.uint8)
    expected = np.array([packed[row // quarter, row % quarter] for row in range(rows)])
    packed.reshape(-1, cols)[rows:] = 3
    stored = packed[0] | packed[1] << 2 | packed[2] << 4 | packed[3] << 6
    codes, scales = ternary_codes("I2_S", _unpack(stored.reshape(-1), (rows, cols), 0.5), (rows, cols))
    assert (codes == expected).all()
    assert (scales == 0.5).all()
