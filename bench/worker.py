"""A process that measures one engine when it is told to: a JSON object per line in, one out.

The engines live in processes of their own, so that each can stay loaded while they take turns, and so that the peer
can come from another Python. Only the standard library is used here, for it runs in that Python too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Worker", "memory", "repeat", "serve"]


def serve(handlers: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer the requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints does not mix with the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("do")](**request)
        except Exception as error:  # the parent decides what an error means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def memory() -> dict[str, int]:
    """Memory of this process in bytes, resident now and at most; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[name].split()[0]) << 10 for key, name in (("now", "VmRSS"), ("most", "VmHWM"))}


def repeat(run: Callable[[], tuple[float, Any]], least_seconds: float) -> tuple[float, Any]:
    """Repeat a measurement until it took so many seconds; return the best time, and the result, always the same."""
    best, total, result = float("inf"), 0.0, None
    while total < least_seconds or best == float("inf"):
        seconds, again = run()
        if result is not None and again != result:
            raise RuntimeError(f"the same run gave {again!r:.80} after {result!r:.80}")
        best, total, result = min(best, seconds), total + seconds, again
    return best, result


class Worker:
    """The parent's end of a worker process; a context manager.

    Parameters
    ----------
    python : str
    script : path
        Beside this file.
    **environment
        Variables to set in addition.

    Attributes
    ----------
    facts : dict
        Room for what the worker said about the model that it loaded.
    """

    def __init__(self, python: str, script: str, **environment: str) -> None:
        self.facts: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip

    def ask(self, do: str, **parameters: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; RuntimeError if there is none or it is an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **parameters}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._process.args[1]} ended with code {self._process.wait()}")  # type: ignore[index]
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
