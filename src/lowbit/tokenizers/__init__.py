"""Text to token ids and back.

A tokenizer is read from a GGUF file, a ``tokenizer.json``, a SentencePiece ``tokenizer.model`` or that of Llama 3, a
llama2.c ``tokenizer.bin``, or a folder that holds one of these. What a file is follows from its first bytes,
never from its name.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from ..formats.files import named, reading
from ..formats.folder import inside
from ..hub import local_path
from . import gpt2, llama2c, spm
from .base import Tokenizer
from .hub import Settings, read_settings
from .stream import StopBuffer, StreamDecoder
from .tiktoken import from_rank_file, is_rank_file
from .tokenizer_json import from_tokenizer_json

__all__ = [
    "StopBuffer",
    "StreamDecoder",
    "Tokenizer",
    "find_tokenizer_file",
    "from_gguf_metadata",
    "has_vocabulary",
    "load_tokenizer",
    "read_tokenizer_file",
]

# One row per value of tokenizer.ggml.model.
KINDS: dict[str, Callable[[Mapping[str, Any], str], Tokenizer]] = {
    "llama": spm.from_gguf,
    "gpt2": gpt2.from_gguf,
    "gemma4": gpt2.from_gguf,
}

_FOLDER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.bin")
_MAX_FILE_BYTES = 64 << 20


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Let Python's collector rest: it would look again and again at half a million strings and pairs that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collecting()
def load_tokenizer(path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
    """Load a tokenizer from a file or a model folder.

    Parameters
    ----------
    path : str or path-like
        A GGUF file, with tensors or without; a ``tokenizer.json`` with BPE; a SentencePiece ``tokenizer.model``, or
        that of Llama 3; a llama2.c ``tokenizer.bin``, or the checkpoint it lies beside; or a folder with one of the
        former, or ``hf:owner/name[:file]``. In a folder the files around it (``tokenizer_config.json``,
        ``generation_config.json``, ...) tell BOS, EOS and what ends a text.
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
    path = Path(local_path(path))
    settings = Settings()
    if path.is_dir():
        settings = read_settings(path)
        path = find_tokenizer_file(path)
    name = str(path)
    data = read_tokenizer_file(name)
    start = data[:4]
    if start == b"GGUF":
        tokenizer = _from_gguf_file(name)
    elif llama2c.is_tokenizer_bin(data):
        return llama2c.from_tokenizer_bin(data, name, vocab_size)
    elif start[:1] == b"\n":  # a ModelProto begins with its first piece: field 1, length-delimited
        tokenizer = spm.from_model_file(data, name, settings)
    elif start[:1] == b"{" and b'"token_bytes"' in data[:4096]:
        raise UnsupportedModelError(f"{name}: is Mistral's tekken.json, which is not supported; tokenizer.json is")
    elif start[:1] == b"{":
        tokenizer = from_tokenizer_json(data, name, settings)
    elif is_rank_file(data):
        tokenizer = from_rank_file(data, name, settings)
    elif beside := _beside_checkpoint(name):
        return load_tokenizer(beside, vocab_size)
    else:
        raise FormatError(f"{name}: neither GGUF, nor a SentencePiece model, nor a llama2.c tokenizer")
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise FormatError(f"{name}: holds {tokenizer.vocab_size} tokens, but the model has {vocab_size}")
    if settings.add_bos is not None:
        tokenizer.add_bos = settings.add_bos
    tokenizer.eos_ids |= {i for i in settings.eos_ids if 0 <= i < tokenizer.vocab_size}
    return tokenizer


@_without_collecting()
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
    if not has_vocabulary(metadata):
        raise FormatError(f"{path}: holds no tokenizer (tokenizer.ggml.model is {kind})")
    if kind not in KINDS:
        raise UnsupportedModelError(
            f"{path}: tokenizers of kind {kind[:40]!r} are not supported, only {', '.join(KINDS)}"
        )
    return KINDS[kind](metadata, path)


def has_vocabulary(metadata: Mapping[str, Any]) -> bool:
    """Tell whether a GGUF file says that it holds a tokenizer; models of token ids alone do without."""
    return metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab")


def _beside_checkpoint(path: str) -> str | None:
    """The tokenizer beside a llama2.c checkpoint, if that is what the file is."""
    from ..formats import open_model

    try:
        with open_model(path) as file:
            if file.format == "llama2c":
                return llama2c.tokenizer_beside(path, file.metadata["llama.vocab_size"])
    except (FormatError, UnsupportedModelError):
        pass
    return None


def read_tokenizer_file(path: str) -> bytes:
    """Return the whole file, or the first four bytes of a GGUF file."""
    with reading(path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening: opening a pipe would wait for a writer
            raise FormatError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            start = file.read(4)
            if start == b"GGUF":
                return start
            data = start + file.read(_MAX_FILE_BYTES)
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


def find_tokenizer_file(folder: Path) -> Path:
    """Return the file of a folder that its tokenizer is read from; FormatError if there is none."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            with named(str(folder)):
                return inside(folder, name)
    raise FormatError(f"{folder}: holds no {', '.join(_FOLDER_FILES)}")
