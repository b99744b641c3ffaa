"""Mapping a file into memory, with one clear error for everything that is not a readable, non-empty file."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from lowbit.errors import FormatError

__all__ = ["map_file"]


def map_file(path: str) -> mmap.mmap:
    """Map a whole file, read-only.

    The size is taken once, from the open file. A file that is cut shorter by another process while it is mapped
    ends this process with SIGBUS when the lost part is touched: replace model files by renaming, never in place.

    Raises
    ------
    FormatError
        If there is no such file, it is no regular file, it is empty, or the system refuses to map it.
    """
    try:
        # Asked before opening: opening a pipe would wait for a writer.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise FormatError(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise FormatError(f"{path}: is empty")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file") from error
    except (OSError, OverflowError) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
