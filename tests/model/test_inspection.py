"""What `lowbit info` says of a file from its header is what the loaded model says of itself."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit.errors import FormatError
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.inspection import inspect_file

NORMS = {"blk.0.attn_sub_norm.weight": (512,), "blk.0.ffn_sub_norm.weight": (768,)}
SIZES = {"hidden": 512, "wide": 768, "vocab": 300, "heads": 8, "kv_heads": 4}


def same_but_for_scratch(path):
    found, model = inspect_file(path), lowbit.load(path).info()
    assert found.pop("scratch_bytes") == pytest.approx(model.pop("scratch_bytes"), rel=0.2)
    assert {key: found[key] for key in model} == model
    assert set(found) - set(model) == {"network", "tokenizer"}
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "TQ2_0", "Q6_K"])
def test_sizes_are_those_of_the_loaded_model(write_llama, kind):
    found = same_but_for_scratch(write_llama(kind=kind, **SIZES))
    assert found["tokenizer"] is None
    assert sum(found["network"].values()) == found["layers"] == 3


@pytest.mark.parametrize("kind", ["F32", "TQ2_0"])
def test_sizes_of_bitnet_are_those_of_the_loaded_model(write_llama, monkeypatch, kind):
    monkeypatch.setattr("lowbit.loading.sparsity.WORTHWHILE", 1)
    found = same_but_for_scratch(write_llama("bitnet-b1.58", shapes=NORMS, kind=kind, **SIZES))
    assert found["skipping"] == ["ffn_down"]


@pytest.mark.parametrize("name", ["stories260K.bin", "tinystories-3m.F32.gguf", "tinystories-3m.I2_S.gguf"])
def test_real_files_are_described_as_loaded(test_data, name):
    found = same_but_for_scratch(test_data / "models" / name)
    assert found["tokenizer"]["tokens"] == 512


def test_the_embedded_model_is_described_as_loaded():
    assert same_but_for_scratch(None)["warnings"] == []


def test_weights_beyond_the_first_rows_are_not_read(write_llama):
    path = write_llama(kind="TQ2_0", **{**SIZES, "wide": 65536})
    with open_model(path) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    raw[info.offset + info.nbytes - 66] = 0xFF  # four codes that do not exist
    path.write_bytes(raw)
    with pytest.raises(lowbit.FormatError, match="code 3"):
        lowbit.load(path)
    assert inspect_file(path)["parameters"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": {"blk.0.attn_q.weight": None}},
        {"shapes": {"blk.0.attn_q.weight": (32, 16)}},
        {"shapes": {"blk.0.attn_q.bias": (32,)}},
        {"keys": {"block_count": 2}},
        {"keys": {"attention.head_count": None}},
        {"architecture": "gpt2"},
    ],
)
def test_what_does_not_load_is_refused_in_the_same_words(write_llama, change):
    path = write_llama(**change)
    with pytest.raises(lowbit.LowbitError) as loaded:
        lowbit.load(path)
    with pytest.raises(lowbit.LowbitError) as inspected:
        inspect_file(path)
    assert (type(inspected.value), str(inspected.value)) == (type(loaded.value), str(loaded.value))


def test_unknown_tensors_are_named(write_llama):
    with pytest.raises(lowbit.UnsupportedModelError, match=r"blk\.0\.attn_q\.bias is not known in the family llama"):
        inspect_file(write_llama(shapes={"blk.0.attn_q.bias": (32,)}))


def test_ternary_floats_are_recognised_by_a_few_rows(tmp_path, write_llama):
    from lowbit.formats.gguf_writer import GGUFWriter

    path, ternary = write_llama(kind="F16", **SIZES), tmp_path / "ternary.gguf"
    rng = np.random.default_rng(3)
    with open_model(path) as file, GGUFWriter(ternary, "llama") as out:
        for key, value in file.metadata.items():
            if key.startswith("llama."):
                out.add_metadata(key, value, "u32" if isinstance(value, int) else "f32")
        for info in file.tensors.values():
            values = rng.integers(-1, 2, info.shape) * 0.5 if info.name.startswith("blk.0") else np.ones(info.shape)
            out.add_tensor(info.name, info.type, np.where(len(info.shape) == 2, values, 1).astype(np.float32))
    assert same_but_for_scratch(ternary)["weight_bytes"] < same_but_for_scratch(path)["weight_bytes"]


def test_a_vocabulary_without_a_model_is_described_and_loads_as_none(tmp_path):
    path = tmp_path / "vocab.gguf"
    with GGUFWriter(path, "gemma4") as out:  # whatever the architecture, which nobody needs here
        out.add_metadata("tokenizer.ggml.model", "llama")
        out.add_metadata("tokenizer.ggml.tokens", [b"<unk>", b"<s>", b"</s>", b"a"], "string")
        out.add_metadata("tokenizer.ggml.scores", np.zeros(4, np.float32), "f32")
    found = inspect_file(path)
    assert found["tokenizer"]["tokens"] == 4
    assert "--tokenizer" in found["warnings"][0]
    with pytest.raises(FormatError, match=r"no weights.*--tokenizer"):
        lowbit.load(path)
