"""Work, in a unit that a busy or a slow machine changes as much as what is measured: no test knows how fast it runs."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["LITTLE", "Work"]

LITTLE = 100_000_000
"""Steps that cost a processor of 2020 a second or two: what is quadratic in a file's size takes far more."""

A_WHILE = 0.05
"""Seconds of a block after which the machine may have become faster or slower."""


def _seconds_of_a_step() -> float:
    start, steps, seconds = time.process_time(), 0, 0.0
    while seconds < 0.01:  # a tick of coarse clocks
        for _ in range(100_000):
            pass
        steps += 100_000
        seconds = time.process_time() - start
    return seconds / steps


class Work:
    """Counts what its block costs, all threads of the process together.

    Attributes
    ----------
    steps : float
        Steps of an empty loop of Python that take as much processor time. The loop runs before the first block, and
        again after each block that took a while; the slower of the last two runs counts.
    """

    steps = float("nan")
    _step = 0.0

    def __enter__(self) -> Work:
        Work._step = Work._step or _seconds_of_a_step()
        self._start = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        seconds = time.process_time() - self._start
        before = Work._step
        if seconds > A_WHILE:  # the loop itself takes 0.01 s: too long for the thousands of short blocks of a fuzzer
            Work._step = _seconds_of_a_step()
        self.steps = seconds / max(before, Work._step)
