"""A converted file holds the same model: exactly where the type can, and nothing is written where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit.convert import HEAD_TYPES, TARGET_TYPES, convert
from lowbit.convert.mixtures import MIXTURES
from lowbit.errors import FormatError, LowbitError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter

IDS = [1, 70, 300, 41, 275]
ONE_TYPE = [target for target in TARGET_TYPES if target not in MIXTURES]


def values_of(path, name):
    with open_model(path) as file:
        info = file.tensors[name]
        return dequantize(info.type, file.read(name), info.shape).copy()


def linears(path):
    with open_model(path) as file:
        return [name for name in file.tensors if ".attn_" in name or ".ffn_" in name if "norm" not in name]


@pytest.mark.parametrize("source", ["F32", "F16", "BF16", "TQ1_0", "TQ2_0", "I2_S", "Q8_0"])
@pytest.mark.parametrize("target", ["tq2_0", "tq1_0", "i2_s", "f16"])
def test_ternary_weights_are_the_same_in_every_type_that_holds_them(llama, tmp_path, source, target):
    path, out = llama(kind=source), tmp_path / "out.gguf"
    convert(path, out, target)
    for name in linears(path):
        before, after = values_of(path, name), values_of(out, name)
        # A scale may be rounded to float16 on its way; Q8_0 holds none exactly.
        np.testing.assert_allclose(after, before, rtol=2**-10, err_msg=name)


@pytest.mark.parametrize("target", ONE_TYPE)
@pytest.mark.parametrize("head", HEAD_TYPES)
def test_what_is_written_loads_and_predicts_like_the_source(llama, tmp_path, target, head):
    path, out = llama(), tmp_path / "out.gguf"
    done = convert(path, out, target, head)
    assert done.nbytes == out.stat().st_size
    assert done.types.get(target.upper(), 0) >= 14
    model = lowbit.load(out, threads=1)
    before, after = lowbit.load(path, threads=1).logits(IDS), model.logits(IDS)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > (0.97 if target == "q4_0" else 0.998)
    assert {info.type for info in open_model(out).tensors.values()} == {"F32", target.upper(), head.upper()}


def test_converting_to_and_from_one_scale_types_gives_the_same_bytes(llama, tmp_path):
    path = llama()
    convert(path, tmp_path / "a.gguf", "tq2_0")
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "i2_s")
    convert(tmp_path / "b.gguf", tmp_path / "c.gguf", "tq2_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


@pytest.mark.parametrize("target", ["tq2_0", "tq1_0", "i2_s"])
def test_weights_that_are_not_ternary_are_refused_with_a_hint(llama, tmp_path, target):
    path, out = llama(ternary=False), tmp_path / "out.gguf"
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: is not ternary.*--type q8_0"):
        convert(path, out, target)
    assert list(tmp_path.iterdir()) == [path]


def test_several_scales_of_a_tensor_stay_in_tq2_0_and_are_refused_by_i2_s(llama, tmp_path):
    path, out = llama(scales=(0.0625, 0.125, 0.5)), tmp_path / "out.gguf"
    convert(path, out, "tq2_0")
    for name in linears(path):
        assert np.array_equal(values_of(out, name), values_of(path, name))
    with pytest.raises(FormatError, match=r"several scales.*tq2_0"):
        convert(path, tmp_path / "no.gguf", "i2_s")


@pytest.mark.parametrize("target", ONE_TYPE)
def test_masters_of_bitnet_are_quantised_by_absmean_whatever_the_type(llama, tmp_path, target):
    path, out = llama(ternary=False, architecture="bitnet"), tmp_path / "out.gguf"
    convert(path, out, target)
    for name in linears(path):
        codes, scale = lowbit.quantize.absmean(values_of(path, name))
        after = values_of(out, name)
        assert np.array_equal(np.sign(after) + 1, codes)
        bound = 0.126 if target == "q4_0" else 2**-8
        assert np.abs(np.abs(after[after != 0]) / scale - 1).max() <= bound


def test_metadata_comes_along_with_its_types(llama, tmp_path):
    path, out = llama(), tmp_path / "out.gguf"
    convert(path, out, "tq2_0")
    with open_model(path) as before, open_model(out) as after:
        for key, value in before.metadata.items():
            assert after.metadata_types[key] == before.metadata_types[key], key
            assert np.array_equal(after.metadata[key], value), key
        assert after.metadata["general.file_type"] == 37


def test_rows_that_hold_no_whole_blocks_take_a_type_that_holds_them(tmp_path, test_data):
    done = convert(test_data / "models" / "stories260K.bin", tmp_path / "out.gguf", "q8_0", "q6_k")
    # 172 channels are no multiple of 32, and 64 no multiple of 256.
    assert set(done.instead.values()) == {"F16", "Q8_0"}
    assert done.instead["blk.0.ffn_down.weight"] == "F16"
    assert done.instead["token_embd.weight"] == "Q8_0"


def test_a_llama2c_checkpoint_keeps_its_words_and_its_logits(tmp_path, test_data):
    source, out = test_data / "models" / "stories260K.bin", tmp_path / "out.gguf"
    convert(source, out, "f16", "f16")
    before, after = lowbit.load(source, threads=1), lowbit.load(out, threads=1)
    text = "Once upon a time, there was a  small dog\n\u00e9\U0001f600"
    ids = before.tokenizer.encode(text)
    assert after.tokenizer.encode(text) == ids
    assert after.tokenizer.decode(ids) == before.tokenizer.decode(ids)
    assert np.abs(before.logits(ids) - after.logits(ids)).max() < 0.05


@pytest.mark.parametrize(("target", "reference"), [("tq2_0", "TQ2_0"), ("i2_s", "I2_S")])
@pytest.mark.parametrize("source", ["F32", "I2_S"])
def test_a_real_model_gets_the_bytes_that_other_tools_gave_it(tmp_path, test_data, target, reference, source):
    folder, out = test_data / "models", tmp_path / "out.gguf"
    convert(folder / f"tinystories-3m.{source}.gguf", out, target, "f16")
    with open_model(out) as ours, open_model(folder / f"tinystories-3m.{reference}.gguf") as theirs:
        for name in linears(out):
            # Behind its scale I2_S has 28 bytes that mean nothing.
            end = -28 if reference == "I2_S" else None
            assert ours.tensors[name].type == reference
            assert np.array_equal(ours.read(name)[:end], theirs.read(name)[:end]), name


def test_groups_of_q2_0_load_and_convert_where_their_scales_agree(tmp_path, llama):
    source = open_model(llama(kind="TQ2_0"))
    for kind, group in (("Q2_0", 64), ("PQ2_0", 128)):
        path, out = tmp_path / f"{kind}.gguf", tmp_path / f"{kind}-out.gguf"
        with GGUFWriter(path, "llama") as writer:
            for key, value in source.metadata.items():
                if key != "general.architecture":
                    writer.add_metadata(key, value, source.metadata_types[key])
            for info in source.tensors.values():
                raw = source.read(info.name)
                if info.type != "TQ2_0":
                    writer.add_tensor(info.name, info.type, raw, info.shape)
                    continue
                codes = np.sign(dequantize("TQ2_0", raw, info.shape)).astype(np.uint8).reshape(-1, group // 4, 4) + 1
                packed = np.bitwise_or.reduce(codes << np.uint8([0, 2, 4, 6]), axis=2)
                scales = np.full((len(packed), 1), 0.0625, "<f2").view(np.uint8)
                writer.add_tensor(info.name, kind, np.concatenate([scales, packed], axis=1), info.shape)
        old = tmp_path / "old.gguf"  # PrismML's first files with groups of 128 number them 42
        old.write_bytes(path.read_bytes().replace(b"\x8e\0\0\0", b"\x2a\0\0\0"))
        expected = lowbit.load(source.path, threads=1).logits(IDS)
        for file in (path, old):
            assert {info.type for info in open_model(file).tensors.values()} == {"F32", "F16", kind}
            got = lowbit.load(file, threads=1).logits(IDS)
            # Activations are cut into groups as the weights are, so their rounding differs.
            assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999
        convert(old, out, "tq2_0", "f16")
        for name in linears(out):
            assert np.array_equal(open_model(out).read(name), source.read(name))


def test_bad_requests_say_what_is_wrong_and_write_nothing(llama, tmp_path):
    path = llama()
    with pytest.raises(ValueError, match="type must be one of"):
        convert(path, tmp_path / "out.gguf", "q3_0")
    with pytest.raises(ValueError, match="head must be one of"):
        convert(path, tmp_path / "out.gguf", "q8_0", "q4_0")
    with pytest.raises(LowbitError, match="another name"):
        convert(path, path, "q8_0")
    with pytest.raises(FormatError, match="no such file"):
        convert(tmp_path / "none.gguf", tmp_path / "out.gguf", "q8_0")
    with pytest.raises(LowbitError, match="cannot be written"):
        convert(path, tmp_path / "no" / "folder.gguf", "q8_0")
    (tmp_path / "alien.gguf").write_bytes(path.read_bytes().replace(b"llama", b"aliens"[:5]))
    with pytest.raises(UnsupportedModelError, match="architecture"):
        convert(tmp_path / "alien.gguf", tmp_path / "out.gguf", "q8_0")
    assert not (tmp_path / "out.gguf").exists()
