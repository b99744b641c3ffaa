"""gpt-oss's experts in folders, as floats and as MXFP4; and Qwen3-Next's projections in one tensor or in several."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit.convert import convert
from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter

EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
BLOCK = "model.layers.1.mlp.experts."
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def write(folder, name, change=None):
    checkpoints.write(name, folder)
    if change is not None:
        tensors = checkpoints.tensors_of(name)
        change(tensors)
        (folder / "model.safetensors").write_bytes(checkpoints.safetensors_bytes(tensors))
    return folder


def values_of(file, name):
    info = file.tensors[name]
    return dequantize(info.type, file.read(name), info.shape)


def test_mxfp4_of_a_folder_keeps_every_value(tmp_path):
    """Byte i of a block holds elements 2 i and 2 i + 1; gates are the even rows."""
    stored = checkpoints.tensors_of("gpt_oss_mxfp4")

    def elements(key):
        (_, shape, blocks), (_, _, scales) = stored[BLOCK + key + "_blocks"], stored[BLOCK + key + "_scales"]
        blocks = np.frombuffer(blocks, np.uint8).reshape(shape)
        codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*shape[:3], 32)
        scales = 2.0 ** (np.frombuffer(scales, np.uint8).astype(int) - 127).reshape(*shape[:3], 1)
        return (FP4[codes] * scales).reshape(*shape[:2], -1)

    both = elements("gate_up_proj")
    with open_model(write(tmp_path / "model", "gpt_oss_mxfp4")) as file:
        assert file.tensors["blk.1.ffn_gate_exps.weight"].type == "MXFP4"
        assert np.array_equal(values_of(file, "blk.1.ffn_gate_exps.weight"), both[:, 0::2])
        assert np.array_equal(values_of(file, "blk.1.ffn_up_exps.weight"), both[:, 1::2])
        assert np.array_equal(values_of(file, "blk.1.ffn_down_exps.weight"), elements("down_proj"))
        file.release("blk.1.ffn_down_exps.weight")
        assert np.array_equal(values_of(file, "blk.1.ffn_down_exps.weight"), elements("down_proj"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_columns_of_floats_become_rows(tmp_path, dtype):
    rng = np.random.default_rng(2)
    both, bias = rng.integers(-8, 9, (8, 128, 128)), rng.integers(-8, 9, (8, 128))

    def change(tensors):
        tensors[BLOCK + "gate_up_proj"] = (dtype, both.shape, checkpoints.stored_floats(both, dtype))
        tensors[BLOCK + "gate_up_proj_bias"] = (dtype, bias.shape, checkpoints.stored_floats(bias, dtype))

    with open_model(write(tmp_path / "model", "gpt_oss", change)) as file:
        for start, part in enumerate(("gate", "up")):
            assert file.tensors[f"blk.1.ffn_{part}_exps.weight"].type == dtype
            weight, added = (values_of(file, f"blk.1.ffn_{part}_exps.{what}") for what in ("weight", "bias"))
            assert np.array_equal(weight, both[:, :, start::2].swapaxes(1, 2))
            assert np.array_equal(added, bias[:, start::2])


def without(name):
    return lambda tensors: tensors.pop(BLOCK + name)


def other(name, dtype, *shape):
    size = {"U8": 1, "I8": 1, "BF16": 2, "F32": 4}[dtype] * int(np.prod(shape))
    return lambda tensors: tensors.__setitem__(BLOCK + name, (dtype, shape, bytes(size)))


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("gpt_oss", without("gate_up_proj"), FormatError), ("gpt_oss", without("gate_up_proj_bias"), FormatError),
        ("gpt_oss", without("down_proj_bias"), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 8, 128, 127), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 8, 127, 128), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 7, 128, 128), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 8, 128 * 128), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 8, 128, 0), FormatError),
        ("gpt_oss", other("gate_up_proj", "BF16", 0, 128, 128), FormatError),
        ("gpt_oss", other("gate_up_proj", "I8", 8, 128, 128), UnsupportedModelError),
        ("gpt_oss", other("gate_up_proj_bias", "BF16", 8, 127), FormatError),
        ("gpt_oss", other("gate_up_proj_bias", "BF16", 8 * 128), FormatError),
        ("gpt_oss", other("down_proj", "BF16", 8, 128, 64), FormatError),
        ("gpt_oss", other("gate_up_proj_scales", "U8", 8, 128, 4), FormatError),
        ("gpt_oss", other("0.up_proj.weight", "BF16", 64, 128), UnsupportedModelError),
        ("gpt_oss_mxfp4", without("gate_up_proj_scales"), FormatError),
        ("gpt_oss_mxfp4", without("gate_up_proj_blocks"), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj_scales", "U8", 8, 128, 3), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj_scales", "I8", 8, 128, 4), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj_blocks", "U8", 8, 128, 4, 15), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj_blocks", "U8", 8, 128, 64), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj_blocks", "BF16", 8, 128, 4, 16), FormatError),
        ("gpt_oss_mxfp4", other("gate_up_proj", "BF16", 8, 128, 128), FormatError),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_together_are_refused(tmp_path, name, change, error):
    path = write(tmp_path / "model", name, change)
    with pytest.raises(error) as caught:
        lowbit.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_scales_that_are_no_numbers_are_refused(tmp_path):
    def change(tensors):
        kind, shape, _ = tensors[BLOCK + "down_proj_scales"]
        tensors[BLOCK + "down_proj_scales"] = (kind, shape, b"\xff" * int(np.prod(shape)))

    with pytest.raises(FormatError, match="ffn_down_exps"):
        lowbit.load(write(tmp_path / "model", "gpt_oss_mxfp4", change))


def test_projections_in_one_tensor_give_the_bits_of_several(tmp_path):
    """Older files of Qwen3-Next, and folders, have a key head's queries, keys, values and gates side by side."""
    keys, shared, size = 2, 3, 16
    convert(write(tmp_path / "model", "qwen3next"), tmp_path / "one.gguf", "f16", head="f16")
    with open_model(tmp_path / "one.gguf") as file, GGUFWriter(tmp_path / "many.gguf", file.architecture) as out:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                out.add_metadata(key, value, file.metadata_types[key])
        for name, info in file.tensors.items():
            raw = file.read(name)
            if not name.endswith("ssm_in.weight"):
                out.add_tensor(name, info.type, raw, info.shape)
                continue
            rows = raw.reshape(keys, 2 * (1 + shared) * size, -1)
            q, k, v, z = np.split(rows, [size, 2 * size, (2 + shared) * size], axis=1)
            qkv = np.concatenate([part.reshape(-1, rows.shape[2]) for part in (q, k, v)])
            for role, stored in (("attn_qkv", qkv), ("attn_gate", z.reshape(-1, rows.shape[2]))):
                out.add_tensor(
                    name.replace("ssm_in", role), info.type, np.ascontiguousarray(stored).reshape(-1),
                    (len(stored), info.shape[1]),
                )  # fmt: skip
    one, many = (lowbit.load(tmp_path / f"{name}.gguf", **EXACT) for name in ("one", "many"))
    assert one.config.layers[0].mixer.fused
    assert not many.config.layers[0].mixer.fused
    assert np.array_equal(one.logits(checkpoints.LOGITS_IDS), many.logits(checkpoints.LOGITS_IDS))
