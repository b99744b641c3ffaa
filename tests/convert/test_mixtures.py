"""Mixtures: what llama.cpp's users ask for by name has the types, and the bytes, that they know."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit.convert import convert
from lowbit.convert.mixtures import MIXTURES, fitting
from lowbit.convert.requantize import quantize_model
from lowbit.errors import LowbitError
from lowbit.formats import open_model
from lowbit.formats.base import TensorInfo
from lowbit.formats.blocks import dequantize
from lowbit.quantize import quantize

IDS = [1, 70, 300, 41, 275]
TYPES = {
    "q4_1": {"Q4_1": 15, "Q6_K": 1},
    "q4_k_m": {"Q4_K": 13, "Q6_K": 3},
    "q5_k_m": {"Q5_K": 13, "Q6_K": 3},
    "q6_k": {"Q6_K": 16},
    "iq4_nl": {"IQ4_NL": 15, "Q6_K": 1},
}
"""Of `llama`, whose embedding is not its head. Values and down projection of its second layer have more bits."""


def types(path):
    with open_model(path) as file:
        return {name: info.type for name, info in file.tensors.items()}


@pytest.mark.parametrize("name", MIXTURES)
def test_both_commands_write_the_same_mixture_and_it_is_that_of_llama_cpp(llama, tmp_path, name):
    path, out = llama(ternary=False), tmp_path / "out.gguf"
    done = convert(path, out, name)
    assert done.types == {"F32": 5, **TYPES[name]}
    assert done.instead == {}
    quantize_model(path, tmp_path / "again.gguf", method=name)
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()
    with open_model(path) as before, open_model(out) as after:
        assert after.metadata["general.file_type"] == MIXTURES[name].number
        for info in after.tensors.values():
            weights = dequantize(before.tensors[info.name].type, before.read(info.name), info.shape)
            assert after.read(info.name).tobytes() == quantize(info.type, weights).tobytes()


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_predicts_like_its_source(llama, tmp_path, name):
    path, out = llama(ternary=False), tmp_path / "out.gguf"
    convert(path, out, name)
    before, after = (lowbit.load(p, threads=1).logits(IDS) for p in (path, out))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > (0.99 if name in ("q5_k_m", "q6_k") else 0.97)


def test_rows_without_whole_blocks_of_256_take_the_types_with_blocks_of_32():
    def of(cols, kind):
        return fitting(TensorInfo("t", "F32", (4, cols), 0, 0), kind)

    assert [of(576, kind) for kind in ("Q4_K", "Q5_K", "Q6_K", "Q4_1", "IQ4_NL")] == [
        "Q5_0", "Q5_1", "Q8_0", "Q4_1", "IQ4_NL",
    ]  # fmt: skip
    assert of(512, "Q4_K") == "Q4_K"
    assert {of(172, kind) for kind in ("Q4_K", "Q6_K", "IQ4_NL")} == {"F16"}


def test_head_and_rules_are_exceptions_of_a_mixture(llama, tmp_path):
    rules = [("blk.0.*", "q6_k"), ("*.ffn_down.*", "iq4_nl")]
    quantize_model(llama(ternary=False), tmp_path / "out.gguf", method="q4_k_m", head="int8", rules=rules)
    found = types(tmp_path / "out.gguf")
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q8_0", "Q8_0")
    assert (found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"]) == ("Q6_K", "Q4_K")
    assert (found["blk.0.ffn_down.weight"], found["blk.1.attn_v.weight"]) == ("IQ4_NL", "Q6_K")


def test_a_budget_is_refused_before_anything_is_measured(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.convert.requantize.Calibration", lambda *args: pytest.fail("the text was read"))
    with pytest.raises(LowbitError, match="too few: the smallest file"):
        quantize_model(llama(ternary=False), tmp_path / "out.gguf", bits=1.5, text=tmp_path / "none.txt")
