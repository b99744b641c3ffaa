"""A random model with a tokenizer, small enough for hundreds of requests."""

from __future__ import annotations

import numpy as np

from lowbit.formats.gguf_writer import GGUFWriter

TEXTS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
TYPES = [2, 3, 3, *[6] * 256, *[1] * 27]


def add_tokenizer(out):
    """Give a GGUF file a tokenizer of bytes and small letters."""
    out.add_metadata("tokenizer.ggml.model", "llama")
    out.add_metadata("tokenizer.ggml.tokens", TEXTS)
    out.add_metadata("tokenizer.ggml.scores", np.zeros(len(TEXTS), np.float32))
    out.add_metadata("tokenizer.ggml.token_type", np.array(TYPES, np.int32))
    out.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
    out.add_metadata("tokenizer.ggml.eos_token_id", 2, "u32")


def write_small_model(path, context, name=None, noise=0.0):
    """Three layers with grouped heads, whose samples are spread over all tokens, the end token among them.

    With `noise` it says something else here and there, or everywhere.
    """
    rng, other, n, hidden = np.random.default_rng(5), np.random.default_rng(6), len(TEXTS), 64
    layer = {
        "attn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (32, hidden), "attn_v": (32, hidden),
        "attn_output": (hidden, hidden), "ffn_norm": (hidden,), "ffn_gate": (96, hidden), "ffn_up": (96, hidden),
        "ffn_down": (hidden, 96),
    }  # fmt: skip
    shapes = {"token_embd": (n, hidden), "output_norm": (hidden,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(3) for name, shape in layer.items()}
    with GGUFWriter(path, "llama") as out:
        sizes = {"context_length": context, "embedding_length": hidden, "feed_forward_length": 96, "block_count": 3,
                 "attention.head_count": 4, "attention.head_count_kv": 2}  # fmt: skip
        for key, value in sizes.items():
            out.add_metadata(f"llama.{key}", value, "u32")
        if name is not None:
            out.add_metadata("general.name", name)
        out.add_metadata("llama.attention.layer_norm_rms_epsilon", 1e-5)
        add_tokenizer(out)
        for name, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32) * (0.3 if len(shape) == 2 else 1)
            values += (noise * other.standard_normal(shape)).astype(np.float32)
            out.add_tensor(f"{name}.weight", "F32", np.abs(values) + 0.5 if len(shape) == 1 else values)
    return path
