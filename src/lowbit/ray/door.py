"""The one door of a served cluster: an ASGI application that hands each request to a replica.

Whatever leaves early (a client that has gone, a timeout) is cancelled at the replica as well. A replica that ends takes
with it only what it had begun to answer; what it had not goes to another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from ..serve import Settings
from ..serve.http import SMALL, encode
from ..serve.problems import Problem, anthropic_form, openai_form
from .routing import key_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
KEPT = ("type", "asgi", "http_version", "method", "scheme", "query_string", "headers")
"""What of a request's scope goes to the replica."""
TRIES = 2
"""Replicas that may end with a request before it is told so."""


class Door:
    """An ASGI application."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self._replicas, self._settings = replicas.options(stream=True), settings

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            with contextlib.suppress(_GoneError):
                await self._pass(scope, receive, send)

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        key = await asyncio.to_thread(key_of, body) if len(body) > SMALL else key_of(body)
        kept = {name: scope[name] for name in KEPT if name in scope}
        kept["path"] = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        passing = _Passing(send)
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            for left in reversed(range(TRIES)):
                answer = self._replicas.answer.remote(kept, body, key)
                try:
                    await passing.forward(answer, gone)
                    return
                except (RayError, RayServeException) as error:
                    if gone.done():
                        return
                    if passing.begun or not left or isinstance(error, (RayTaskError, BackPressureError)):
                        await passing.fail(_problem_of(error), kept["path"])
                        return
        finally:
            gone.cancel()

    async def _body(self, receive: Receive) -> bytes:
        """Read a body; of one that is too large so much that the replica sees it."""
        parts, size, more = [], 0, True
        while more and size <= self._settings.max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)


class _GoneError(Exception):
    """The client has left."""


class _Passing:
    """An answer on its way to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun: Message = {}
        """The message that began it, when it was sent."""

    async def forward(self, answer: Any, gone: asyncio.Future[None]) -> None:
        """Send what a replica answers, until that is all or the client has left."""
        start: Message = {}
        cancel = lambda _: answer.cancel()  # noqa: E731 (it is removed by name)
        gone.add_done_callback(cancel)
        ended = False
        try:
            async for messages in answer:
                for message in messages:
                    if message["type"] == "http.response.start":
                        start = message  # kept until more is there, as another replica may have to begin anew
                        continue
                    if not self.begun:
                        await self._send(start)
                        self.begun = start
                    await self._send(message)
            ended = True
        finally:
            gone.remove_done_callback(cancel)
            if not ended:
                answer.cancel()

    async def fail(self, problem: Problem, path: str) -> None:
        """Tell of a problem: as the answer, or as the last event of a stream."""
        form = anthropic_form if "/messages" in path else openai_form
        body = encode(form(problem))
        if not self.begun:
            headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": problem.status, "headers": pairs})
        elif any(name == b"content-type" and b"event-stream" in value for name, value in self.begun["headers"]):
            body = (b"event: error\n" if form is anthropic_form else b"") + b"data: " + body + b"\n\n"
        else:
            raise ConnectionError(problem.message)  # half of a body: its length will not fit
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, BackPressureError):
        return Problem(429, "too many requests wait for a replica; try again later", code="queue_full")
    if isinstance(error, RayTaskError):
        return Problem(500, "an error inside the replica; its log says more")
    return Problem(503, "the replica that had this request has ended; ask again", code="replica_lost")
