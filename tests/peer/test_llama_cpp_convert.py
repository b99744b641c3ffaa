"""Files that `lowbit.convert` writes, read by llama.cpp; see test_llama_cpp.py for what this needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.convert import convert

_spec = importlib.util.spec_from_file_location("llama_cpp_peer", Path(__file__).with_name("test_llama_cpp.py"))
llama_cpp_peer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(llama_cpp_peer)
peer = llama_cpp_peer.peer

PROMPT = [1, 300, 400, 270, 299, 311]


@pytest.mark.parametrize("target", ["f16", "q8_0"])
@pytest.mark.parametrize("head", ["f16", "q8_0"])
def test_llama_cpp_decodes_a_converted_file_alike(tmp_path, peer, target, head):
    llama_cpp_peer.write_model(tmp_path / "source.gguf", "F32")
    convert(tmp_path / "source.gguf", tmp_path / "out.gguf", target, head)
    told = llama_cpp_peer.ask_llama_cpp(peer, tmp_path / "out.gguf", PROMPT)
    model = lowbit.load(tmp_path / "out.gguf", threads=1, head="file")
    if head == "f16":
        assert told["ids"] == llama_cpp_peer.greedy(model, PROMPT, llama_cpp_peer.TOKENS)
    # An 8-bit head rounds its input, and random weights have logits that lie closer together than that rounding:
    # what llama.cpp takes for the likeliest must be so here too, within a hundredth of the range of logits.
    logits = model.logits([*PROMPT, *told["ids"]])[len(PROMPT) - 1 : -1]
    taken = logits[np.arange(len(logits)), told["ids"]]
    assert (logits.max(axis=1) - taken <= 0.01 * np.ptp(logits, axis=1)).all()
    assert told["tokens"] == model.tokenizer.encode("One day, a dog", add_bos=True)


@pytest.mark.parametrize("name", ["stories260K.bin", "tinystories-3m.F32.gguf"])
@pytest.mark.parametrize("target", ["f16", "q8_0"])
def test_llama_cpp_tells_the_same_story(tmp_path, test_data, peer, name, target):
    convert(test_data / "models" / name, tmp_path / "out.gguf", target, target)
    told = llama_cpp_peer.ask_llama_cpp(peer, tmp_path / "out.gguf", [1], 64)
    model = lowbit.load(tmp_path / "out.gguf", threads=1, head="file", weights="file")
    assert told["ids"] == llama_cpp_peer.greedy(model, [1], 64)
    assert len(set(told["ids"])) > 20


@pytest.mark.parametrize("target", ["tq2_0", "tq1_0", "q4_0"])
@pytest.mark.parametrize("head", ["f16", "q6_k"])
def test_llama_cpp_loads_every_type_it_knows(tmp_path, peer, target, head):
    # Tokens need not be equal: llama.cpp rounds activations for these types in another way.
    llama_cpp_peer.write_model(tmp_path / "source.gguf", "TQ2_0")
    convert(tmp_path / "source.gguf", tmp_path / "out.gguf", target, head)
    told = llama_cpp_peer.ask_llama_cpp(peer, tmp_path / "out.gguf", PROMPT)
    assert len(set(told["ids"])) > 4


@pytest.mark.parametrize("mixture", ["q4_k_m", "q5_k_m", "q6_k", "q4_1", "iq4_nl"])
def test_llama_cpp_loads_every_mixture(tmp_path, peer, mixture):
    llama_cpp_peer.write_model(tmp_path / "source.gguf", "F32")
    convert(tmp_path / "source.gguf", tmp_path / "out.gguf", mixture)
    told = llama_cpp_peer.ask_llama_cpp(peer, tmp_path / "out.gguf", PROMPT)
    assert len(set(told["ids"])) > 4
