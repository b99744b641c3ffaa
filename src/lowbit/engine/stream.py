"""What a caller holds of a request: its pieces, its result, and the way to end it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, NoReturn

from ..errors import LowbitError
from .driving import Driven
from .sequence import Request, State
from .text import Generation, TokenLogprob


class Stream:
    """A text that is being made: an iterator over its pieces, here or in asyncio, where `await` gives all of it.

    Every piece is valid UTF-8. A stream that is dropped is cancelled.
    """

    def __init__(self, driver: Driven, request: Request) -> None:
        self._driver, self._request = driver, request
        self.read = 0
        """Tokens that there are with the pieces that were read."""

    @property
    def state(self) -> State:
        """How far it is."""
        return self._request.state

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        request = self._request
        if not request.pieces:
            self._driver.wait(lambda: bool(request.pieces) or request.over)
        if request.pieces:
            return self._next_piece()
        self._raise()
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        request = self._request
        await self._until(lambda: bool(request.pieces) or request.over)
        if request.pieces:
            return self._next_piece()
        self._raise()
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, Generation]:
        """Wait for the end as `result` does, without keeping the event loop."""
        return self._finish().__await__()

    async def ready(self) -> None:
        """Wait until its grammar, if it has one, is compiled.

        Raises
        ------
        ConstraintError
            If that cannot be done.
        """
        await self._until(lambda: self._request.state is not State.COMPILING)
        self._raise()

    async def progress(self) -> AsyncIterator[tuple[int, float]]:
        """Yield how many tokens of the prompt were read after so many seconds, if that was asked for: first those that
        were known, then after each step."""
        request, seen, steps = self._request, 0, self._request.progress

        def more() -> bool:
            return request.over or (steps is not None and len(steps) > seen)

        while steps is not None and (not seen or steps[seen - 1][0] < len(request.ids)):
            await self._until(more)
            if len(steps) == seen:
                return
            yield steps[seen]
            seen += 1

    async def _finish(self) -> Generation:
        self._request.collecting = True
        self._driver.tell()
        await self._until(lambda: self._request.over)
        return self.result()

    async def _until(self, ready: Callable[[], bool]) -> None:
        if ready():
            return
        import asyncio  # which who calls this has imported, and others do without

        driver, loop, arrived = self._driver, asyncio.get_running_loop(), asyncio.Event()
        driver.check_process()

        def listen() -> None:
            if ready():
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(arrived.set)

        with driver.changed:
            driver.listeners.add(listen)
        try:
            listen()
            await arrived.wait()
        finally:
            with driver.changed:
                driver.listeners.discard(listen)

    def so_far(self, start: int = 0, end: int | None = None) -> tuple[list[int], list[TokenLogprob]]:
        """Return the tokens made since the first `start`, and their log-probabilities if they were asked for."""
        return self._request.so_far(start, end)

    def _next_piece(self) -> str:
        request = self._request
        full = request.held_back
        piece, self.read = request.next_piece()
        if full:
            self._driver.tell()
        return piece

    def result(self) -> Generation:
        """Wait for the end, and return all of it; pieces need not have been read.

        Raises
        ------
        LowbitError
            If it failed, or was cancelled.
        """
        request = self._request
        request.collecting = True
        self._driver.wait(lambda: request.over)
        self._raise()
        if request.state is State.CANCELLED:
            raise LowbitError("the request was cancelled")
        return request.result()

    def cancel(self) -> None:
        """End it at the next step; what was made stays readable. Does nothing if it has ended."""
        let_go(self._driver, [self._request])

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled or copied: whoever drops one cancels its text")

    def __del__(self) -> None:
        if not self._request.over:
            self._request.cancelled = True

    def _raise(self) -> None:
        error = self._request.error
        if error is not None:
            raise error if isinstance(error, LowbitError) else type(error)(*error.args) from error


def let_go(driver: Driven, requests: list[Request]) -> None:
    """Cancel what has not ended, also what a signal left in the queue without a stream."""
    left = [request for request in requests if not request.over]
    for request in left:
        request.cancelled = True
    if left:
        driver.settle()
