"""Mapping a file into memory, and reading tensors from the map."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats.base import Closing, TensorInfo
from lowbit.formats.files import reading


def map_file(path: str) -> mmap.mmap:
    """Map a whole file, read-only.

    The size is taken once, from the open file. A file that is cut shorter by another process while it is mapped
    ends this process with SIGBUS when the lost part is touched: replace model files by renaming, never in place.

    Raises
    ------
    FormatError
        If there is no such file, it is no regular file, it is empty, or the system refuses to map it.
    MemoryError
        If there is no memory for it.
    """
    with reading(path):
        # Asked before opening: opening a pipe would wait for a writer.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise FormatError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise FormatError(f"{path}: is empty")
            try:
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            except OverflowError as error:
                raise FormatError(f"{path}: cannot be read ({error})") from error


class MappedFile(Closing):
    """A container whose tensors lie as they are in the mapped file; a reader adds what it finds in the header."""

    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._map = map_file(self.path)
        self._bytes: np.ndarray | None = np.frombuffer(self._map, np.uint8)

    def read(self, name: str) -> np.ndarray:
        """Return the stored bytes of a tensor as a read-only uint8 view of the mapped file.

        Raises
        ------
        FormatError
            If the file has no such tensor.
        """
        if self._bytes is None:
            raise ValueError(f"{self.path}: is closed")
        info = self._info(name)
        return self._bytes[info.offset : info.offset + info.nbytes]

    def locate(self, name: str) -> tuple[str, int]:
        """Return the path of the file that holds a tensor, and where in it the tensor begins."""
        return self.path, self._info(name).offset

    def release(self, name: str) -> None:
        """Tell the system that a tensor's bytes are not needed in memory for now; they can still be read."""
        info = self._info(name)
        first, last = info.offset // mmap.PAGESIZE + 1, (info.offset + info.nbytes) // mmap.PAGESIZE
        if self._bytes is not None and last > first and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def release_all(self) -> None:
        """The same for the whole file: a page that was touched brings some beside it into memory."""
        if self._bytes is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the map; it is unmapped as soon as no view and no metadata refers to it."""
        self._bytes = None

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path}: has no tensor {name!r}")
        return info
