"""Vocabularies of bytes and of control tokens, for what conversations are written with."""

from __future__ import annotations

import numpy as np

from lowbit.tokenizers import from_gguf_metadata


def vocabulary(specials, add_bos: bool = True):
    """A SentencePiece vocabulary of bytes, with control tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *specials]
    return from_gguf_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [t.encode() for t in tokens],
            "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
            "tokenizer.ggml.token_type": np.int32([2, 3, 3] + [6] * 256 + [1] + [3] * len(specials)),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": add_bos,
            "tokenizer.ggml.add_space_prefix": False,
        },
        "test",
    )
