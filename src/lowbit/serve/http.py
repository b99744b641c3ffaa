"""One HTTP request in plain ASGI: its body within bounds, its answer, and the moment at which its client leaves.

The task that handles a request is cancelled when the client is gone, does not read for too long, or the answer takes
too long; whatever it holds it lets go of in a `finally` or at the end of a `with`.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from ..errors import one_line
from .problems import Problem
from .settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_DEPTH = 100
"""Brackets and braces within each other."""
MAX_MARKS = 1 << 20
"""Quotes, and commas, brackets and braces: what makes a parsed body larger than its bytes."""
SMALL = 1 << 16
"""Bytes that are parsed at once; more are parsed in a thread."""


def encode(value: Any) -> bytes:
    """Return JSON; what is no Unicode in it becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Call:
    """A request and its answer.

    Parameters
    ----------
    scope, receive, send
        Of ASGI.
    settings : Settings
    form : callable
        Makes an error object of a `Problem`.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: Settings, form: Callable[[Problem], dict[str, Any]]
    ) -> None:
        self.scope, self._receive, self._send, self._settings, self.form = scope, receive, send, settings, form
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.id = f"req_{secrets.token_hex(12)}"
        self.extra_headers: dict[str, str] = {"x-request-id": self.id, "request-id": self.id}
        self.status = 0
        """0 until the answer has begun."""
        self.gone = False
        """Whether the client has left, or was left."""
        self.late = False
        """Whether the answer took too long."""
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._events: Events | None = None

    async def json(self) -> dict[str, Any]:
        """Read the body, and watch the client from here on.

        Raises
        ------
        Problem
            If it is no JSON object, or larger than it may be.
        """
        settings = self._settings
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(415, "the content type must be application/json", code="content_type")
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Problem(415, "a body must not be compressed", code="content_encoding")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > settings.max_body:
            self._too_large()
        try:
            body = await asyncio.wait_for(self._body(), settings.body_seconds)
        except asyncio.TimeoutError:
            raise Problem(408, f"the body did not arrive within {settings.body_seconds:g} seconds") from None
        self._watcher = asyncio.ensure_future(self._watch())
        self._timer = asyncio.get_running_loop().call_later(settings.request_seconds, self._give_up, True)
        return await asyncio.to_thread(parse_object, body) if len(body) > SMALL else parse_object(body)

    async def _body(self) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._settings.max_body:
                self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> NoReturn:
        raise Problem(413, f"the body has more than {self._settings.max_body} bytes", code="too_large",
                      headers={"connection": "close"})  # fmt: skip

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._give_up()

    def _give_up(self, late: bool = False) -> None:
        self.late, self.gone = late, not late
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def answer(
        self, status: int, value: Any, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        """Send all of an answer; `value` is turned into JSON unless it is bytes."""
        body = value if isinstance(value, bytes) else encode(value)
        await self._begin(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        await self.send(body, more=False)

    async def fail(self, problem: Problem) -> None:
        """Send an error: as the answer, or as the last event of a stream that has begun."""
        if self._events is not None:
            await self._events.fail(problem)
        elif not self.status:
            await self.answer(problem.status, self.form(problem), problem.headers)

    async def events(self, form: Callable[[Problem], bytes]) -> Events:
        """Begin a stream of server-sent events; `form` makes an event of a problem."""
        self._events = Events(self, form)
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                   "x-accel-buffering": "no"}  # fmt: skip
        await self._begin(200, headers)
        return self._events

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        pairs = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in {**self.extra_headers, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def send(self, body: bytes, more: bool = True) -> None:
        """Send a part of the body; a client that does not read it in time is left."""
        timer = asyncio.get_running_loop().call_later(self._settings.write_seconds, self._give_up)
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            timer.cancel()


class Events:
    """Server-sent events, each of them sent whole."""

    def __init__(self, call: Call, form: Callable[[Problem], bytes]) -> None:
        self._call, self._form, self._open = call, form, True

    async def send(self, value: Any, event: str | None = None) -> None:
        """Send an event."""
        name = b"" if event is None else b"event: " + event.encode() + b"\n"
        await self._call.send(name + b"data: " + encode(value) + b"\n\n")

    async def ping(self) -> None:
        """Send a comment, so that nobody between here and the client thinks it has ended."""
        await self._call.send(b": ping\n\n")

    async def end(self, last: bytes = b"") -> None:
        """Send the last bytes."""
        self._open = False
        await self._call.send(last, more=False)

    async def fail(self, problem: Problem) -> None:
        """End with an error."""
        if self._open:
            await self.end(self._form(problem))


def parse_object(body: bytes, what: str = "the body") -> dict[str, Any]:
    """Return a JSON object; a Problem if it is none."""
    if sum(body.count(mark) for mark in (b'"', b",", b"[", b"{")) > MAX_MARKS:
        raise Problem(400, f"{what} has too many values", code="too_large")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise Problem(400, f"{what} is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise Problem(400, f"{what} is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise Problem(400, f"{what} is no JSON: {one_line(error)}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Problem(400, f"{what} must be a JSON object", code="invalid_json")
    level: list[Any] = [value]  # all lists and objects of one depth
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Problem(400, f"{what} is nested too deeply", code="invalid_json")
        below = (one for holder in level for one in (holder.values() if isinstance(holder, dict) else holder))
        level = [one for one in below if isinstance(one, (dict, list))]
    return value


def _finite(digits: str) -> float:
    """Read a number; one that no float holds would be written as Infinity, which is no JSON."""
    value = float(digits)
    if value in (math.inf, -math.inf):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
