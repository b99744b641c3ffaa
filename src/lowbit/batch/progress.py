"""How far a batch is: a line on a terminal that changes, or now and then a line in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 60.0
"""Between two reports."""


class Progress:
    """Counts answers, and says what they say about the time left.

    Parameters
    ----------
    total, done : int
        Lines, and those that an earlier run has answered.
    quiet : bool
    out : file, optional
        Standard error if not given.
    """

    def __init__(self, total: int, done: int, quiet: bool = False, out: TextIO | None = None) -> None:
        self.total, self.before = total, done
        self.lines = self.failed = self.tokens = 0
        self._out = sys.stderr if out is None else out
        self._terminal = self._out.isatty()
        self._every = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        self._quiet, self._width = quiet, 0
        self.start = self._last = time.monotonic()
        if done and not quiet:
            self._out.write(f"lowbit: {done:,} of {total:,} lines are done already\n")

    def note(self, failed: bool, tokens: int) -> None:
        """Count a line."""
        self.lines += 1
        self.failed += failed
        self.tokens += tokens
        self.show()

    def show(self) -> None:
        """Report, if it is time."""
        now = time.monotonic()
        if not self._quiet and now - self._last >= self._every:
            self._last = now
            self._write(self.text(now))

    def text(self, now: float) -> str:
        """Return the report."""
        seconds, done = max(now - self.start, 1e-9), self.before + self.lines
        parts = [f"{done:,} of {self.total:,} lines"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts.append(self._rate(seconds))
        if self.lines:
            parts.append(f"{span((self.total - done) * seconds / self.lines)} left")
        return ", ".join(parts)

    def summary(self) -> str:
        """Return the last report."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{self.lines:,} lines in {span(seconds)}, {self._rate(seconds)}"

    def _rate(self, seconds: float) -> str:
        return f"{self.lines / seconds:,.1f} lines/s, {self.tokens / seconds:,.0f} tokens/s"

    def _write(self, text: str) -> None:
        if self._terminal:
            self._out.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        else:
            self._out.write(f"lowbit: {text}\n")
        self._out.flush()

    def end(self) -> None:
        """Leave the line on the terminal empty."""
        if self._width:
            self._out.write(f"\r{' ' * self._width}\r")
            self._out.flush()


def span(seconds: float) -> str:
    """Return a time for people: 12 s, 3 min, 5 h 20 min, 4 days 7 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"
