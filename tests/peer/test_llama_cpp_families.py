"""Every family that llama.cpp knows, converted from a folder, and read by both; test_llama_cpp.py says what this needs.

The checkpoints are those of tests/families, but for settings that a GGUF file of llama.cpp cannot hold or that it reads
in another way, which docs/compatibility.md names.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.convert import convert
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter

_spec = importlib.util.spec_from_file_location("peer_folders", Path(__file__).parent / "test_llama_cpp_folders.py")
assert _spec
assert _spec.loader
folders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(folders)
peer, checkpoints = folders.peer, folders._module("../families/checkpoints.py")
PROMPT, TEXT = folders.PROMPT, folders.TEXT
UNROUNDED = {"rope_scaling": {**checkpoints.GPT_OSS["rope_scaling"], "truncate": True}}
OTHERWISE = {
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None},
    "qwen3_yarn": {"rope_parameters": {**checkpoints.YARN_OWN, "beta_fast": 32.0, "beta_slow": 1.0}},
    "gemma3": {"query_pre_attn_scalar": 64},
    "gpt_oss": UNROUNDED,
    "gpt_oss_mxfp4": UNROUNDED,
    "deepseek_v2_lite": {"num_hidden_layers": 27},  # by which llama.cpp knows it
    "deepseek_v2": {"n_group": 1, "topk_group": 1},
    "minicpm4": {"rope_scaling": checkpoints.longrope(16, 256)},  # llama.cpp has no smaller context
}
checkpoints.SEEDS |= {
    "deepseek_v2": 1,
    "deepseek_v3": 4,
}  # others route a token elsewhere where activations are rounded
FAMILIES = [
    name
    for name in checkpoints.CASES | checkpoints.OWN
    if not name.startswith("bitnet") and not name.endswith("_embedding")
]  # llama.cpp lacks the architecture of bitnet-b1.58, activations of 8 bits, and the norms of the embedding models
for _name, _keys in OTHERWISE.items():
    checkpoints.PLACES.setdefault(_name, list(checkpoints.CASES).index(_name))
    _case = checkpoints.CASES[_name]
    checkpoints.CASES[_name] = (*_case[:2], {**_case[2], **_keys}, *_case[3:])

LOGITS = r"""
import ctypes, json, sys
import numpy as np
import llama_cpp as lib

path, ids, out, room = json.loads(sys.argv[1])
model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
assert model, "llama.cpp refuses the file"
params = lib.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = room, 1, 1
params.type_k = params.type_v = lib.GGML_TYPE_F32
params.flash_attn_type = 0
context = lib.llama_init_from_model(model, params)
size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
rows = []
for token in ids:
    assert lib.llama_decode(context, lib.llama_batch_get_one((lib.llama_token * 1)(token), 1)) == 0
    rows.append(np.ctypeslib.as_array(lib.llama_get_logits(context), (size,)).copy())
np.save(out, rows)
"""


def rewrite(source, target, floats: bool = False, head: np.ndarray | None = None) -> None:
    """Write a file again: all weights as float32, or with another head; and say that there is no vocabulary."""
    with open_model(source) as file, GGUFWriter(target, file.architecture) as out:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                kept = file.metadata_types[key]
                out.add_metadata(key, value, None if kept == "array" else kept)
        if "tokenizer.ggml.model" not in file.metadata:
            out.add_metadata("tokenizer.ggml.model", "no_vocab")
        infos = {name: info for name, info in file.tensors.items() if head is None or name != "output.weight"}
        for name, info in infos.items():
            out.add_tensor_info(name, "F32" if floats else info.type, info.shape)
        if head is not None:
            out.add_tensor_info("output.weight", "F16", head.shape)
        out.write_header()
        for name, info in infos.items():
            raw = file.read(name)
            if floats:
                raw = dequantize(info.type, raw, info.shape).astype(np.float32).view(np.uint8).reshape(-1)
            out.write_tensor_parts(name, [raw])
        if head is not None:
            out.write_tensor_parts("output.weight", [head.view(np.uint8).reshape(-1)])


def logits_of_llama_cpp(peer, path, context: int = 256) -> np.ndarray:
    """Logits after each of `LOGITS_IDS`."""
    out = path.with_suffix(".npy")
    told = json.dumps([str(path), checkpoints.LOGITS_IDS, str(out), context])
    subprocess.run([peer, "-c", LOGITS, told], check=True, stderr=subprocess.DEVNULL)
    return np.load(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_float_weights_agree(peer, tmp_path, family):
    convert(checkpoints.write(family, tmp_path / "folder"), tmp_path / "f16.gguf", "f16", "f16")
    rewrite(tmp_path / "f16.gguf", tmp_path / "f32.gguf", floats=True)
    theirs = logits_of_llama_cpp(peer, tmp_path / "f32.gguf")
    ours = lowbit.load(tmp_path / "f32.gguf", threads=1, head="file", weights="file").logits(checkpoints.LOGITS_IDS)
    assert np.abs(ours - theirs).max() <= 1e-3 * (ours.max() - ours.min())


@pytest.mark.parametrize("family", ["phi3", "minicpm4"])
def test_the_context_chooses_the_same_factors_of_longrope(peer, tmp_path, family):
    folder = checkpoints.write(family, tmp_path / "folder")
    config = {**checkpoints.config_of(family), "max_position_embeddings": 1024}
    config["rope_scaling"]["original_max_position_embeddings"] = 256
    if family == "phi3":
        config["original_max_position_embeddings"] = 256
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "f16.gguf", "f16", "f16")
    rewrite(tmp_path / "f16.gguf", tmp_path / "f32.gguf", floats=True)
    both = []
    for context, factors in ((256, "short"), (512, "long")):
        model = lowbit.load(tmp_path / "f32.gguf", threads=1, context=context, head="file", weights="file")
        assert model.info()["longrope"]["factors"] == factors
        both.append(model.logits(checkpoints.LOGITS_IDS))
        theirs = logits_of_llama_cpp(peer, tmp_path / "f32.gguf", context)
        assert np.abs(both[-1] - theirs).max() <= 1e-3 * (theirs.max() - theirs.min())
    assert np.abs(both[0] - both[1]).max() > 1e-2 * (both[0].max() - both[0].min())


@pytest.mark.parametrize("target", ["f16", "q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_64_greedy_ids_agree(peer, tmp_path, family, target):
    convert(checkpoints.write(family, tmp_path / "folder"), tmp_path / "first.gguf", target, "f16")
    model = lowbit.load(tmp_path / "first.gguf", threads=1, head="file")
    rewrite(tmp_path / "first.gguf", tmp_path / "fitted.gguf", head=folders.head_that_knows(model, PROMPT, TEXT))
    told = folders.llama_cpp_peer.ask_llama_cpp(peer, tmp_path / "fitted.gguf", PROMPT, len(TEXT))
    model = lowbit.load(tmp_path / "fitted.gguf", threads=1, head="file")
    assert told["ids"] == folders.llama_cpp_peer.greedy(model, PROMPT, len(TEXT)) == TEXT
