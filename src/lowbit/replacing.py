"""Output files are whole or not there: written under another name, and renamed when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import BinaryIO


class Replacing:
    """A file to write, which gets its name, or takes the place of one of this name, when it is complete.

    As a context manager it gives the file; an exception in the block removes what was written. What is no regular file
    (a pipe, ``/dev/stdout``) cannot be replaced, and is written as it comes.

    Raises
    ------
    OSError
        With the name of `path`, wherever it occurs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._target = os.path.realpath(self.path)  # so that a link stays one
        self._temporary: str | None = None
        if os.path.lexists(self._target) and not os.path.isfile(self._target):
            self.file: BinaryIO = open(self.path, "wb")
            return
        folder, name = os.path.split(self._target)
        # A name of our own making: `tempfile` would give the finished file the mode 0600, and `secrets` loads OpenSSL.
        temporary = os.path.join(folder, f".{name[:200]}.{os.urandom(4).hex()}.tmp")
        with self._named():
            self.file = open(temporary, "xb")
        self._temporary = temporary

    def commit(self) -> None:
        """Give the file its name."""
        try:
            with self._named():
                if self._temporary is None:
                    self.file.close()
                    return
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                if os.path.exists(self._target):
                    shutil.copymode(self._target, self._temporary)
                os.replace(self._temporary, self._target)
        except BaseException:
            self.abort()
            raise
        self._temporary = None

    def abort(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):  # what is still buffered may not fit on the disk either
            self.file.close()
        if self._temporary is not None:
            os.unlink(self._temporary)
            self._temporary = None

    def __enter__(self) -> BinaryIO:
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if error is None:
            self.commit()
            return
        self.abort()
        if isinstance(error, OSError) and error.filename is None:  # a full disk, say
            error.filename = self.path

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Let no other name out in an error."""
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = self.path, None
            raise
