"""Writing a model file as GGUF: metadata and tokenizer come along, and tensors are made one after the other."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LowbitError, UnsupportedModelError
from ..formats import open_model
from ..formats.base import ModelFile, TensorInfo
from ..formats.files import named, reading
from ..formats.gguf_writer import GGUFWriter
from ..loading.shared import files_of
from ..quantize.ggml_types import tensor_nbytes
from .mixtures import MIXTURES

FILE_TYPES = {
    "F16": 1, "Q4_0": 2, "Q8_0": 7, "TQ1_0": 36, "TQ2_0": 37, "I2_S": 40,
    **{name.upper(): mixture.number for name, mixture in MIXTURES.items()},
}  # fmt: skip
"""Values of ``general.file_type``, for readers that look at it."""
PAIRING = "lowbit.rope_pairing"
"""Set where a source pairs rotated channels otherwise than files of its architecture do; a GGUF file has it never."""
_OF_THE_CONTAINER = ("split.", "llama2c.")


@contextmanager
def opened(source: str, target: str, *others: str) -> Iterator[ModelFile]:
    """Open a model that is to be written as another file; complaints name the former, or one of the other paths.

    Raises
    ------
    LowbitError
        If the target is a file of the model, or cannot be written.
    """
    with open_model(source) as file, named(file.path, target, *others):
        keep_files(file, target)
        try:
            yield file
        except LowbitError:  # of which one is a FileNotFoundError
            raise
        except OSError as error:
            raise LowbitError(f"{target}: cannot be written ({error.strerror or error})") from None


def keep_files(file: ModelFile, target: str) -> None:
    """Raise LowbitError if what is to be written would replace a file that the model is read from."""
    # A GGUF file in a folder is what was made of it.
    own = [path for path in files_of(file) if not (path.endswith(".gguf") and os.path.isdir(file.path))]
    if os.path.exists(target) and any(os.path.samefile(path, target) for path in (file.path, *own)):
        raise LowbitError(f"{target}: is a file of the model that is read; give the new one another name")


def write_model(
    file: ModelFile,
    target: str,
    kinds: Mapping[str, str],
    main: str,
    make: Callable[[TensorInfo], Iterable[np.ndarray]],
    progress: Callable[[int, int], None],
) -> str | None:
    """Write a model with other types; the file gets its name when it is complete.

    Parameters
    ----------
    file : ModelFile
    target : path
    kinds : mapping of str to str
        The new type of each tensor.
    main : str
        Type or mixture that the file is said to be of.
    make : function of a tensor of the old file
        Gives the stored bytes of the new one, in one piece or several.
    progress : callable
        Called with the weights done so far and the weights in all.

    Returns
    -------
    str or None
        Why the new file has no tokenizer, if the source is a folder and the file has none.

    Raises
    ------
    LowbitError
        If the disk of the target has no room; nothing is left behind then.
    """
    infos = list(file.tensors.values())
    nbytes = sum(tensor_nbytes(kinds[info.name], info.shape) for info in infos)
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(target))).free
    if nbytes > free:
        raise LowbitError(f"{target}: needs {nbytes:,} bytes, and {free:,} are free on its disk")
    total, done = sum(math.prod(info.shape) for info in infos), 0
    tokenizer, no_tokenizer = _tokenizer_keys(file)
    with GGUFWriter(target, file.architecture, file.metadata.get("general.alignment", 32)) as writer:
        _copy_metadata(file, writer, FILE_TYPES.get(main, 1), tokenizer)
        for info in infos:
            writer.add_tensor_info(info.name, kinds[info.name], info.shape)
        writer.write_header()
        for info in infos:
            writer.write_tensor_parts(info.name, make(info))
            file.release(info.name)
            done += math.prod(info.shape)
            progress(done, total)
    return no_tokenizer


def _tokenizer_keys(file: ModelFile) -> tuple[Mapping[str, tuple[Any, str]], str | None]:
    """The tokenizer that lies beside a file's weights, as GGUF's keys; a GGUF file has it among its own.

    Returns
    -------
    keys : dict of str to (value, type)
        Empty if there is none to add.
    reason : str or None
        Why a folder's tokenizer is not there.
    """
    if file.format == "llama2c":
        return _vocabulary_beside(file), None
    if file.format != "huggingface":
        return {}, None
    from ..tokenizers import find_tokenizer_file
    from ..tokenizers.export import gguf_keys

    try:
        find_tokenizer_file(Path(file.path))
    except FormatError:
        return {}, "the folder has none"
    try:
        return gguf_keys(file.path, file.metadata[f"{file.architecture}.vocab_size"]), None
    except UnsupportedModelError as error:
        return {}, str(error)


def _copy_metadata(
    file: ModelFile, writer: GGUFWriter, file_type: int, tokenizer: Mapping[str, tuple[Any, str]]
) -> None:
    """Every key as it was, but for those that describe the old file rather than the model."""
    types: Mapping[str, str] = getattr(file, "metadata_types", {})
    replaced = {"general.architecture", "general.alignment", "general.file_type", "general.quantization_version"}
    # config.json names a BOS for tokenizers that have none, so nothing but the tokenizer's own word counts.
    dropped = (*_OF_THE_CONTAINER, "tokenizer.ggml.") if tokenizer else _OF_THE_CONTAINER
    for key, value in file.metadata.items():
        if key not in replaced and key != PAIRING and not key.startswith(dropped):
            writer.add_metadata(key, value, types.get(key))
    writer.add_metadata("general.file_type", file_type, "u32")
    writer.add_metadata("general.quantization_version", 2, "u32")
    for key, (value, kind) in tokenizer.items():
        writer.add_metadata(key, value, kind)


def _vocabulary_beside(file: ModelFile) -> dict[str, tuple[Any, str]]:
    """The vocabulary of llama2.c's tokenizer.bin beside the checkpoint, as GGUF's keys; empty if there is none."""
    from ..tokenizers.llama2c import read_vocabulary, tokenizer_beside

    size = file.metadata["llama.vocab_size"]
    path = tokenizer_beside(file.path, size)
    if path is None:
        return {}
    with reading(path), open(path, "rb") as opened:
        vocabulary = read_vocabulary(opened.read(), path, size)
    return {
        "tokenizer.ggml.model": ("llama", "string"),
        # llama2.c writes a space as a space, SentencePiece and GGUF as U+2581.
        "tokenizer.ggml.tokens": ([t.replace(b" ", "▁".encode()) for t in vocabulary.tokens], "string"),
        "tokenizer.ggml.scores": (vocabulary.scores, "f32"),
        "tokenizer.ggml.token_type": (vocabulary.types, "i32"),
        "tokenizer.ggml.bos_token_id": (1, "u32"),
        "tokenizer.ggml.eos_token_id": (2, "u32"),
        "tokenizer.ggml.unknown_token_id": (0, "u32"),
        "tokenizer.ggml.add_bos_token": (True, "bool"),
        "tokenizer.ggml.add_eos_token": (False, "bool"),
    }
