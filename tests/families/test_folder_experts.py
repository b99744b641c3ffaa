"""Experts in folders: one tensor for each or for all, and what does not fit together is refused in one line."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.reference import forward

EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
BLOCK = "model.layers.1.mlp.experts."


def write(folder, name, change=None, **config):
    """A case of `checkpoints`, with tensors and keys changed."""
    checkpoints.write(name, folder)
    tensors = checkpoints.tensors_of(name)
    if change is not None:
        change(tensors)
        (folder / "model.safetensors").write_bytes(checkpoints.safetensors_bytes(tensors))
    (folder / "config.json").write_text(json.dumps({**checkpoints.config_of(name), **config}))
    return folder


def fuse(tensors):
    """All experts of a layer in two tensors, gate rows before up rows."""
    for i in range(checkpoints.LAYERS):
        block = f"model.layers.{i}.mlp.experts."
        parts = {
            name: [tensors.pop(f"{block}{e}.{name}_proj.weight") for e in range(8)] for name in ("gate", "up", "down")
        }
        dtype, (size, hidden), _ = parts["gate"][0]
        both = b"".join(gate[2] + up[2] for gate, up in zip(parts["gate"], parts["up"]))
        tensors[block + "gate_up_proj"] = (dtype, (8, 2 * size, hidden), both)
        tensors[block + "down_proj"] = (dtype, (8, hidden, size), b"".join(down[2] for down in parts["down"]))


def test_experts_in_one_tensor_are_those_in_many(tmp_path):
    many, one = write(tmp_path / "many", "qwen3moe"), write(tmp_path / "one", "qwen3moe", fuse)
    with open_model(one) as file:
        assert plan_of(file).layers[0].feed_forward.fused
    a, b = (lowbit.load(path, **EXACT).logits(checkpoints.PROMPT) for path in (many, one))
    assert np.array_equal(a, b)


def without(name):
    return lambda tensors: tensors.pop(BLOCK + name)


def other(name, dtype, shape, size):
    return lambda tensors: tensors.__setitem__(BLOCK + name, (dtype, shape, bytes(size)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without("3.up_proj.weight"), FormatError), (without("7.up_proj.weight"), FormatError),
        (without("0.down_proj.weight"), FormatError),
        (other("3.up_proj.weight", "F32", (64, 128), 4 * 64 * 128), FormatError),
        (other("3.up_proj.weight", "BF16", (128, 64), 2 * 64 * 128), FormatError),
        (other("3.up_proj.weight", "BF16", (64 * 128,), 2 * 64 * 128), FormatError),
        (other("8.up_proj.weight", "BF16", (64, 128), 2 * 64 * 128), FormatError),
        (other("99999.up_proj.weight", "BF16", (64, 128), 2 * 64 * 128), FormatError),
        (other("03.up_proj.weight", "BF16", (64, 128), 2 * 64 * 128), UnsupportedModelError),
        (other("3.up_proj.bias", "BF16", (64,), 128), UnsupportedModelError),
        (other("down_proj", "BF16", (8, 128, 64), 2 * 8 * 64 * 128), FormatError),
        (other("3.up_proj.weight", "I8", (64, 128), 64 * 128), UnsupportedModelError),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_together_are_refused(tmp_path, change, error):
    path = write(tmp_path / "model", "qwen3moe", change)
    with pytest.raises(error) as caught:
        lowbit.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"num_experts": 7}, FormatError), ({"num_experts": 0}, FormatError), ({"num_experts": "8"}, FormatError),
        ({"num_experts": None}, FormatError), ({"num_experts_per_tok": 9}, FormatError),
        ({"num_experts_per_tok": None}, FormatError), ({"moe_intermediate_size": 32}, FormatError),
        ({"moe_intermediate_size": -1}, FormatError), ({"norm_topk_prob": 1}, FormatError),
        ({"decoder_sparse_step": 2}, UnsupportedModelError), ({"mlp_only_layers": [0]}, UnsupportedModelError),
        ({"clip_qkv": 8.0}, UnsupportedModelError), ({"qkv_bias": False}, UnsupportedModelError),
        ({"shared_expert_intermediate_size": 64}, FormatError),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(tmp_path, config, error):
    with pytest.raises(error):
        lowbit.load(write(tmp_path / "model", "qwen3moe", **config))


@pytest.mark.parametrize("name", ["qwen3moe", "qwen2moe", "olmoe", "maple"])
def test_the_reference_reads_the_same_folder(tmp_path, name):
    """Of Maple transformers has nothing: its reference is held to the others' by what they share."""
    path = write(tmp_path / name, name)
    with open_model(path) as file:
        plan = plan_of(file)
        roles = {
            key.removesuffix(".weight").replace(".bias", "_bias"): dequantize(info.type, file.read(key), info.shape)
            for key, info in file.tensors.items()
        }
    want = forward(plan, roles, checkpoints.LOGITS_IDS)
    got = lowbit.load(path, **EXACT).logits(checkpoints.LOGITS_IDS)
    assert np.abs(got - want).max() <= 1e-4 * (want.max() - want.min())


def test_a_folder_of_maple_says_where_its_experts_are_clamped(tmp_path):
    # llama.cpp refuses a converted file that does not.
    with open_model(write(tmp_path / "maple", "maple")) as file:
        assert file.metadata["maple.swiglu_clamp_exp"] == plan_of(file).layers[0].feed_forward.clamp == 7.0
