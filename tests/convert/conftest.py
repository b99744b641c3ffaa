"""A small Llama of any stored types, and a look at what a converted file holds."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.formats.gguf_writer import GGUFWriter

HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS, WORDS = 256, 512, 2, 4, 2, 320
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN), "ffn_down": (HIDDEN, WIDE),
}  # fmt: skip


def write_llama(path, kind="F32", ternary=True, architecture="llama", scales=(0.0625,), words=WORDS, seed=3):
    """Write a model whose linear weights are of one type; rows take the scales in turn."""
    rng = np.random.default_rng(seed)
    with GGUFWriter(path, architecture) as out:
        for key, value in {
            "context_length": 128, "embedding_length": HIDDEN, "feed_forward_length": WIDE, "block_count": LAYERS,
            "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "vocab_size": words,
        }.items():  # fmt: skip
            out.add_metadata(f"{architecture}.{key}", value, "u32")
        out.add_metadata(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        out.add_metadata("tokenizer.ggml.model", "llama")
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        tokens += [f"w{i}" for i in range(words - len(tokens))]
        out.add_metadata("tokenizer.ggml.tokens", tokens)
        out.add_metadata("tokenizer.ggml.scores", np.zeros(words, np.float32))
        out.add_metadata("tokenizer.ggml.token_type", np.int32([2, 3, 3] + [6] * 256 + [1] * (words - 259)))
        out.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
        out.add_metadata("tokenizer.ggml.eos_token_id", 2, "i64")
        out.add_metadata("tokenizer.ggml.merges", [], "string")
        out.add_tensor("token_embd.weight", "F32", rng.standard_normal((words, HIDDEN), np.float32))
        for i in range(LAYERS):
            for norm in ("attn_norm", "ffn_norm", *(("attn_sub_norm",) if architecture == "bitnet" else ())):
                out.add_tensor(f"blk.{i}.{norm}.weight", "F32", rng.uniform(0.5, 1.5, HIDDEN))
            if architecture == "bitnet":
                out.add_tensor(f"blk.{i}.ffn_sub_norm.weight", "F32", rng.uniform(0.5, 1.5, WIDE))
            for name, shape in SHAPES.items():
                by_row = np.resize(np.float32(scales), (shape[0], 1))
                codes = rng.integers(-1, 2, shape).astype(np.float32)
                values = codes * by_row if ternary else rng.standard_normal(shape, np.float32) * np.float32(0.06)
                out.add_tensor(f"blk.{i}.{name}.weight", kind, values)
        out.add_tensor("output_norm.weight", "F32", np.ones(HIDDEN, np.float32))
        out.add_tensor("output.weight", "F16", rng.standard_normal((words, HIDDEN), np.float32))
    return path


@pytest.fixture
def llama(tmp_path):
    """Write a model into the test's folder; takes the options of `write_llama`."""
    return lambda **options: write_llama(tmp_path / "source.gguf", **options)
