"""What the writer writes comes back the same, here and in the gguf package, or does not appear at all."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf import GGUFFile
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.quantize import QUANTIZERS

RNG = np.random.default_rng(5)
WEIGHTS = RNG.choice(np.float32([-0.5, 0, 0.5]), (3, 256))

VALUES = {
    "flag": (True, "bool"),
    "small": (7, "u32"),
    "negative": (-7, "i32"),
    "large": (2**40, "u64"),
    "large negative": (-(2**40), "i64"),
    "eps": (0.25, "f32"),
    "text": ("ハロー", "string"),
    "ids": ([1, -2, 3], "i32"),
    "large ids": ([1, -(2**40)], "i64"),
    "rates": ([0.5, 1], "f32"),
    "flags": ([True, False], "bool"),
    "words": (["a", b"\xff", ""], "string"),
    "bytes": (np.arange(3, dtype=np.uint8), "u8"),
    "doubles": (np.array([0.1, 0.2]), "f64"),
    "numpy number": (np.float32(0.5), "f32"),
}


def plain(value):
    if isinstance(value, (list, np.ndarray)):
        return [v.encode() if isinstance(v, str) else v for v in (value if isinstance(value, list) else value.tolist())]
    return value


def test_metadata_comes_back_with_its_type(tmp_path):
    path = tmp_path / "out.gguf"
    with GGUFWriter(path, "llama") as writer:
        for key, (value, _) in VALUES.items():
            writer.add_metadata(key, value)
    model = GGUFFile(path)
    assert model.architecture == "llama"
    for key, (value, type_name) in VALUES.items():
        assert plain(model.metadata[key]) == plain(value), key
        assert model.metadata_types[key] == type_name, key


def test_given_type_overrides_the_inferred_one(tmp_path):
    path = tmp_path / "out.gguf"
    with GGUFWriter(path, "llama") as writer:
        writer.add_metadata("a", 1, type="u8")
        writer.add_metadata("b", 1, type="f64")
        writer.add_metadata("c", [], type="string")
        writer.add_metadata("d", [], type="i32")
    model = GGUFFile(path)
    assert model.metadata_types == {"general.architecture": "string", "a": "u8", "b": "f64", "c": "string", "d": "i32"}
    assert model.metadata["c"] == []
    assert model.metadata["d"].tolist() == []


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (256, "u8"),
        (-1, "u32"),
        (1.5, "i32"),
        ("x", "f32"),
        (1, "string"),
        (1, "array"),
        (1, "u128"),
        ([], None),
        ({}, None),
    ],
)
def test_value_that_does_not_fit_its_type_is_refused(tmp_path, value, type_name):
    writer = GGUFWriter(tmp_path / "out.gguf", "llama")
    with pytest.raises(ValueError, match="'k'"):
        writer.add_metadata("k", value, type=type_name)


@pytest.mark.parametrize("alignment", [1, 32, 4096])
def test_tensors_of_every_type_come_back(tmp_path, alignment):
    path = tmp_path / "out.gguf"
    with GGUFWriter(path, "bitnet", alignment) as writer:
        for kind in QUANTIZERS:
            writer.add_tensor(kind, kind, WEIGHTS)
    model = open_model(path)
    for kind in QUANTIZERS:
        info = model.tensors[kind]
        assert (info.type, info.shape, info.offset % alignment) == (kind, WEIGHTS.shape, 0)
        values = dequantize(kind, model.read(kind), info.shape)
        # Powers of two fit all but those with steps, Q4_0 and Q5_0, whose one end is 7/8 or 15/16 of the other, and
        # those whose values between -1/2 and 1/2 leave 0 out.
        near = {
            "Q8_0": (1e-3, 0), "Q6_K": (8e-3, 0), "Q4_0": (1 / 8, 0), "Q5_0": (1 / 16, 0), "Q4_1": (1e-3, 1 / 29),
            "Q5_1": (1e-3, 1 / 61), "Q4_K": (0, 1 / 29), "Q5_K": (0, 1 / 61), "IQ4_NL": (0, 1 / 20),
        }.get(kind, (0, 0))  # fmt: skip
        np.testing.assert_allclose(values, WEIGHTS, *near)


def test_streamed_and_held_tensors_give_the_same_file(tmp_path):
    streamed, held = tmp_path / "streamed.gguf", tmp_path / "held.gguf"
    with GGUFWriter(streamed, "llama") as writer:
        writer.add_tensor_info("a", "F32", (3, 256))
        writer.add_tensor_info("b", "F32", (256,))
        writer.write_header()
        writer.write_tensor("a", WEIGHTS)
        writer.write_tensor("b", WEIGHTS[1].tobytes())
    with GGUFWriter(held, "llama") as writer:
        writer.add_tensor("a", "F32", WEIGHTS)
        writer.add_tensor("b", "F32", WEIGHTS[1].tobytes(), shape=(256,))
    assert streamed.read_bytes() == held.read_bytes()


def test_the_gguf_package_reads_what_we_write(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "out.gguf"
    with GGUFWriter(path, "llama", 64) as writer:
        for key, (value, _) in VALUES.items():
            writer.add_metadata(key, value)
        for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "TQ1_0", "TQ2_0"):
            writer.add_tensor(kind, kind, WEIGHTS)
    theirs, ours = gguf.GGUFReader(path), GGUFFile(path)
    assert theirs.alignment == 64
    for key in VALUES.keys() - {"words"}:  # one of them is not text, which the package cannot show
        assert theirs.fields[key].contents() == plain(ours.metadata[key])
    assert [bytes(theirs.fields["words"].parts[i]) for i in theirs.fields["words"].data] == [b"a", b"\xff", b""]
    for tensor in theirs.tensors:
        assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), ours.read(tensor.name))
        assert tuple(tensor.shape[::-1]) == ours.tensors[tensor.name].shape


def test_existing_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with GGUFWriter(path, "llama") as writer:
            writer.add_tensor_info("a", "F32", (4,))
            writer.write_header()
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with GGUFWriter(path, "llama"):
        pass
    assert open_model(path).architecture == "llama"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_tensor_leaves_nothing_behind(tmp_path):
    writer = GGUFWriter(tmp_path / "out.gguf", "llama")
    writer.add_tensor_info("a", "F32", (4,))
    writer.add_tensor_info("b", "F32", (4,))
    writer.write_header()
    writer.write_tensor("a", bytes(16))
    with pytest.raises(FormatError, match="'b'"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_wrong_size_order_and_type_are_refused(tmp_path):
    with GGUFWriter(tmp_path / "out.gguf", "llama") as writer:
        with pytest.raises(FormatError, match="multiple"):
            writer.add_tensor_info("t", "TQ2_0", (3, 255))
        with pytest.raises(FormatError, match="bytes"):
            writer.add_tensor("t", "F32", bytes(12), shape=(4,))
        with pytest.raises(UnsupportedModelError, match="TL1"):
            writer.add_tensor_info("t", "TL1", (256,))
        with pytest.raises(UnsupportedModelError, match="unknown"):
            writer.add_tensor_info("t", "Q9", (256,))
        with pytest.raises(FormatError, match="Q8_L2C"):
            writer.add_tensor_info("t", "Q8_L2C", (256,))
        with pytest.raises(ValueError, match="write_header"):
            writer.write_tensor("t", b"")
        writer.add_tensor_info("a", "F32", (4,))
        writer.add_tensor_info("b", "F32", (4,))
        with pytest.raises(ValueError, match="there already"):
            writer.add_tensor_info("b", "F32", (4,))
        with pytest.raises(ValueError, match="there already"):
            writer.add_metadata("general.architecture", "other")
        writer.write_header()
        with pytest.raises(ValueError, match="not due"):
            writer.write_tensor("b", bytes(16))
        with pytest.raises(FormatError, match="12 bytes"):
            writer.write_tensor("a", bytes(12))
        with pytest.raises(ValueError, match="already"):
            writer.add_metadata("late", 1)
        writer.write_tensor("a", bytes(16))
        writer.write_tensor("b", bytes(16))


def test_file_gets_ordinary_permissions(tmp_path):
    plain_file, path = tmp_path / "plain", tmp_path / "out.gguf"
    plain_file.write_bytes(b"")
    with GGUFWriter(path, "llama"):
        pass
    assert path.stat().st_mode == plain_file.stat().st_mode
