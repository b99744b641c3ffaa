"""A folder of blocks of keys and values, under a limit that holds for all processes that use it.

1. A file's name is the fingerprint of its model and the chain of its block, so that it is found without a list, and
   whoever else uses the folder may add and remove files at any time.
2. Files appear by a rename. Whoever writes holds the lock file, which tells how many bytes there are. Who does not get
   the lock soon leaves the block unwritten: that costs a computation, and nobody waits for a process that stands still.
3. A file's time of change is when its text was last begun, less a little for each block before it: what was not used
   for the longest goes first, and of one text the end goes before the beginning, without which it is of no use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import LowbitError

if sys.platform == "win32":
    import msvcrt

    def try_lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def try_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


NAME = re.compile(r"([0-9a-f]{32})-[0-9a-f]{40}\.(block|state)")
LOCK, UNFINISHED = "lock", "unfinished"
LOCK_SECONDS = 0.001
"""Between two tries to get the lock."""
SLACK = 32
"""The part of the limit that is freed at once when it is reached: to find the oldest files, all are looked at."""
BINARY = getattr(os, "O_BINARY", 0)


def default_folder() -> str:
    """Return the folder that ``"auto"`` stands for."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(caches, "lowbit", "kv")


class KVFile(NamedTuple):
    """A file of a folder."""

    path: str
    model: str
    """Fingerprint, in hexadecimal digits."""
    kind: str
    """``block`` or ``state``."""
    bytes: int
    used: int
    """When it was last of use, in nanoseconds since 1970."""


class KVFolder:
    """A folder of such files, of any models. Nothing is done to it before `prepare`.

    Parameters
    ----------
    path : str or path
        ``"auto"`` is `default_folder`.
    limit : int, optional
        Most bytes of all files together; None is any number.

    Attributes
    ----------
    bytes : int
        What there was when this process last looked.
    evictions : int
        Files that it removed for others.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int | None = None) -> None:
        self.path = default_folder() if path == "auto" else os.path.abspath(path)
        self.limit = limit
        self.bytes = self.evictions = 0

    def prepare(self) -> None:
        """Make the folder, count what is there, and remove what is more than the limit.

        Raises
        ------
        LowbitError
            If it cannot be written.
        """
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            with self._locked(tries=1000) as lock:
                if lock is not None:
                    self._write(UNFINISHED, 0, (memoryview(b""),))
                    self._free(lock, self.limit, time.time_ns())
        except OSError as error:
            raise LowbitError(f"{self.path}: keys and values cannot be kept there: {error.strerror or error}") from None

    def files(self) -> list[KVFile]:
        """List what is there; other files are not ours."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if name := NAME.fullmatch(entry.name):
                    with contextlib.suppress(OSError):  # it is gone
                        about = entry.stat()
                        found.append(KVFile(entry.path, name[1], name[2], about.st_size, about.st_mtime_ns))
        return found

    def clear(self) -> int:
        """Remove all files; return how many. A folder that never held any stays as it is."""
        removed = 0
        if not os.path.exists(self.path_of(LOCK)) and not self.files():
            return removed
        with self._locked(tries=1000) as lock:
            for file in self.files():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.path)
                    removed += 1
            if lock is not None:
                self._free(lock, None, 0)
        return removed

    def path_of(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.path, name)

    def add(self, name: str, used: int, parts: Iterable[Any]) -> bool:
        """Write a file, and remove others of older use if there must be room; whether it is there now.

        Raises
        ------
        OSError
            If the system refuses.
        """
        views = tuple(memoryview(part) for part in parts)
        size = sum(view.nbytes for view in views)
        with self._locked(tries=20) as lock:
            if lock is None:
                return False
            if os.path.exists(self.path_of(name)):  # another process was quicker
                return True
            said = os.read(lock, 20).strip()
            if said.isdigit():
                self.bytes = int(said)
            else:
                self._free(lock, None, 0)
            if self.limit is not None and self.bytes + size > self.limit:
                self._free(lock, self.limit - size, used)
                if self.bytes + size > self.limit:
                    return False  # all that is there is of newer use
            self._say(lock, self.bytes + size)  # first, so that a process that dies here leaves no more than it says
            try:
                self._write(name, used, views)
            except BaseException:
                self._say(lock, self.bytes - size)
                raise
        return True

    def _write(self, name: str, used: int, parts: Iterable[memoryview]) -> None:
        temporary = self.path_of(UNFINISHED)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o600)
            with open(fd, "wb") as file:
                for part in parts:
                    file.write(part)
            os.utime(temporary, ns=(used, used))
            os.replace(temporary, self.path_of(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _free(self, lock: int, most: int | None, used: int) -> None:
        """Count the bytes, and remove what was last used before `used` until there are at most `most`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path_of(UNFINISHED))  # of a process that died
        files = self.files()
        total = sum(file.bytes for file in files)
        if most is not None and total > most:
            for file in sorted(files, key=lambda file: file.used):
                if total <= most - most // SLACK or file.used >= used:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.path)
                    self.evictions += 1
                total -= file.bytes
        self._say(lock, total)

    def _say(self, lock: int, total: int) -> None:
        self.bytes = total
        os.lseek(lock, 0, os.SEEK_SET)
        os.write(lock, b"%20d" % total)

    @contextlib.contextmanager
    def _locked(self, tries: int) -> Iterator[int | None]:
        """Hold the lock file; None if others hold it all the time. It is opened anew, for a fork shares open files."""
        fd = os.open(self.path_of(LOCK), os.O_RDWR | os.O_CREAT | BINARY, 0o600)
        try:
            yield fd if _locks(fd, tries) else None
        finally:
            os.close(fd)


def _locks(fd: int, tries: int) -> bool:
    for left in range(tries - 1, -1, -1):
        try:
            try_lock(fd)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            if left:
                time.sleep(LOCK_SECONDS)
        else:
            return True
    return False
