"""Runs a batch: lines go to whoever answers them, so many at a time, and answers to the files, in groups."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from ..errors import LowbitError
from ..serve.http import parse_object
from ..serve.problems import Problem
from .answering import Answer, failure
from .asked import Asked
from .journal import Journal
from .lines import Lines
from .progress import Progress

SYNC_SECONDS = 1.0
"""Between two groups: so much work is done again after a crash."""


class Outcome(NamedTuple):
    """How a run ended."""

    signal: int
    """The one that stopped it; 0 if all lines are done."""
    lost: BaseException | None
    """What else did."""


def lines_left(lines: Lines, answers: Journal, failures: Journal, header: dict[str, Any]) -> np.ndarray:
    """Return the indices of the lines that neither file has.

    Raises
    ------
    LowbitError
        If a file belongs to another run, or has answers to other lines.
    """
    answered, failed = answers.resume(header), failures.resume(header)
    strange = np.flatnonzero(~np.isin(answered, lines.keys))
    if len(strange):
        raise LowbitError(f"{answers.path}: {len(strange)} answers, the first in line {strange[0] + 2}, are to lines "
                          f"that {lines.path} does not have, or has changed since")  # fmt: skip
    if len(np.unique(answered)) != len(answered):
        raise LowbitError(f"{answers.path} has two answers to one line")
    return np.flatnonzero(~np.isin(lines.keys, np.concatenate([answered, failed])))


def run(
    lines: Lines, order: np.ndarray, answers: Journal, failures: Journal,
    answer: Callable[[int, int, Asked], Awaitable[Answer]], width: int, progress: Progress,
) -> Outcome:  # fmt: skip
    """Answer lines, until all of them are done or a signal says stop. Whatever ends it, what was answered is kept.

    Parameters
    ----------
    lines : Lines
    order : ndarray of int
        Indices of lines.
    answers, failures : Journal
    answer : callable
        Takes the key of a line, its number in the file, and what it asks.
    width : int
        Lines that are asked at a time.
    progress : Progress
    """
    return asyncio.run(_Run(lines, order, answers, failures, answer, progress).run(width))


class _Run:
    def __init__(
        self, lines: Lines, order: np.ndarray, answers: Journal, failures: Journal,
        answer: Callable[[int, int, Asked], Awaitable[Answer]], progress: Progress,
    ) -> None:  # fmt: skip
        self._lines, self._indices = lines, iter(order.tolist())
        self._answers, self._failures, self._answer, self._progress = answers, failures, answer, progress
        self._ended = asyncio.Event()

    async def run(self, width: int) -> Outcome:
        with _signals() as stopped:
            workers = [asyncio.ensure_future(self._work()) for _ in range(width)]
            everything, writer = asyncio.gather(*workers), asyncio.ensure_future(self._write())
            ends: set[asyncio.Future[Any]] = {everything, writer, stopped}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            everything.cancel()
            found = await asyncio.gather(*workers, return_exceptions=True)
            self._ended.set()
            errors = [*(await asyncio.gather(writer, everything, return_exceptions=True)), *found]
            lost = next(
                (e for e in errors if e is not None and not isinstance(e, (list, asyncio.CancelledError))), None
            )
            return Outcome(stopped.result() if stopped.done() else 0, lost)

    async def _work(self) -> None:
        for index in self._indices:
            got = await self._one(index)
            (self._failures if got.failed else self._answers).add(got.line)
            self._progress.note(got.failed, got.tokens)

    async def _one(self, index: int) -> Answer:
        key, number = int(self._lines.keys[index]), self._lines.number(index)
        data = self._lines.data(index)
        try:
            asked = self._lines.read(index, data)
        except Problem as problem:
            await asyncio.sleep(0)  # many of these in a row must not keep the signals and the writer waiting
            return failure(key, number, _id_in(data), problem)
        return await self._answer(key, number, asked)

    async def _write(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), SYNC_SECONDS)
            last = self._ended.is_set()
            for journal in (self._answers, self._failures):
                group = journal.take()
                if group:
                    await asyncio.to_thread(journal.write, group)
            self._progress.show()
            if last:
                return


def _id_in(data: bytes) -> str | None:
    """Return the id of a line that is wrong, if it can be made out."""
    with contextlib.suppress(Problem):
        found = parse_object(data).get("custom_id")
        return found if isinstance(found, str) else None
    return None


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Future[int]]:
    """Yield what the first signal to stop fulfils; a second one is not held up."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        loop.call_soon_threadsafe(stopped.set_result, number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
