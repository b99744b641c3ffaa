"""Containers: bytes of a file -> metadata and lazily read tensors. Knows file formats, and no model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import ModelFile, TensorInfo
from lowbit.hub import local_path

__all__ = ["CONTAINERS", "Container", "ModelFile", "TensorInfo", "open_model"]

HEAD_BYTES = 64
"""How much of a file the sniff functions see."""


@dataclass(frozen=True)
class Container:
    """A row of the registry."""

    name: str
    sniff: Callable[[bytes], bool]
    """Decides by the first `HEAD_BYTES` bytes of a file, never by its name."""
    open: Callable[[str], ModelFile]


def _open_gguf(path: str) -> ModelFile:
    from lowbit.formats.gguf import GGUFFile

    file = GGUFFile(path)
    if file.parts <= 1:
        return file
    from lowbit.formats.gguf_split import SplitGGUF

    return SplitGGUF(file)


def _sniff_llama2c(head: bytes) -> bool:
    from lowbit.formats.llama2c import sniff

    return sniff(head)


def _open_llama2c(path: str) -> ModelFile:
    from lowbit.formats.llama2c import Llama2cFile

    return Llama2cFile(path)


def _refuse(reason: str) -> Callable[[str], NoReturn]:
    def refuse(path: str) -> NoReturn:
        raise UnsupportedModelError(f"{path}: {reason}")

    return refuse


_PICKLE = "is a PyTorch pickle, which can run any code when it is read; convert it to GGUF elsewhere"
_SAFETENSORS = "is safetensors, which hold weights alone; load the Hugging Face folder that has config.json too"

CONTAINERS = (
    Container("gguf", lambda head: head[:4] == b"GGUF", _open_gguf),
    Container("llama2c", _sniff_llama2c, _open_llama2c),
    # safetensors: u64 length of a JSON header, then the header. Zip: what torch.save writes. 0x80: a bare pickle.
    Container("safetensors", lambda head: head[8:9] == b"{" and head[4:8] == bytes(4), _refuse(_SAFETENSORS)),
    Container("zip", lambda head: head[:4] == b"PK\x03\x04", _refuse(_PICKLE)),
    Container(
        "pickle",
        lambda head: head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"),
        _refuse(_PICKLE),
    ),
)
"""Every container lowbit can name, in the order in which they are tried."""


def open_model(path: str | os.PathLike[str]) -> ModelFile:
    """Open a model file, whatever container its content says it is.

    Parameters
    ----------
    path : str or os.PathLike
        A file, a Hugging Face model folder, or ``hf:owner/name[:file]`` (`lowbit.hub.local_path`).

    Returns
    -------
    ModelFile
        Metadata and tensor descriptions; no tensor is read yet.

    Raises
    ------
    FormatError
        If there is no such file, or it is a folder without a model, empty, truncated, damaged, or nothing that
        lowbit can name.
    UnsupportedModelError
        If the container is known and refused.
    RemoteError
        If it is named ``hf:...``, and cannot be had.
    """
    name = local_path(path)
    if Path(name).is_dir():
        if (Path(name) / "config.json").exists():
            from lowbit.formats.huggingface import HuggingFaceFolder

            return HuggingFaceFolder(name)
        raise FormatError(f"{name}: is a folder without config.json, so no model")
    from lowbit.formats.mapped import map_file

    with map_file(name) as mapped:
        head = mapped[:HEAD_BYTES]
    for container in CONTAINERS:
        if container.sniff(head):
            return container.open(name)
    raise FormatError(f"{name}: is no model file that lowbit knows (GGUF, llama2.c)")
