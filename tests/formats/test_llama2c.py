"""llama2.c checkpoints, whose tensors lie where the header leads, read to the last byte or refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, SEQ = 8, 12, 2, 2, 1, 5, 6
HEADER = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, SEQ)
GROUP = 4
NORMS = {"attn_norm": (DIM,), "ffn_norm": (DIM,)}
ATTENTION = {"attn_q": (DIM, DIM), "attn_k": (4, DIM), "attn_v": (4, DIM), "attn_output": (DIM, DIM)}
FFN = {"ffn_gate": (HIDDEN, DIM), "ffn_down": (DIM, HIDDEN), "ffn_up": (HIDDEN, DIM)}


def order(version: int, shared: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes in file order, written out once more, from the format's description."""
    embedding = {"token_embd.weight": (VOCAB, DIM)}
    final = {"output_norm.weight": (DIM,)}

    def layers(kinds: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {f"blk.{i}.{kind}.weight": shape for kind, shape in kinds.items() for i in range(LAYERS)}

    if version == 0:
        names = (
            embedding
            | layers({"attn_norm": (DIM,)} | ATTENTION)
            | layers({"ffn_norm": (DIM,)} | FFN)
            | final
            | {"rope": (SEQ, DIM // HEADS)}
        )
    else:
        names = layers(NORMS) | final | embedding | layers(ATTENTION | FFN)
    return names if shared else names | {"output.weight": (VOCAB, DIM)}


def checkpoint(
    version: int, shared: bool, header: tuple[int, ...] = HEADER, group: int = GROUP
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file whose i-th tensor holds i in every place, and what must be read from it."""
    out, expected = b"", {}
    for i, (name, shape) in enumerate(order(version, shared).items()):
        values = np.full(shape, i, np.float32)
        expected[name] = values
        if version == 2 and len(shape) == 2:
            scales = np.arange(1, values.size // group + 1, dtype="<f4")
            expected[name] = (values.reshape(-1, group) * scales[:, None]).reshape(shape)
            out += values.astype(np.int8).tobytes() + scales.tobytes()
        else:
            out += values.astype("<f4").tobytes()
    expected.pop("rope", None)
    if version == 0:
        vocabulary = header[5] if shared else -header[5]
        return struct.pack("<7i", *header[:5], vocabulary, header[6]) + out, expected
    head = struct.pack("<Ii7iB", 0x616B3432, version, *header, shared)
    if version == 2:
        head += struct.pack("<i", group)
    return head.ljust(256, b"\0") + out, expected


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> str:
        path = tmp_path / "model.bin"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_every_tensor_is_found_in_its_place(write, version, shared):
    content, expected = checkpoint(version, shared)
    model = open_model(write(content))
    assert model.format == "llama2c"
    assert set(model.tensors) == set(expected)
    for name, values in expected.items():
        info = model.tensors[name]
        assert info.shape == values.shape
        assert np.array_equal(dequantize(info.type, model.read(name), info.shape), values), name


@pytest.mark.parametrize("version", [0, 1, 2])
def test_metadata_has_the_names_of_gguf(write, version):
    model = open_model(write(checkpoint(version, shared=True)[0]))
    expected = {
        "general.architecture": "llama",
        "llama.embedding_length": DIM,
        "llama.feed_forward_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCAB,
        "llama.context_length": SEQ,
        "llama.rope.dimension_count": DIM // HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama2c.version": version,
    }
    if version == 2:
        expected["llama2c.group_size"] = GROUP
    assert dict(model.metadata) == expected


@pytest.mark.parametrize("version", [0, 1, 2])
def test_file_of_any_other_length_is_refused(write, version):
    content, _ = checkpoint(version, shared=True)
    for length in (28, 29, 255, 256, 257, *range(300, len(content), 97), len(content) - 1):
        with pytest.raises(FormatError):
            open_model(write(content[:length]))
    with pytest.raises(FormatError, match="leads to"):
        open_model(write(content + b"\0"))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("position", range(7))
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1])
def test_impossible_header_is_refused(write, version, position, value):
    if version == 0 and position == 5 and value == -1:
        pytest.skip("a vocabulary of one token and an own output layer")
    header = [*HEADER]
    header[position] = value
    content = bytearray(checkpoint(version, shared=True)[0])
    struct.pack_into("<7i", content, 8 if version else 0, *header)
    with pytest.raises(FormatError):
        open_model(write(bytes(content)))


@pytest.mark.parametrize("group_size", [0, -4, 7, 2**31 - 1])
def test_impossible_group_size_is_refused(write, group_size):
    content = bytearray(checkpoint(2, shared=True)[0])
    struct.pack_into("<i", content, 37, group_size)
    with pytest.raises(FormatError, match="groups"):
        open_model(write(bytes(content)))


def test_heads_that_do_not_divide_are_refused(write):
    for heads, kv_heads in ((3, 1), (8, 1), (4, 3)):
        content = struct.pack("<Ii7iB", 0x616B3432, 1, DIM, HIDDEN, LAYERS, heads, kv_heads, VOCAB, SEQ, 1)
        with pytest.raises(FormatError, match="heads"):
            open_model(write(content.ljust(256, b"\0")))


def test_unknown_version_is_unsupported(write):
    content = bytearray(checkpoint(1, shared=True)[0])
    struct.pack_into("<i", content, 4, 3)
    with pytest.raises(UnsupportedModelError, match="version 3"):
        open_model(write(bytes(content)))


@given(position=st.integers(0, 59), value=st.integers(0, 255), version=st.sampled_from([0, 1, 2]))
@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_header_loads_or_raises_on_purpose(tmp_path, position, value, version):
    content = bytearray(checkpoint(version, shared=False)[0])
    content[position] = value
    path = tmp_path / "mutated.bin"
    path.write_bytes(content)
    try:
        model = open_model(path)
        for name, info in model.tensors.items():
            assert dequantize(info.type, model.read(name), info.shape).shape == info.shape
    except (FormatError, UnsupportedModelError):
        pass


def test_views_outlive_the_file(write):
    content, expected = checkpoint(1, shared=True)
    model = open_model(write(content))
    view = model.read("output_norm.weight")
    model.close()
    assert np.array_equal(view.view("<f4"), expected["output_norm.weight"])
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="closed"):
        model.read("output_norm.weight")


def test_real_checkpoint_is_read_whole():
    folder = os.environ.get("LOWBIT_TEST_DATA")
    if not folder:
        pytest.skip("LOWBIT_TEST_DATA names no folder with real model files")
    path = Path(folder) / "models" / "stories260K.bin"
    model = open_model(path)
    assert len(model.tensors) == 2 + 9 * 5
    assert sum(np.prod(t.shape) for t in model.tensors.values()) == 260032
    floats = np.fromfile(path, "<f4", offset=28)
    embedding = dequantize("F32", model.read("token_embd.weight"), (512, 64))
    assert np.array_equal(embedding.reshape(-1), floats[: 512 * 64])
    # The final norm stands before the two rotary tables, at the end of the file.
    tables = 2 * 512 * 4
    assert np.array_equal(dequantize("F32", model.read("output_norm.weight"), (64,)), floats[-tables - 64 : -tables])
    # Trained norm weights are of the order of 1; weights of layers scatter around 0.
    for name, info in model.tensors.items():
        values = dequantize("F32", model.read(name), info.shape)
        assert (values.mean() > 0.3) == name.endswith("norm.weight"), name
