"""Keys and values that were computed once, on disk: what a later process, or a pool that is full, reads instead.

A file holds one full block of the pool, or the recurrent state behind one. Nothing is believed but a whole file of this
version, model, kind, chain and size whose checksum is right; all else is removed, and computed anew.

Blocks are written when they become full, by the thread that computes: some milliseconds of those that 64 tokens take
(docs/kv-disk.md).
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import warnings
import zlib
from importlib.metadata import version
from typing import Any

from .._kernels.kvpool import KVPool, blake2b
from ..formats.base import ModelFile
from ..plan import ModelPlan
from .kvfolder import KVFolder
from .memory import parse_size
from .shared import files_of

MAGIC, VERSION = b"lowbitKV", 2
"""The version is raised, too, when lowbit computes other bits than before within a version of its own."""
NAME, CHECKSUM = 96, 4
HEADER = struct.Struct(f"<8sIIQ16s20s{NAME}s")
"""Magic, version, kind, bytes of the payload, fingerprint, chain, name of the model. A checksum follows, then the
payload."""
KINDS = {"block": 0, "state": 1}
DEFAULT_BYTES = 4 << 30
STEP_NS = 1000
"""Between the times of two blocks of one text."""
SAMPLE, SAMPLES = 4096, 64
"""Bytes, and places in each of a model's files, that its fingerprint reads."""


def fingerprint(file: ModelFile, plan: ModelPlan, *settings: object) -> bytes:
    """Return 16 bytes for all that keys and values depend on beside the tokens.

    That is lowbit's version, the plan, the settings that change weights or the way of computing, and the weights'
    files: name, size, time of change, and samples from beginning to end. To read them whole would take longer than many
    a prompt; the time is there for changes between the samples. So a copy is another model, unless it keeps the time of
    its original.
    """
    digest = blake2b(digest_size=16, person=b"lowbit model")
    digest.update(repr((VERSION, version("lowbit"), sys.byteorder, plan, settings)).encode())
    for path in files_of(file):
        digest.update(os.fsencode(f"{os.path.basename(path)} {os.stat(path).st_mtime_ns}\n"))
        sample(path, digest)
    return digest.digest()


