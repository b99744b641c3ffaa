"""The lines of a batch: read once from beginning to end, and then one by one in the order in which they are answered.

Of each line some numbers are kept, and never its text, so that a file may be as large as the disk.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from ..errors import LowbitError
from ..serve.problems import Problem
from .asked import Asked, beginning, digest_of, key_of, read_line

STEPS = (128, 512, 2048, 8192, 32768)
"""Characters of a prompt's beginning that are compared: lines that share the first 2048 come one after the other, and
among them those that share the first 8192. A block of keys and values is 64 tokens, some 250 characters."""


class Lines:
    """A file of lines.

    Parameters
    ----------
    path : str
    most : int
        Bytes of a line; a longer one fails.

    Attributes
    ----------
    keys : ndarray of uint64
        The number by which each line's answer is known.

    Raises
    ------
    OSError
        If the file cannot be read.
    """

    def __init__(self, path: str, most: int) -> None:
        self.path, self._most = path, most
        self._file = open(path, "rb")
        self._starts, keys, ids, prefixes = array("Q"), array("Q"), array("Q"), array("Q")
        self._numbers = array("Q")  # of the lines that are not empty, from 1 on
        for number, (start, data) in enumerate(self._read_all(), 1):
            if not data.strip():
                continue
            self._starts.append(start)
            self._numbers.append(number)
            try:
                asked = self._checked(data)
            except Problem:  # which is found again when its turn comes
                keys.append(digest_of(b"%d %s" % (number, data)))
                ids.append(keys[-1])
                prefixes.extend([0] * len(STEPS))
            else:
                keys.append(key_of(asked))
                ids.append(digest_of(asked.custom_id.encode()))
                prefixes.extend(_prefixes(beginning(asked)))
        self.keys = np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)
        self._prefixes = np.frombuffer(prefixes, np.uint64).reshape(-1, len(STEPS)) if keys else np.empty((0, 1))
        self._firsts: dict[int, int] = {}
        """Lines whose id was there before, and the number of the line that had it."""
        self._find_twins(np.frombuffer(ids, np.uint64) if ids else self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def number(self, index: int) -> int:
        """Return where in the file a line is, from 1 on."""
        return self._numbers[index]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def order(self, how: str, left: np.ndarray) -> np.ndarray:
        """Return the indices of `left` in the order in which they are best answered."""
        if how == "random":
            return np.random.default_rng(random.getrandbits(64)).permutation(left)
        if how == "prefix" and len(left):
            # The last key counts most: beginnings of 128 characters, then those of 512 among them, and so on.
            return left[np.lexsort([left, *self._prefixes[left].T[::-1]])]
        return left

    def data(self, index: int) -> bytes:
        """Return a line's bytes.

        Raises
        ------
        LowbitError
            If the file has changed since it was read.
        """
        self._file.seek(self._starts[index])
        data = self._file.readline(self._most + 1)
        if int(self.keys[index]) != self._key(index, data):
            raise LowbitError(f"{self.path}: line {self.number(index)} was changed while the batch was running")
        return data

    def read(self, index: int, data: bytes) -> Asked:
        """Return what a line asks.

        Raises
        ------
        Problem
            If it cannot be answered, whatever the model.
        """
        asked = self._checked(data)
        if index in self._firsts:
            raise Problem(400, f"custom_id {asked.custom_id!r} is that of line {self._firsts[index]}",
                          param="custom_id", code="duplicate_id")  # fmt: skip
        return asked

    # --- reading ---

    def _checked(self, data: bytes) -> Asked:
        if len(data) > self._most:
            raise Problem(400, f"the line has more than {self._most} bytes", code="too_large")
        return read_line(data)

    def _key(self, index: int, data: bytes) -> int:
        try:
            asked = self._checked(data)
        except Problem:
            return digest_of(b"%d %s" % (self.number(index), data))
        return _twin_key(self.number(index), asked) if index in self._firsts else key_of(asked)

    def _read_all(self) -> Iterator[tuple[int, bytes]]:
        """Yield where each line begins, and its first bytes."""
        start = 0
        while data := self._file.readline(self._most + 1):
            yield start, data
            start += len(data)
            while data and not data.endswith(b"\n"):  # what is too long is skipped, in parts
                data = self._file.readline(self._most + 1)
                start += len(data)

    def _find_twins(self, ids: np.ndarray) -> None:
        """Note the lines whose id was there before, and give them keys of their own."""
        by_id = np.argsort(ids, kind="stable")
        again = np.flatnonzero(ids[by_id[1:]] == ids[by_id[:-1]]) + 1
        keys, first = self.keys.copy(), 0
        for place in again.tolist():
            if ids[first] != ids[by_id[place]]:
                first = int(by_id[place - 1])
            before, asked, index = self._asked(first), self._asked(int(by_id[place])), int(by_id[place])
            if before is not None and asked is not None and before.custom_id == asked.custom_id:
                self._firsts[index] = self.number(first)
                keys[index] = _twin_key(self.number(index), asked)
        self.keys = keys

    def _asked(self, index: int) -> Asked | None:
        self._file.seek(self._starts[index])
        try:
            return self._checked(self._file.readline(self._most + 1))
        except Problem:
            return None


def _twin_key(number: int, asked: Asked) -> int:
    return digest_of(f"{number} {key_of(asked)}".encode())


def _prefixes(text: str) -> list[int]:
    digest, start, found = blake2b(digest_size=8), 0, []
    for end in STEPS:
        digest.update(text[start:end].encode("utf-8", "surrogatepass"))
        found.append(int.from_bytes(digest.digest(), "little"))
        start = end
    return found
