"""Real vocabularies from LOWBIT_TEST_DATA, and a small one made here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lowbit.tokenizers import from_gguf_metadata, load_tokenizer

REAL = {
    "llama2-gguf": "tokenizers/ggml-vocab-llama-spm.gguf",
    "llama2-model": "tokenizers/llama2/tokenizer.model",
    "tinystories-gguf": "models/tinystories-3m.TQ2_0.gguf",
    "tok512-bin": "models/tok512.bin",
    "tok512-model": "models/tok512.model",
}


@pytest.fixture(scope="session")
def data():
    """Folder of the test data."""
    folder = os.environ.get("LOWBIT_TEST_DATA")
    if not folder:
        pytest.skip("LOWBIT_TEST_DATA is not set, and this test needs real vocabularies")
    return Path(folder)


@pytest.fixture(scope="session")
def real(data):
    """Tokenizers of all real vocabularies by name."""
    return {name: load_tokenizer(data / path) for name, path in REAL.items()}


@pytest.fixture(scope="session", params=REAL)
def tokenizer(request, real):
    return real[request.param]


def vocabulary(*extra, bytes_at_3=True, **keys):
    """Return GGUF metadata: unknown, BOS and EOS, the bytes, some letters, and extra (text, type) tokens."""
    rows = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    if bytes_at_3:
        rows += [(f"<0x{i:02X}>", 6) for i in range(256)]
    rows += [(text, 1) for text in ("▁", "a", "b", "c", "ab", "▁a", "é")]
    rows += extra
    tokens = [text if isinstance(text, bytes) else text.encode() for text, _ in rows]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(len(rows), dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([kind for _, kind in rows], dtype=np.int32),
    }
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return {name: value for name, value in metadata.items() if value is not None}


BYTE_LEVEL = {
    "llama3": "tokenizers/ggml-vocab-llama-bpe.gguf",
    "llama3-ranks": "tokenizers/llama3/tokenizer.model",
    "qwen2": "tokenizers/ggml-vocab-qwen2.gguf",
    "gpt2": "tokenizers/ggml-vocab-gpt-2.gguf",
}


@pytest.fixture(scope="session")
def byte_level(data):
    """Tokenizers of all real byte-level vocabularies by name."""
    pytest.importorskip("tokenizers.models")
    return {name: load_tokenizer(data / path) for name, path in BYTE_LEVEL.items()}


@pytest.fixture(scope="session")
def small():
    """`small(*extra, **keys)` makes GGUF metadata, `small.tokenizer(...)` a tokenizer of it."""

    class Small:
        first_extra = 3 + 256 + 7

        def __call__(self, *extra, **keys):
            return vocabulary(*extra, **keys)

        def tokenizer(self, *extra, **keys):
            return from_gguf_metadata(vocabulary(*extra, **keys), "small.gguf")

    return Small()
