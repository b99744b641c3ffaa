"""Work, in a unit that a busy or a slow machine changes as much as what is measured: no test knows how fast it runs."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["LITTLE", "Work"]

LITTLE = 100_000_000
"""Steps that cost a processor of 2020 a second or two: what is quadratic in a file's size takes far more."""


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
        Steps of an empty loop of Python that take as much processor time. The loop runs just before and just after the
        block, and the slower run counts.
    """

    steps = float("nan")

    def __enter__(self) -> Work:
        self._step = _seconds_of_a_step()
        self._start = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        seconds = time.process_time() - self._start
        self.steps = seconds / max(self._step, _seconds_of_a_step())