def sample(path: str, digest: blake2b) -> None:
    """Put the size of a file, and samples from its beginning to its end, into a digest."""
    with open(path, "rb", buffering=0) as data:
        size = os.fstat(data.fileno()).st_size
        digest.update(f"{size}\n".encode())
        for i in range(SAMPLES):
            data.seek(max(size - SAMPLE, 0) * i // (SAMPLES - 1))
            digest.update(data.read(SAMPLE))


def kv_folder(path: str | os.PathLike[str] | None, limit: str | int | None) -> KVFolder | None:
    """Return the folder that `load` was asked for, prepared; None if it was asked for none."""
    if path is None:
        if limit is not None:
            raise ValueError("kv_disk_bytes is the size of a kv_disk, of which there is none")
        return None
    folder = KVFolder(path, DEFAULT_BYTES if limit is None else parse_size(limit, "kv_disk_bytes"))
    folder.prepare()
    return folder


def name_in(path: str) -> str:
    """Return the name of the model in a file's header; empty if it has none."""
    with contextlib.suppress(OSError, struct.error), open(path, "rb", buffering=0) as file:
        magic, *_, name = HEADER.unpack(file.read(HEADER.size))
        if magic == MAGIC:
            return str(name.rstrip(b"\0").decode("utf-8", "replace"))
    return ""


class KVDisk:
    """What a `KVPool` writes and reads of a folder.

    Parameters
    ----------
    folder : KVFolder
        Prepared, and with a limit.
    model : bytes
        See `fingerprint`.
    name : str
        Of the model, for people.
    pool : KVPool

    Raises
    ------
    ValueError
        If not even one block has room.
    """

    def __init__(self, folder: KVFolder, model: bytes, name: str, pool: KVPool) -> None:
        self.folder, self._model, self._name = folder, model, name.encode("utf-8", "replace")[:NAME]
        self._read = self._written = self._damaged = self._refused = 0
        self._full_since = 0  # what is of older use finds no room
        self._off: str | None = None
        least = max(pool.block_bytes, pool.state_bytes) + HEADER.size + CHECKSUM
        if folder.limit is not None and folder.limit < least:
            raise ValueError(f"kv_disk_bytes must be at least {least} for this model, not {folder.limit}")

    def holds(self, kind: str, chain: bytes) -> bool:
        """Tell whether there is a file, whatever is in it."""
        return os.path.exists(self._path(kind, chain))

    def put(self, kind: str, chain: bytes, began: int, index: int, payload: memoryview) -> None:
        """Write block `index` of a text that began at a time in nanoseconds, or the state behind it, if it is new.

        If the system refuses, nothing is written any more.
        """
        used, path = began - STEP_NS * index, self._path(kind, chain)
        if self._off is not None or os.path.exists(path):
            return
        if used <= self._full_since:
            self._refused += 1
            return
        header = self._header(kind, chain, payload.nbytes)
        try:
            written = self.folder.add(os.path.basename(path), used, (header, _checksum(header, payload), payload))
        except OSError as error:
            self._off = error.strerror or str(error)
            warnings.warn(
                f"{self.folder.path}: keys and values are not written any more: {self._off}", RuntimeWarning,
                stacklevel=2,
            )  # fmt: skip
            return
        self._written += written
        self._refused += not written
        if not written and self.folder.limit is not None and self.folder.bytes + payload.nbytes > self.folder.limit:
            self._full_since = used

    def get(self, kind: str, chain: bytes, into: memoryview) -> bool:
        """Read a file; whether it can be believed. If not, what is in `into` is rubbish."""
        path, header = self._path(kind, chain), self._header(kind, chain, into.nbytes)
        try:
            with open(path, "rb", buffering=0) as file:
                found, checksum, at = file.read(HEADER.size), file.read(CHECKSUM), 0
                if found[:-NAME] == header[:-NAME]:
                    while n := file.readinto(into[at:]):
                        at += n
                    if at == into.nbytes and not file.read(1) and checksum == _checksum(found, into):
                        self._read += 1
                        return True
        except FileNotFoundError:  # somebody removed it
            return False
        except OSError:
            pass
        self._damaged += 1
        with contextlib.suppress(OSError):
            os.unlink(path)
        return False

    def expect(self, kind: str, chain: bytes) -> None:
        """Let the system read a file while others are looked at."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), open(self._path(kind, chain), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def touch(self, chain: bytes, began: int, index: int) -> None:
        """Note that a block is of use to a text that began just now, wherever it was found."""
        used = began - STEP_NS * index
        for kind in KINDS:
            with contextlib.suppress(OSError):
                os.utime(self._path(kind, chain), ns=(used, used))

    def stats(self) -> dict[str, Any]:
        """Return what became of blocks and states.

        Returns
        -------
        dict
            ``limit`` and ``bytes``: of the folder, the latter as last seen; ``read``, ``written``; ``refused``: not
            written, for want of room or because another process was writing; ``evictions``: files removed for newer
            ones; ``damaged``: files that were not believed; ``off``: why nothing is written any more, or None.
        """
        return {
            "limit": self.folder.limit, "bytes": self.folder.bytes, "read": self._read, "written": self._written,
            "refused": self._refused, "evictions": self.folder.evictions, "damaged": self._damaged, "off": self._off,
        }  # fmt: skip

    def _path(self, kind: str, chain: bytes) -> str:
        return self.folder.path_of(f"{self._model.hex()}-{chain.hex()}.{kind}")

    def _header(self, kind: str, chain: bytes, size: int) -> bytes:
        return HEADER.pack(MAGIC, VERSION, KINDS[kind], size, self._model, chain, self._name)


def _checksum(header: bytes, payload: memoryview) -> bytes:
    """CRC-32: against what happens to disks. Who may write the folder could fit any checksum."""
    return zlib.crc32(payload, zlib.crc32(header)).to_bytes(CHECKSUM, "little")
