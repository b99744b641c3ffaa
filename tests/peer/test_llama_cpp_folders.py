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


@pytest.fixture
def converted(tmp_path):
    """`converted(family, weights, target)` converts a folder; returns the GGUF file, and one for llama.cpp."""
    checkpoints = _module("../families/checkpoints.py")
    checkpoints.HIDDEN, checkpoints.WIDE = 256, 512  # rows of whole TQ2_0 blocks

    def make(family: str, weights: str, target: str) -> tuple[Path, Path]:
        checkpoints.SEEDS[family] = 0
        checkpoints.CASES[family] = (*FAMILIES[family], weights, "F16")
        folder = checkpoints.write(family, tmp_path / "folder")
        convert(folder, tmp_path / "bare.gguf", target, "f16")
        with open_model(tmp_path / "bare.gguf") as file, GGUFWriter(tmp_path / "out.gguf", file.architecture) as out:
            for key, value in file.metadata.items():
                if key != "general.architecture":
                    out.add_metadata(key, value, file.metadata_types[key])
            out.add_metadata("tokenizer.ggml.model", "no_vocab")  # the folder has none, and llama.cpp wants to be told
            for info in file.tensors.values():
                out.add_tensor_info(info.name, info.type, info.shape)
            out.write_header()
            for info in file.tensors.values():
                out.write_tensor_parts(info.name, [file.read(info.name)])
        return tmp_path / "bare.gguf", tmp_path / "out.gguf"

    return make


def behind(model: lowbit.Model, ids: list[int]) -> np.ndarray:
    """How far each of the tokens lies behind the likeliest one of lowbit, as a share of the range of logits."""
    logits = model.logits([*PROMPT, *ids])[len(PROMPT) - 1 : -1]
    taken = logits[np.arange(len(logits)), ids]
    return (logits.max(axis=1) - taken) / np.ptp(logits, axis=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_decodes_a_converted_folder_alike(converted, peer, family):
    ours, theirs = converted(family, "float", "f16")
    told = llama_cpp_peer.ask_llama_cpp(peer, theirs, PROMPT)
    model = lowbit.load(ours, threads=1, head="file")
    assert told["ids"] == llama_cpp_peer.greedy(model, PROMPT, llama_cpp_peer.TOKENS)


@pytest.mark.parametrize(
    ("weights", "target", "tolerance"),
    [
        # llama.cpp keeps the scale of 32 activations in float16, lowbit in float32; random weights have logits that lie
        # close together, so that can turn a token. The stories of test_llama_cpp_convert.py are equal throughout.
        ("float", "q8_0", 0.02),
        # llama.cpp rounds activations for this type in another way.
        ("trilm", "tq2_0", 0.05),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_takes_nearly_the_likeliest_of_a_converted_folder(
    converted, peer, family, weights, target, tolerance
):
    ours, theirs = converted(family, weights, target)
    with open_model(ours) as file:
        assert file.tensors["blk.0.attn_q.weight"].type == target.upper()
    told = llama_cpp_peer.ask_llama_cpp(peer, theirs, PROMPT)
    late = behind(lowbit.load(ours, threads=1, head="file"), told["ids"])
    assert (late <= tolerance).all()
    assert (late == 0).mean() > 0.75
