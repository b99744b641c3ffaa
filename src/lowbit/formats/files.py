"""What the system answers when a file cannot be read, as the errors that lowbit raises."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lowbit.errors import FormatError, LowbitError, MissingFileError, UnsupportedModelError


@contextmanager
def named(*paths: str | os.PathLike[str] | None) -> Iterator[None]:
    """Begin every complaint with the first of these paths, unless it begins with one of them, or a file in it."""
    known = [os.fsdecode(path) for path in paths if path is not None]
    begun = tuple(path.rstrip(os.sep) + mark for path in known for mark in (":", os.sep))
    try:
        yield
    except (FormatError, UnsupportedModelError) as error:
        if str(error).startswith(begun):
            raise
        raise type(error)(f"{known[0]}: {error}") from None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Let out FormatError where the system refuses to read a file, and MemoryError where it has no memory for it.

    Parameters
    ----------
    name : str
        The file, for messages.
    """
    try:
        yield
    except LowbitError:  # of which one is a FileNotFoundError
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: no such file", name) from error
    except OSError as error:
        raise out_of_memory(error) or FormatError(f"{name}: cannot be read ({error.strerror or error})") from error


def out_of_memory(error: OSError) -> MemoryError | None:
    """Return the MemoryError that an OSError really is, if it is one."""
    return MemoryError(error.strerror) if error.errno == errno.ENOMEM else None
