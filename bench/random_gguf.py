"""A random model of `lowbit.benchmark` as a GGUF file, for engines that only take files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowbit.benchmark import RandomModel
from lowbit.formats.gguf_writer import GGUFWriter

__all__ = ["FIRST_WORD", "vocabulary", "write_random_gguf"]

CONTEXT = 16384
FIRST_WORD = 259
"""Token ids from here on are ordinary words: three special tokens and 256 bytes come before."""


def vocabulary(size: int) -> dict[str, list[str] | np.ndarray]:
    """The smallest SentencePiece vocabulary that loads: special tokens, all bytes, and words that occur nowhere."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"\u2581w{i}" for i in range(size - len(tokens))]
    types = np.ones(size, np.int32)
    types[:FIRST_WORD] = [2, 3, 3, *[6] * 256]
    return {
        "tokenizer.ggml.tokens": tokens[:size],
        "tokenizer.ggml.scores": -np.arange(size, dtype=np.float32),
        "tokenizer.ggml.token_type": types,
    }


def write_random_gguf(shape: str, folder: Path) -> Path:
    """Write a model unless it is there already, one tensor at a time; return its path."""
    path = folder / f"random-{shape}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    model = RandomModel(shape, CONTEXT)
    with GGUFWriter(path, model.architecture) as out:
        for key, value in model.metadata.items():
            if key != "general.architecture":
                out.add_metadata(key, value)
        out.add_metadata("tokenizer.ggml.model", "llama")
        for key, value in vocabulary(model.metadata[f"{model.architecture}.vocab_size"]).items():
            out.add_metadata(key, value)
        out.add_metadata("tokenizer.ggml.bos_token_id", 1, "u32")
        out.add_metadata("tokenizer.ggml.eos_token_id", 2, "u32")
        for info in model.tensors.values():
            out.add_tensor_info(info.name, info.type, info.shape)
        out.write_header()
        for name in model.tensors:
            out.write_tensor(name, model.read(name))
    return path
