"""Measures what a file costs: work, and memory in the way the system counts it, native code included.

The file is loaded by another process, which has loaded valid files of all kinds before, so that imports and libraries
do not count. Memory is the peak of the resident set over what it was just before: whatever Python, NumPy, SentencePiece
and tokenizers take and touch, and the pages of the mapped file that are looked at. Memory that is reserved and never
touched does not count. A process that crashes fails the file that it was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Loader", "can_measure"]

SECONDS_UNTIL_KILLED = 600
"""What takes so long never ends."""


def can_measure() -> bool:
    """Whether this system tells the peak of a process since a moment, as Linux does."""
    return os.access("/proc/self/clear_refs", os.W_OK)


class Loader:
    """The other process."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def load(self, target: str, path: Path) -> dict[str, Any]:
        """Load a file and tell what it cost.

        Parameters
        ----------
        target : str
            A row of `targets.TARGETS`.
        path : Path
            The file, or the folder.

        Returns
        -------
        dict
            ``error``, name and text of the exception, or None; ``steps`` of `work.Work`; ``bytes`` of memory.
        """
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._child.stdin
        assert self._child.stdout
        try:
            self._child.stdin.write(json.dumps([target, str(path)]) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            code = self._child.wait()
            self._child = None
            raise AssertionError(f"the process that loaded {path} ended with {code}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        """End the other process."""
        if self._child is not None:
            self._child.communicate()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10


def _measured(consume: Any, path: Path) -> dict[str, Any]:
    from work import Work

    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier files left must not be taken again uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before, error = _status("VmRSS"), None
    with Work() as work:
        try:
            consume(path)
        except Exception as caught:
            error = [type(caught).__name__, str(caught)]
    return {"error": error, "steps": work.steps, "bytes": _status("VmHWM") - before}


def main() -> None:
    """Answer the files that come on standard input."""
    import signal

    import targets

    for target in targets.TARGETS.values():
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            targets.check(target, Path(folder), target.valid[0])
    for line in sys.stdin:
        name, path = json.loads(line)
        signal.alarm(SECONDS_UNTIL_KILLED)
        print(json.dumps(_measured(targets.TARGETS[name].consume, Path(path))), flush=True)


if __name__ == "__main__":
    main()
