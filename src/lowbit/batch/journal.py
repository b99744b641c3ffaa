"""A file of lines that only grows: what is in it when the machine stops is whole, but for a last line that is cut off.

1. Lines are written in groups, and a group is on the disk before the next one is begun.
2. Whoever writes holds a lock on the file.
3. The first line is the header of the run, so that no other run goes on with the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from array import array
from typing import Any

import numpy as np

from ..errors import LowbitError
from ..loading.kvfolder import BINARY, try_lock
from .header import check_header

CHUNK = 1 << 20
PREFIX = "batch_req_"
_BEGINNING = re.compile(rb'\{"id":"batch_req_([0-9a-f]{16})",')


class Journal:
    """A file of answers.

    Parameters
    ----------
    path : str
    create : bool
        Make it now if it is not there; otherwise, when the first line comes.

    Raises
    ------
    OSError
        If it cannot be written.
    LowbitError
        If another process writes to it.
    """

    def __init__(self, path: str, create: bool = True) -> None:
        self.path = path
        self._fd = -1
        self._size = 0
        self._header = b""
        self._pending: list[bytes] = []
        self.lines = 0
        """Answers in the file."""
        if create or os.path.exists(path):
            self._open()

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o666)
        try:
            try_lock(self._fd)
        except OSError:
            self.close()
            raise LowbitError(f"{self.path}: another process writes to it") from None
        _sync_folder(self.path)

    def begun(self) -> dict[str, Any]:
        """Return the header of a run that has begun; empty if none has."""
        if self._fd >= 0:
            with contextlib.suppress(ValueError, TypeError, KeyError), open(self._fd, "rb", closefd=False) as file:
                found = json.loads(file.readline(CHUNK))["lowbit_batch"]
                return found if isinstance(found, dict) else {}
        return {}

    def resume(self, header: dict[str, Any]) -> np.ndarray:
        """Begin the file, or check that it belongs to the run of `header`, and cut off what is no whole line.

        Returns
        -------
        ndarray of uint64
            The keys of the lines that are in it.

        Raises
        ------
        LowbitError
            If it belongs to another run, or is no such file.
        """
        self._header = json.dumps({"lowbit_batch": header}, separators=(",", ":")).encode() + b"\n"
        if self._fd < 0:
            return np.empty(0, np.uint64)
        keys = self._read(header)
        if os.fstat(self._fd).st_size != self._size:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        if self._size == 0:
            self._write(self._header)
        self.lines = len(keys)
        return np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)

    def _read(self, header: dict[str, Any]) -> array[int]:
        """Find the whole lines, and where they end."""
        keys, torn = array("Q"), 0
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            first = file.readline(CHUNK)
            if not first.endswith(b"\n") and (self._header.startswith(first) or not first.strip(b"\0")):
                return keys  # it was made, and no more
            check_header(self.path, first, header)
            self._size = len(first)
            number = 1
            for line in file:
                number += 1
                found = _BEGINNING.match(line)
                if found is None or not line.endswith(b"}\n"):
                    torn = torn or number
                elif torn:
                    raise LowbitError(f"{self.path}: line {torn} was damaged, and whole ones follow it")
                else:
                    keys.append(int(found[1], 16))
                    self._size += len(line)
        return keys

    def add(self, line: bytes) -> None:
        """Take a line, for the next group."""
        self._pending.append(line)

    def take(self) -> list[bytes]:
        """Return the next group."""
        group, self._pending = self._pending, []
        return group

    def write(self, group: list[bytes]) -> None:
        """Write a group, and return when it is on the disk.

        Raises
        ------
        OSError
            If that fails; the file then has whole lines only.
        """
        if self._fd < 0:
            self._open()
            self._write(self._header)
        self._write(b"".join(group))
        self.lines += len(group)

    def _write(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise OSError(error.errno, error.strerror, self.path) from None
        self._size += len(data)

    def close(self) -> None:
        """Close it; what was not written is forgotten."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync_folder(path: str) -> None:
    """Put a new file's name on the disk, where the system can."""
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
