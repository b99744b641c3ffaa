"""The texts that one request gets, several at a time if it asked for several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType

from ..engine import Generation, Stream, TokenLogprob


@dataclass(frozen=True)
class Piece:
    """What came of one text since the last piece of it."""

    index: int
    text: str
    start: int
    """Tokens that came before."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    result: Generation | None = None
    """All of it, in the last piece."""
    progress: tuple[int, float] | None = None
    """How much of the prompt was read, and after how many seconds: in pieces without text."""


class Answers:
    """Streams of one request; whoever leaves the `with` has let go of all of them. `note` is told of each that ends."""

    def __init__(self, note: Callable[[Generation], None] = lambda result: None) -> None:
        self.streams: list[Stream] = []
        self._note = note
        self._readers: list[asyncio.Task[None]] = []

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Let go of all that has not ended."""
        for reader in self._readers:
            reader.cancel()
        for stream in self.streams:
            stream.cancel()

    async def ready(self) -> None:
        """Wait until it is known that what the texts are held to can be compiled; raises where it cannot."""
        for stream in self.streams:
            await stream.ready()

    def so_far(self, index: int) -> Generation:
        """Return what there is of a text by now."""
        return self.streams[index]._request.result()

    async def all(self) -> list[Generation]:
        """Wait for the ends."""
        results = [await stream for stream in self.streams]
        for result in results:
            self._note(result)
        return results

    async def pieces(self, seconds: float, ping: Callable[[], Awaitable[None]]) -> AsyncIterator[Piece]:
        """Yield pieces as they come, and ping each time so many seconds have passed.

        No more than a few pieces are read ahead of whoever takes them, so that the engine knows a slow reader.
        """
        # Nothing here is a wait_for: that of Python 3.11 forgets that it was cancelled where a piece is there already.
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(1)
        self._readers = [asyncio.ensure_future(_read(queue, i, stream)) for i, stream in enumerate(self.streams)]
        self._readers.append(asyncio.ensure_future(_tick(queue, seconds)))
        left = len(self.streams)
        while left:
            piece = await queue.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                await ping()
                continue
            if piece.result is not None:
                self._note(piece.result)
                left -= 1
            yield piece


async def _tick(queue: asyncio.Queue[Piece | Exception | None], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await queue.put(None)


async def _read(queue: asyncio.Queue[Piece | Exception | None], index: int, stream: Stream) -> None:
    seen = 0
    try:
        async for progress in stream.progress():
            await queue.put(Piece(index, "", 0, progress=progress))
        async for text in stream:
            tokens, logprobs = stream.so_far(seen, stream.read)
            await queue.put(Piece(index, text, seen, tokens, logprobs))
            seen += len(tokens)
        result = await stream
        tokens, logprobs = result.tokens[seen:], (result.logprobs or [])[seen:]
        await queue.put(Piece(index, "", seen, tokens, logprobs, result))
    except Exception as error:
        await queue.put(error)
