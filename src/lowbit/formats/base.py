"""What every container looks like to the rest of lowbit: metadata, and tensors that are read when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

_Closing = TypeVar("_Closing", bound="Closing")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, before any byte of it is read."""

    name: str
    type: str
    """Name of the ggml type: ``F32``, ``TQ2_0``, ``I2_S``, ..."""
    shape: tuple[int, ...]
    """Row-major, slowest dimension first: a linear layer is ``(out, in)``."""
    offset: int
    """Position of the first byte in the file."""
    nbytes: int
    """Stored size in bytes."""


class Closing(Protocol):
    """Something that is closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Unmap files. Views that were handed out keep them alive until they are gone."""

    def __enter__(self: _Closing) -> _Closing:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ModelFile(Closing, Protocol):
    """An open model file. Knows bytes and names, and nothing about models."""

    path: str
    format: str
    """``gguf``, ``llama2c``, ..."""
    architecture: str
    """Key into `lowbit.families`, as the file states it."""
    metadata: Mapping[str, Any]
    """Plain Python values; arrays of numbers are ndarrays, arrays of strings are lists of bytes."""
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """Return the stored bytes of a tensor as a read-only uint8 view of the mapped file."""

    def release(self, name: str) -> None:
        """Tell the system that a tensor's bytes are not needed in memory for now; they can still be read."""

    def release_all(self) -> None:
        """The same for the whole file, and for what lies between its tensors."""
