"""Real GGUF files, written by others, read as the gguf package reads them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from work import LITTLE, Work

from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize, ternary_codes
from lowbit.formats.gguf import GGUFFile
from lowbit.quantize import quantize

MODELS = ("tinystories-3m.F32", "tinystories-3m.TQ2_0", "tinystories-3m.I2_S")
# Tokens, merges, id and text of the end token; the gguf package takes ten seconds to read one of these.
VOCABULARIES = {
    "llama-spm": (32000, 0, 2, b"</s>"),
    "llama-bpe": (128256, 280147, 128001, b"<|end_of_text|>"),
    "qwen2": (151936, 151387, 151643, b"<|endoftext|>"),
    "gpt-2": (50257, 50000, 50256, b"<|endoftext|>"),
}


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("LOWBIT_TEST_DATA")
    if not folder:
        pytest.skip("LOWBIT_TEST_DATA names no folder with real model files")
    return Path(folder)


def vocabulary(data: Path, name: str) -> Path:
    return data / "tokenizers" / f"ggml-vocab-{name}.gguf"


@pytest.mark.parametrize(
    "name", ["models/tinystories-3m.F32", "models/tinystories-3m.TQ2_0", "tokenizers/ggml-vocab-llama-spm"]
)
def test_metadata_and_tensors_equal_those_of_the_gguf_package(data, name):
    gguf = pytest.importorskip("gguf")
    path = data / f"{name}.gguf"
    theirs, ours = gguf.GGUFReader(path), GGUFFile(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        if field.types[-1] == gguf.GGUFValueType.STRING and len(field.types) == 2:
            # Compared as bytes, piece by piece: the package's own conversion is quadratic.
            assert value == [bytes(field.parts[i]) for i in field.data]
        elif len(field.types) == 2:
            assert isinstance(value, np.ndarray)
            assert value.tolist() == field.contents()
        else:
            assert value == field.contents()
            assert type(value) is type(field.contents())
    assert [(t.name, t.type, t.shape, t.offset, t.nbytes) for t in ours.tensors.values()] == [
        (t.name, t.tensor_type.name, tuple(int(n) for n in t.shape[::-1]), t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]
    for tensor in theirs.tensors:
        assert np.array_equal(ours.read(tensor.name), tensor.data.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabulary_is_read_to_its_end(data, name):
    model = open_model(vocabulary(data, name))
    n_tokens, n_merges, end, end_text = VOCABULARIES[name]
    tokens, merges = model.metadata["tokenizer.ggml.tokens"], model.metadata.get("tokenizer.ggml.merges", [])
    assert (len(tokens), len(merges)) == (n_tokens, n_merges)
    assert model.metadata["tokenizer.ggml.eos_token_id"] == end
    assert tokens[end] == end_text
    assert all(b" " in merge[1:] for merge in merges)
    assert len(model.metadata["tokenizer.ggml.token_type"]) == n_tokens
    assert len(model.tensors) == 0


@pytest.mark.measured
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_is_little_work_to_open(data, name):
    with Work() as work:
        model = open_model(vocabulary(data, name))
        for key in model.metadata:
            assert model.metadata[key] is not None
    assert work.steps < LITTLE


def test_three_files_of_one_model_hold_equal_weights(data):
    full, tq2_0, i2_s = (open_model(data / "models" / f"{name}.gguf") for name in MODELS)
    assert list(full.tensors) == list(tq2_0.tensors) == list(i2_s.tensors)
    for name, info in full.tensors.items():
        expected = dequantize("F32", full.read(name), info.shape)
        for model in (tq2_0, i2_s):
            kind = model.tensors[name].type
            values = dequantize(kind, model.read(name), info.shape)
            if kind == "TQ2_0":  # its scale is rounded to float16
                assert np.array_equal(np.sign(values), np.sign(expected))
                np.testing.assert_allclose(values, expected, rtol=2**-11)
            else:
                assert np.array_equal(values, expected)


def test_both_packings_hold_equal_codes(data):
    tq2_0, i2_s = (open_model(data / "models" / f"{name}.gguf") for name in MODELS[1:])
    packed = [name for name, info in i2_s.tensors.items() if info.type == "I2_S"]
    assert len(packed) == 56
    for name in packed:
        shape = i2_s.tensors[name].shape
        (codes, scales), (other_codes, other_scales) = (
            ternary_codes(m.tensors[name].type, m.read(name), shape) for m in (i2_s, tq2_0)
        )
        assert np.array_equal(codes, other_codes)
        # gguf-py gives a block of zeros the scale 0.
        used = other_scales != 0
        np.testing.assert_allclose(np.broadcast_to(scales, used.shape)[used], other_scales[used], rtol=2**-11)


@pytest.mark.parametrize("name", MODELS[1:])
def test_encoding_the_float_weights_gives_the_stored_bytes(data, name):
    full, packed = (open_model(data / "models" / f"{n}.gguf") for n in (MODELS[0], name))
    for tensor, info in packed.tensors.items():
        weights = dequantize("F32", full.read(tensor), info.shape)
        # What follows the scale of I2_S is whatever bitnet.cpp had in memory.
        defined = info.nbytes - (28 if info.type == "I2_S" else 0)
        assert np.array_equal(quantize(info.type, weights)[:defined], packed.read(tensor)[:defined]), tensor
