"""Loading: what is wrong with a file is said in one line that names it."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import ContextLengthError, FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.tokenizers import load_tokenizer


def expect(error, path, *words, **options):
    with pytest.raises(error) as caught:
        lowbit.load(path, **options)
    message = str(caught.value)
    assert message.count(str(path)) == 1
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_small_model_loads(write_llama):
    assert lowbit.load(write_llama()).logits([1, 2]).shape == (2, 16)


def test_missing_files_are_named(tmp_path):
    expect(FormatError, tmp_path / "none.gguf", "no such file")


def test_empty_files_are_named(tmp_path):
    path = tmp_path / "empty.gguf"
    path.touch()
    expect(FormatError, path, "empty")


def test_folders_are_named(tmp_path):
    expect(FormatError, tmp_path, "folder")


def test_other_files_are_named(tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(b"Once upon a time, there was a file that was no model." * 10)
    expect(FormatError, path)


@pytest.mark.parametrize("size", [4, 24, 100, 1000, 20000, -1])
def test_truncated_files_are_named(write_llama, size):
    path = write_llama()
    path.write_bytes(path.read_bytes()[:size])
    expect(FormatError, path)


def test_truncated_checkpoints_are_named(test_data, tmp_path):
    whole = (test_data / "models/stories260K.bin").read_bytes()
    path = tmp_path / "short.bin"
    path.write_bytes(whole[:-4])
    expect(FormatError, path, str(len(whole)))


def test_unknown_architectures_are_named(write_llama):
    expect(UnsupportedModelError, write_llama("mamba"), "mamba", "llama")


@pytest.mark.parametrize(
    "tensor",
    ["token_embd", "output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v",
     "blk.0.attn_output", "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down"],
)  # fmt: skip
def test_missing_and_misshapen_tensors_are_named(write_llama, tensor):
    name = f"{tensor}.weight"
    expect(FormatError, write_llama(shapes={name: None}), name, "missing")
    shape = (31,) if "norm" in name else (8, 24)
    expect(FormatError, write_llama(shapes={name: shape}), name, str(shape))


@pytest.mark.parametrize("tensor", ["blk.0.attn_q.bias", "blk.3.attn_q.weight", "blk.0.ffn_gate_exps.weight", "extra"])
def test_tensors_that_would_be_ignored_are_refused(write_llama, tensor):
    expect(UnsupportedModelError, write_llama(shapes={tensor: (32,)}), tensor)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_length", None),
        ("block_count", None),
        ("block_count", 0),
        ("block_count", 4),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 3),
        ("attention.layer_norm_rms_epsilon", None),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("context_length", 0),
        ("vocab_size", 17),
        ("rope.dimension_count", 3),
        ("rope.dimension_count", 10),
        ("rope.freq_base", -1.0),
        ("rope.scaling.type", "yarn"),
    ],
)
def test_impossible_numbers_are_refused(write_llama, key, value):
    expect(FormatError, write_llama(keys={key: value}))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tensor", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_norms_must_be_finite(write_llama, kind, tensor):
    path = write_llama(kind=kind)
    info = lowbit.formats.open_model(path).tensors[tensor]
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + 4] = np.float32(np.inf).tobytes()
    path.write_bytes(raw)
    expect(FormatError, path, tensor, "finite")


def test_code_3_in_a_model_names_file_and_tensor(write_llama):
    path = write_llama(kind="TQ2_0", hidden=256, wide=256)
    info = lowbit.formats.open_model(path).tensors["blk.0.ffn_down.weight"]
    raw = bytearray(path.read_bytes())
    raw[info.offset] = 0xFF
    path.write_bytes(raw)
    expect(FormatError, path, info.name, "code")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_threads_must_be_a_whole_number(threads):
    with pytest.raises(ValueError, match="threads"):
        lowbit.load(threads=threads)


@pytest.mark.parametrize("context", [0, -1, 1.5, True, 65])
def test_context_must_fit_the_model(write_llama, context):
    with pytest.raises(ValueError, match=r"context.*64"):
        lowbit.load(write_llama(), context=context)


@pytest.mark.parametrize("setting", ["kv_type", "head"])
def test_choices_must_be_known(setting):
    with pytest.raises(ValueError, match=f"{setting}.*nonsense"):
        lowbit.load(**{setting: "nonsense"})


def test_path_may_be_text_or_path(write_llama):
    path = write_llama()
    assert np.array_equal(lowbit.load(path).logits([1]), lowbit.load(str(path)).logits([1]))


def test_the_file_is_not_needed_after_loading(write_llama):
    path = write_llama()
    model = lowbit.load(path)
    want = model.logits([1, 2])
    path.unlink()
    assert np.array_equal(model.logits([1, 2]), want)


def test_a_model_without_tokenizer_takes_token_ids_only(write_llama):
    path = write_llama()
    model = lowbit.load(path)
    out = model.generate([1, 2], max_tokens=5, temperature=0)
    assert (len(out.tokens), out.text, out.finish_reason) == (5, "", "length")
    for use in (lambda: model.generate("a"), lambda: model.perplexity("a"), lambda: model.tokenizer):
        with pytest.raises(UnsupportedModelError, match="no tokenizer") as caught:
            use()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["none", "no_vocab"])
def test_a_file_that_says_it_has_no_vocabulary_is_one_without(write_llama, tmp_path, kind):
    path = tmp_path / "none.gguf"
    with open_model(write_llama()) as file, GGUFWriter(path, "llama") as out:
        for key in file.metadata.keys() - {"general.architecture"}:
            out.add_metadata(key, file.metadata[key], file.metadata_types[key])
        out.add_metadata("tokenizer.ggml.model", kind)
        for name, info in file.tensors.items():
            out.add_tensor(name, "F32", file.read(name).view(np.float32).reshape(info.shape))
    model, same = lowbit.load(path), lowbit.load(write_llama())
    assert (model.logits([1, 2]) == same.logits([1, 2])).all()
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        model.generate("a")
    with pytest.raises(FormatError, match=f"tokenizer.ggml.model is {kind}"):
        load_tokenizer(path)


def test_the_embedded_model_runs(embedded):
    prompt = "Once upon a time"
    out = embedded.generate(prompt, max_tokens=8, seed=1)
    assert 0 < len(out.tokens) <= 8
    assert prompt + out.text == embedded.tokenizer.decode([*embedded.tokenizer.encode(prompt), *out.tokens])
    assert str(out) == out.text
    assert embedded.perplexity(prompt).nats_per_token > 0


def test_context_errors_are_both_lowbits_and_pythons(embedded):
    assert issubclass(ContextLengthError, ValueError)
    with pytest.raises(ContextLengthError, match=str(embedded.context)):
        embedded.logits([1] * (embedded.context + 1))
