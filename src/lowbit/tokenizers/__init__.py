"""Text to token ids and back.

A tokenizer is read from a GGUF file, a SentencePiece ``tokenizer.model``, a llama2.c ``tokenizer.bin``, or a folder
that holds one of the latter two. What a file is follows from its first bytes, never from its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from . import llama2c, spm
from .base import Tokenizer
from .stream import StopBuffer, StreamDecoder

__all__ = ["StopBuffer", "StreamDecoder", "Tokenizer", "from_gguf_metadata", "load_tokenizer"]

# One row per value of tokenizer.ggml.model.
KINDS: dict[str, Callable[[Mapping[str, Any], str], Tokenizer]] = {
    "llama": spm.from_gguf,
}

_FOLDER_FILES = ("tokenizer.model", "tokenizer.bin")
_MAX_FILE_BYTES = 64 << 20


def load_tokenizer(path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
    """Load a tokenizer from a file or a model folder.

    Parameters
    ----------
    path : str or path-like
        A GGUF file, with tensors or without; a SentencePiece ``tokenizer.model``; a llama2.c ``tokenizer.bin``;
        or a folder with one of the latter two.
    vocab_size : int, optional
        Number of tokens the model has; a tokenizer of another size is refused.

    Returns
    -------
    Tokenizer

    Raises
    ------
    FormatError
        If the file cannot be read, is not sound, or is not a tokenizer.
    UnsupportedModelError
        If it is a tokenizer of a kind that lowbit does not know.
    """
    path = Path(path)
    if path.is_dir():
        path = _tokenizer_in(path)
    name = str(path)
    data = _read(name)
    start = data[:4]
    if start == b"GGUF":
        tokenizer = _from_gguf_file(name)
    elif llama2c.is_tokenizer_bin(data):
        return llama2c.from_tokenizer_bin(data, name, vocab_size)
    elif start[:1] == b"\n":  # a ModelProto begins with its first piece: field 1, length-delimited
        tokenizer = spm.from_model_file(data, name)
    elif start[:1] == b"{":
        raise UnsupportedModelError(f"{name}: tokenizer.json files are not supported")
    elif _is_tiktoken(data):
        raise UnsupportedModelError(f"{name}: tiktoken rank files are not supported")
    else:
        raise FormatError(f"{name}: neither GGUF, nor a SentencePiece model, nor a llama2.c tokenizer")
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise FormatError(f"{name}: holds {tokenizer.vocab_size} tokens, but the model has {vocab_size}")
    return tokenizer


def from_gguf_metadata(metadata: Mapping[str, Any], path: str) -> Tokenizer:
    """Make a tokenizer from the metadata of a GGUF file.

    Parameters
    ----------
    metadata : mapping
        Values by full key, as `lowbit.formats` reads them: scalars plain, arrays of numbers as ndarrays,
        arrays of strings as lists of bytes.
    path : str
        Name of the file, for messages.

    Raises
    ------
    FormatError
        If there is no vocabulary, or it is not sound.
    UnsupportedModelError
        If the vocabulary is of a kind that lowbit does not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str):
        raise FormatError(f"{path}: holds no tokenizer (tokenizer.ggml.model is missing)")
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"{path}: tokenizers of kind {kind[:40]!r} are not supported, only {', '.join(KINDS)}"
        )
    return KINDS[kind](metadata, path)


def _read(path: str) -> bytes:
    """Return the whole file, or the first four bytes of a GGUF file."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start == b"GGUF":
                return start
            data = start + file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise FormatError(f"{path}: not a GGUF file, and too large for any other tokenizer")
    return data


def _from_gguf_file(path: str) -> Tokenizer:
    from ..formats import open_model

    model = open_model(path)
    try:
        return from_gguf_metadata(model.metadata, path)
    finally:
        model.close()


def _tokenizer_in(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / "tokenizer.json").is_file():
        raise UnsupportedModelError(f"{folder}: tokenizer.json files are not supported")
    raise FormatError(f"{folder}: holds no {' or '.join(_FOLDER_FILES)}")


def _is_tiktoken(data: bytes) -> bool:
    """Tell whether the first line is base64, a space and a rank."""
    token, _, rank = data[:4096].partition(b"\n")[0].rstrip().partition(b" ")
    return (
        bool(token)
        and rank.isdigit()
        and len(token) % 4 == 0
        and token.rstrip(b"=").replace(b"+", b"").replace(b"/", b"").isalnum()
    )
