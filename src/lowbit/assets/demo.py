"""A tiny ternary model with random weights, so that everything can be tried before a trained one exists.

Its text is noise: it shows that the machinery runs, not what a language model can say.
"""

from __future__ import annotations

import os

import numpy as np

from ..formats.gguf_writer import GGUFWriter

__all__ = ["write_demo_model"]

HIDDEN, LAYERS, HEADS, CONTEXT = 256, 2, 4, 512
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def write_demo_model(path: str | os.PathLike[str]) -> None:
    """Write the model, the same bytes every time."""
    rng = np.random.default_rng(1997)
    tokens = ["<unk>", "<s>", "</s>", "\u2581", ".", ",", *LETTERS, *("\u2581" + c for c in LETTERS)]
    types = [2, 3, 3] + [1] * (len(tokens) - 3)
    with GGUFWriter(path, "bitnet") as out:
        out.add_metadata("general.name", "lowbit random demo")
        for key, value in {
            "context_length": CONTEXT,
            "embedding_length": HIDDEN,
            "feed_forward_length": HIDDEN,
            "block_count": LAYERS,
            "attention.head_count": HEADS,
            "attention.head_count_kv": HEADS,
            "vocab_size": len(tokens),
        }.items():
            out.add_metadata("bitnet." + key, value, "u32")
        out.add_metadata("bitnet.attention.layer_norm_rms_epsilon", 1e-5)
        out.add_metadata("tokenizer.ggml.model", "llama")
        out.add_metadata("tokenizer.ggml.tokens", tokens)
        out.add_metadata("tokenizer.ggml.scores", np.arange(0, -len(tokens), -1, dtype=np.float32))
        out.add_metadata("tokenizer.ggml.token_type", np.array(types, np.int32))
        out.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
        out.add_metadata("tokenizer.ggml.eos_token_id", 2, "u32")
        out.add_tensor("token_embd.weight", "F32", rng.standard_normal((len(tokens), HIDDEN), np.float32))
        out.add_tensor("output_norm.weight", "F32", np.ones(HIDDEN, np.float32))
        for i in range(LAYERS):
            for name in ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm"):
                out.add_tensor(f"blk.{i}.{name}.weight", "F32", np.ones(HIDDEN, np.float32))
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                ternary = rng.integers(-1, 2, (HIDDEN, HIDDEN)).astype(np.float32) * np.float32(0.0625)
                out.add_tensor(f"blk.{i}.{name}.weight", "TQ2_0", ternary)
