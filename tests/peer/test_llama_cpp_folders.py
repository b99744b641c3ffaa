"""Hugging Face folders that `lowbit.convert` turned into GGUF, read by llama.cpp; see test_llama_cpp.py for what this
needs. The folders have the layout that transformers writes; tests/families compares their logits with transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import lowbit
from lowbit._kernels.sequence import Sequence
from lowbit.convert import convert
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter


def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_" + Path(path).stem, Path(__file__).parent / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


llama_cpp_peer = _module("test_llama_cpp.py")
peer = llama_cpp_peer.peer

LLAMA = ("LlamaForCausalLM", "llama", {"rope_theta": 10000.0})
LLAMA3 = ("LlamaForCausalLM", "llama", {"rope_parameters": {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}})  # fmt: skip
QWEN3 = ("Qwen3ForCausalLM", "qwen3", {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "head_dim": 128})
FAMILIES = {"llama": LLAMA, "llama3": LLAMA3, "qwen3": QWEN3}
PROMPT = [1, 17, 5, 80, 33, 2, 64, 9]


TEXT = np.random.default_rng(4).integers(0, 12, 64).tolist()  # so few that only attention tells what follows


@pytest.fixture
def converted(tmp_path):
    """`converted(family, weights, target)` converts a folder; returns the GGUF file, and one for llama.cpp."""
    checkpoints = _module("../families/checkpoints.py")
    checkpoints.HIDDEN, checkpoints.WIDE = 256, 512  # rows of whole TQ2_0 blocks

    def make(family: str, weights: str, target: str) -> tuple[Path, Path]:
        checkpoints.SEEDS[family] = 0
        checkpoints.CASES[family] = (*FAMILIES[family], weights, "F16")
        folder = checkpoints.write(family, tmp_path / "folder")
        convert(folder, tmp_path / "random.gguf", target, "f16")
        head = head_that_knows(lowbit.load(tmp_path / "random.gguf", threads=1, head="file"), PROMPT, TEXT)
        paths = tmp_path / "bare.gguf", tmp_path / "out.gguf"
        for path in paths:
            with open_model(tmp_path / "random.gguf") as file, GGUFWriter(path, file.architecture) as out:
                for key, value in file.metadata.items():
                    if key != "general.architecture":
                        out.add_metadata(key, value, file.metadata_types[key])
                if path == paths[1]:  # the folder has no vocabulary, and llama.cpp wants to be told
                    out.add_metadata("tokenizer.ggml.model", "no_vocab")
                for info in file.tensors.values():
                    out.add_tensor_info(info.name, info.type, info.shape)
                out.write_header()
                for info in file.tensors.values():
                    raw = head.view(np.uint8).reshape(-1) if info.name == "output.weight" else file.read(info.name)
                    out.write_tensor_parts(info.name, [raw])
        return paths

    return make


def head_that_knows(model: lowbit.Model, prompt: list[int], text: list[int]) -> np.ndarray:
    """Fit an output head to a model of random weights, so that after the prompt it says the text.

    Logits of random weights lie so close together that a last digit decides between two tokens. With this head, which
    is the ridge regression from hidden states to the tokens that follow, one logit stands out at every place, as in a
    trained model, but only if each hidden state is right.
    """
    ids = np.array(prompt + text, np.int32)
    sequence = Sequence(model._decoder.pool, ids[:-1], len(ids), reuse=False)
    states = model._decoder.read(sequence, "states")[len(prompt) - 1 :].astype(np.float64)
    sequence.close()
    wanted = np.zeros((len(text), model.config.vocab_size))
    wanted[np.arange(len(text)), text] = 10
    gram = states @ states.T
    ridge = 1e-3 * np.trace(gram) / len(gram)
    return (wanted.T @ np.linalg.solve(gram + ridge * np.eye(len(gram)), states)).astype(np.float16)


@pytest.mark.parametrize("target", ["f16", "q8_0", "tq2_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_decodes_a_converted_folder_alike(converted, peer, family, target):
    ours, theirs = converted(family, "trilm" if target == "tq2_0" else "float", target)
    with open_model(ours) as file:
        assert file.tensors["blk.0.attn_q.weight"].type == target.upper()
    told = llama_cpp_peer.ask_llama_cpp(peer, theirs, PROMPT, len(TEXT))
    model = lowbit.load(ours, threads=1, head="file")
    assert told["ids"] == llama_cpp_peer.greedy(model, PROMPT, len(TEXT)) == TEXT
