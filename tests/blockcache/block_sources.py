"""Sources and tables of blocks for the tests of the block cache."""

from __future__ import annotations

import errno
import threading
import time

import numpy as np

SIZE = 1_000_003
"""Of the file: a prime, so that nothing in it is aligned by accident."""


class Memory:
    """A source in memory.

    Parameters
    ----------
    content : bytes
    period : int, optional
        Repeat the content, so that a large source costs little.
    delay : float
        Seconds that a read takes.
    """

    name = "memory"

    def __init__(self, content, period=None, delay=0.0):
        self.content, self.period, self.delay = content, period, delay
        self.offsets = []  # of all reads
        self.failing = set()  # offsets that fail
        self.lock = threading.Lock()

    def read_at(self, offset, n):
        with self.lock:
            self.offsets.append(offset)
        if self.delay:
            time.sleep(self.delay)
        if offset in self.failing:
            raise OSError(errno.EIO, "the disk is broken")
        start = offset % self.period if self.period else offset
        return memoryview(self.content)[start : start + n]


def equal_blocks(n, size, source=0):
    """Return a table of n adjacent blocks."""
    starts = np.arange(n, dtype=np.int64) * size
    return np.stack([np.full(n, source), starts, np.full(n, size)], 1)
