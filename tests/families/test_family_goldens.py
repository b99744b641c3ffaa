"""Every family gives the logits and the text that transformers gives for the same folder, in float32."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit.convert import convert

INTEGERS = ("gpt_oss_mxfp4",)
"""Cases whose weights have few bits in the folder: lowbit rounds what they are multiplied with, and transformers does
not. As GGUF of float16, which holds them exactly, they are compared like the others."""
NAMES = [name for name in checkpoints.CASES if name not in INTEGERS]
EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: checkpoints.write(name, root / name) for name in checkpoints.CASES}


def exact(path, name):
    return lowbit.load(path, **EXACT, context=checkpoints.CONTEXTS.get(name))


def golden(name):
    return np.load(Path(__file__).parent / "goldens" / f"{name}.npz")


def worst(model, expected):
    """Largest difference of the logits, in parts of their range."""
    logits = model.logits(checkpoints.LOGITS_IDS)[::2]
    return np.abs(logits - expected).max() / (expected.max() - expected.min())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(folders, name):
    assert worst(exact(folders[name], name), golden(name)["logits"]) <= 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_that_of_transformers(folders, name):
    out = exact(folders[name], name).generate(checkpoints.PROMPT, max_tokens=checkpoints.NEW_TOKENS, temperature=0)
    assert out.tokens == golden(name)["ids"].tolist()


@pytest.mark.parametrize("name", ["falcon3", "qwen3", "trilm"])
def test_several_files_are_one_model(folders, name, tmp_path):
    sharded = checkpoints.write(name, tmp_path / name, shards=3)
    one, several = (lowbit.load(path).logits(checkpoints.PROMPT) for path in (folders[name], sharded))
    assert (one == several).all()


@pytest.mark.parametrize("name", ["falcon3", "bitnet_2b4t"])
def test_the_wrong_direction_of_the_scale_is_noticed(name, folders, tmp_path):
    """One direction is warned of, and the other gives other logits: the test of the right one is no accident."""
    folder = checkpoints.write(name, tmp_path / name)
    config = (folder / "config.json").read_text()
    linear_class = "autobitlinear" if name == "falcon3" else "bitlinear"
    quoted = '"linear_class": "autobitlinear"'
    changed = config.replace(quoted, '"linear_class": "bitlinear"')
    if name == "falcon3":
        changed = config.replace('"quant_method": "bitnet"', f'"quant_method": "bitnet", {quoted}')
    assert changed != config
    (folder / "config.json").write_text(changed)
    with pytest.warns(UserWarning, match="linear_class"):
        model = lowbit.load(folder, **EXACT)
    assert linear_class in changed
    assert any("linear_class" in warning for warning in model.info()["warnings"])
    assert worst(model, golden(name)["logits"]) > 1e-2


def test_right_scales_are_not_warned_of(folders, recwarn):
    for name in ("falcon3", "falcon_e", "bitnet_2b4t"):
        assert not any("linear_class" in w for w in lowbit.load(folders[name]).info()["warnings"])
    assert not recwarn.list


def test_masters_and_packed_weights_become_ternary(folders):
    for name in ("falcon3", "falcon_e", "bitnet_2b4t", "bitnet_2b4t_masters", "bitnet_1bitllm"):
        model = lowbit.load(folders[name])
        linear = 2 * checkpoints.LAYERS * checkpoints.HIDDEN * checkpoints.WIDE
        assert model.config.activation_quant == "token"
        assert model.info()["weight_bytes"] < 4 * linear  # the linear layers alone would have more as floats


def test_several_scales_per_tensor_are_packed_without_loss(folders):
    """TriLM: packed with a scale per row and 256 channels; what remains is the rounding of activations to 8 bits."""
    packed, exact = lowbit.load(folders["trilm"]), lowbit.load(folders["trilm"], weights="file")
    assert packed.info()["weight_bytes"] < exact.info()["weight_bytes"] / 2
    assert worst(packed, golden("trilm")["logits"]) <= 2e-2


def test_small_float_weights_are_kept_exactly(folders):
    for name in ("llama3", "qwen2"):
        default, exact = lowbit.load(folders[name], kv_type="f32"), lowbit.load(folders[name], **EXACT)
        assert (default.logits(checkpoints.PROMPT) == exact.logits(checkpoints.PROMPT)).all()


def test_a_family_keeps_the_pairing_of_its_container(folders):
    """Folders rotate halves and GGUF of the same family adjacent channels: neither is permuted."""
    from lowbit.families import find_family

    assert find_family("llama").rope_pairing == "adjacent"
    assert all(lowbit.load(folders[name]).config.rope_pairing == "halves" for name in ("llama1", "falcon3", "trilm"))


@pytest.mark.parametrize("name", checkpoints.CASES)
def test_a_folder_converted_to_gguf_gives_the_same_logits(folders, name, tmp_path):
    """In GGUF the rows of a Llama's queries and keys have another order: left as they are, the logits differ widely."""
    convert(folders[name], tmp_path / "model.gguf", "f16", head="f16")
    assert worst(exact(tmp_path / "model.gguf", name), golden(name)["logits"]) <= 2e-2  # float16 weights


@pytest.mark.parametrize("name", INTEGERS)
def test_weights_of_few_bits_are_those_of_transformers(folders, name, tmp_path):
    convert(folders[name], tmp_path / "model.gguf", "f16", head="f16")
    model = lowbit.load(tmp_path / "model.gguf", **EXACT)
    assert worst(model, golden(name)["logits"]) <= 1e-3
    out = model.generate(checkpoints.PROMPT, max_tokens=checkpoints.NEW_TOKENS, temperature=0)
    assert out.tokens == golden(name)["ids"].tolist()
    # the median, because where a rounding makes a router choose another expert the error is as large as the logits
    logits, expected = lowbit.load(folders[name]).logits(checkpoints.LOGITS_IDS)[::2], golden(name)["logits"]
    assert np.median(np.abs(logits - expected).max(1)) <= 2e-2 * (expected.max() - expected.min())
