"""Files that lowbit writes, read by llama.cpp: run where llama-cpp-python is installed, here or in another Python.

``LOWBIT_PEER_PYTHON`` names that other Python; it needs numpy and llama-cpp-python and nothing of lowbit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import lowbit
from lowbit.formats.gguf_writer import GGUFWriter

HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS, CONTEXT = 256, 512, 2, 4, 2, 256
TOKENS = 24

LLAMA_CPP = r"""
import ctypes, json, sys
import numpy as np
import llama_cpp as lib

@lib.llama_log_callback
def quiet(level, text, data):
    pass

lib.llama_log_set(quiet, ctypes.c_void_p(0))
path, prompt, n = json.loads(sys.argv[1])
model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
assert model, "llama.cpp refuses the file"
params = lib.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
params.type_k = params.type_v = lib.GGML_TYPE_F32
params.flash_attn_type = 0  # plain attention, in float32
context = lib.llama_init_from_model(model, params)
size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
feed, ids = prompt, []
for _ in range(n):
    array = (lib.llama_token * len(feed))(*feed)
    assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(feed))) == 0
    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (size,))
    feed = [int(logits.argmax())]
    ids += feed
text = b"One day, a dog"
room = (lib.llama_token * 64)()
vocab = lib.llama_model_get_vocab(model)
known = lib.llama_vocab_type(vocab)  # 0: the file has no vocabulary
count = lib.llama_tokenize(vocab, text, len(text), room, 64, True, False) if known else 0
print(json.dumps({"version": lib.__version__, "ids": ids, "size": size, "tokens": list(room[:count])}))
"""


@pytest.fixture(scope="module")
def peer():
    """A Python that has llama-cpp-python."""
    if "LOWBIT_PEER_PYTHON" in os.environ:
        return os.environ["LOWBIT_PEER_PYTHON"]
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is neither installed nor in the Python that LOWBIT_PEER_PYTHON names")
    return sys.executable


def write_model(path, kind: str, seed: int = 7) -> None:
    """A Llama with two layers whose linear weights are of one type, and a vocabulary with a few words and all bytes."""
    rng = np.random.default_rng(seed)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "o", "n", "e", "\u2581on"]
    words += ["\u2581d", "a", "y", "\u2581day", "\u2581a", "g", "og", "\u2581dog", ",", "O", "\u2581O", "ne"]
    words += [f"\u2581w{i}" for i in range(512 - len(words))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) - 259)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN), "ffn_down": (HIDDEN, WIDE),
    }  # fmt: skip
    with GGUFWriter(path, "llama") as out:
        for key, value in {
            "context_length": CONTEXT, "embedding_length": HIDDEN, "feed_forward_length": WIDE, "block_count": LAYERS,
            "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "vocab_size": len(words),
            "rope.dimension_count": HIDDEN // HEADS,
        }.items():  # fmt: skip
            out.add_metadata("llama." + key, value, "u32")
        out.add_metadata("llama.attention.layer_norm_rms_epsilon", 1e-5)
        out.add_metadata("llama.rope.freq_base", 10000.0)
        out.add_metadata("tokenizer.ggml.model", "llama")
        out.add_metadata("tokenizer.ggml.tokens", words)
        out.add_metadata("tokenizer.ggml.scores", -np.arange(len(words), dtype=np.float32))
        out.add_metadata("tokenizer.ggml.token_type", np.array(types, np.int32))
        out.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
        out.add_metadata("tokenizer.ggml.eos_token_id", 2, "u32")
        # The embeddings are tied to the head in none of the files, and in F16 in all of them.
        out.add_tensor("token_embd.weight", "F16", rng.standard_normal((len(words), HIDDEN), np.float32))
        for i in range(LAYERS):
            for norm in ("attn_norm", "ffn_norm"):
                out.add_tensor(f"blk.{i}.{norm}.weight", "F32", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
            for name, shape in shapes.items():
                ternary = rng.integers(-1, 2, shape).astype(np.float32) * np.float32(0.0625)
                masters = rng.standard_normal(shape, np.float32) * np.float32(0.06)
                out.add_tensor(f"blk.{i}.{name}.weight", kind, ternary if kind == "TQ2_0" else masters)
        out.add_tensor("output_norm.weight", "F32", np.ones(HIDDEN, np.float32))
        out.add_tensor("output.weight", "F16", rng.standard_normal((len(words), HIDDEN), np.float32))


def ask_llama_cpp(python: str, path, prompt: list[int], n: int = TOKENS):
    """The n greedy tokens of llama.cpp, and how it splits a text."""
    told = subprocess.run(
        [python, "-c", LLAMA_CPP, json.dumps([str(path), prompt, n])], capture_output=True, text=True, timeout=1200
    )
    assert told.returncode == 0, told.stderr[-2000:]
    return json.loads(told.stdout.splitlines()[-1])


def greedy(model, prompt: list[int], n: int) -> list[int]:
    """The likeliest tokens, those that end a text included: llama.cpp is not asked to stop either."""
    ids: list[int] = []
    for _ in range(n):
        ids.append(int(model.logits(prompt + ids)[-1].argmax()))
    return ids


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_llama_cpp_decodes_the_same_greedy_ids(tmp_path, peer, kind, seed):
    path = tmp_path / "model.gguf"
    write_model(path, kind, seed)
    model = lowbit.load(path, threads=1)
    prompt = np.random.default_rng(seed).integers(259, 512, 12).tolist()
    assert ask_llama_cpp(peer, path, prompt)["ids"] == greedy(model, prompt, TOKENS)


def test_llama_cpp_loads_ternary_weights_and_decodes(tmp_path, peer):
    # Tokens need not be equal: llama.cpp makes int8 activations per 256 channels in another way.
    path = tmp_path / "model.gguf"
    write_model(path, "TQ2_0")
    told = ask_llama_cpp(peer, path, [1, 300, 400])
    assert told["size"] == lowbit.load(path, threads=1).config.vocab_size
    assert len(told["ids"]) == TOKENS
    assert all(0 <= i < told["size"] for i in told["ids"])
    # A file read in the wrong order would give one token for ever.
    assert len(set(told["ids"])) > 4


def test_llama_cpp_splits_a_text_alike(tmp_path, peer):
    path = tmp_path / "model.gguf"
    write_model(path, "TQ2_0")
    told = ask_llama_cpp(peer, path, [1, 300])
    assert told["tokens"] == lowbit.load_tokenizer(path).encode("One day, a dog", add_bos=True)
