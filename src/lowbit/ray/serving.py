"""The server on a cluster: one door, and replicas behind it that each have the whole model (Ray Serve).

A request goes to the replica that had those which begin like it, so that what is known of their beginning is of use; if
that one is busy, to the next one of an order that only the beginning and the replicas decide. Whatever leaves the door
early (a client that has gone, a timeout) is cancelled at the replica as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from hashlib import blake2b
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import FIFOMixin, RequestRouter

from ..batch.asked import text_of
from ..loading.load import load
from ..serve import App, Service, Settings
from ..serve.http import encode
from ..serve.problems import Problem, anthropic_form, openai_form
from .worker import Task

__all__ = ["Door", "PrefixRouter", "Replica", "deployment"]

Message = MutableMapping[str, Any]
BEGINNING = 512
"""Characters of a prompt that choose a replica: about two blocks of keys and values."""
KEPT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
"""What of a request's scope goes to the replica."""


class Replica:
    """The server's application in a process of its own."""

    def __init__(self, task: Task, cpus: int) -> None:
        options = {"threads": cpus, **task.options}
        self._service = Service(task.settings, lambda: load(task.model, **options))
        self._service.load()
        self._app = App(self._service)

    async def answer(self, scope: dict[str, Any], body: bytes, key: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the messages that the application sends; whoever stops reading is a client that has left."""
        messages: asyncio.Queue[Message] = asyncio.Queue(16)
        left, parts = asyncio.Event(), [body]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(self._app(scope, receive, messages.put))
        try:
            more = True
            while more:
                message = await messages.get()
                more = message["type"] == "http.response.start" or message.get("more_body", False)
                yield dict(message)
        finally:
            left.set()
            await asyncio.wait({task}, timeout=10)

    def stats(self) -> dict[str, Any]:
        """Return what the engine is doing, as `Engine.stats` does."""
        return self._service.engine.stats()


class PrefixRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Ranks replicas by a hash of the request's key and their names: one that comes or goes moves only its own part."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return the replicas in the order in which they are asked."""
        key = pending_request.args[-1] if pending_request is not None and pending_request.args else 0
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ranked = sorted(candidate_replicas, key=lambda replica: _weight(key, replica.replica_id.unique_id))
        return [[replica] for replica in ranked]


def _weight(key: Any, name: str) -> bytes:
    return blake2b(f"{key} {name}".encode(), digest_size=8).digest()


class Door:
    """An ASGI application that hands requests to replicas."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self._replicas, self._settings = replicas.options(stream=True), settings

    def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        return self._call

    async def _call(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            with contextlib.suppress(_GoneError):
                await self._pass(scope, receive, send)

    async def _pass(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Any]) -> None:
        body = await self._body(receive)
        kept = {name: scope[name] for name in KEPT if name in scope}
        answer = self._replicas.answer.remote(kept, body, key_of_body(body))
        begun: Message = {}
        watcher = asyncio.ensure_future(_until_gone(receive, answer))
        try:
            async for message in answer:
                begun = begun or message
                await send(message)
        except (RayError, RayServeException):
            await _fail(scope["path"], begun, send)
        finally:
            watcher.cancel()
            answer.cancel()

    async def _body(self, receive: Callable[[], Awaitable[Message]]) -> bytes:
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


async def _until_gone(receive: Callable[[], Awaitable[Message]], answer: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


async def _fail(path: str, begun: Message, send: Callable[..., Any]) -> None:
    """Tell a client that its replica has ended: as the answer, or as the last event of a stream."""
    problem = Problem(503, "the replica that had this request has ended; ask again", code="replica_lost")
    form = anthropic_form if "/messages" in path else openai_form
    body = encode(form(problem))
    if not begun:
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
    elif any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in begun["headers"]):
        body = (b"event: error\n" if form is anthropic_form else b"") + b"data: " + body + b"\n\n"
    else:
        raise ConnectionError(problem.message)  # half of a body: its length will not fit
    await send({"type": "http.response.body", "body": body, "more_body": False})


def key_of_body(body: bytes) -> int:
    """Return what a request's prompt begins with, as a number."""
    try:
        text = text_of(json.loads(body))
    except (ValueError, RecursionError, AttributeError):
        text = ""
    beginning = text[:BEGINNING].encode("utf-8", "replace")
    return int.from_bytes(blake2b(beginning, digest_size=8).digest(), "little")


def deployment(
    model: str | None = None, *, cpus: int = 1, replicas: int | tuple[int, int] = 1, settings: Settings | None = None,
    **options: Any,
) -> serve.Application:  # fmt: skip
    """Return the server as an application for `ray.serve.run`.

    Parameters
    ----------
    model : str, optional
        As for `lowbit.load`, at the same path on every node; None is the embedded model.
    cpus : int
        Processors of each replica, and its threads.
    replicas : int or pair of int
        How many there are; or the fewest and the most, of which there are as many as the requests need.
    settings : Settings, optional
    **options
        Of `lowbit.load`.
    """
    settings = Settings() if settings is None else settings
    scale: dict[str, Any] = {"num_replicas": replicas}
    if isinstance(replicas, tuple):
        scale = {"autoscaling_config": {"min_replicas": replicas[0], "max_replicas": replicas[1],
                                        "target_ongoing_requests": settings.max_sequences}}  # fmt: skip
    behind = serve.deployment(
        Replica, name="replica", ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=settings.max_sequences + settings.max_queue, graceful_shutdown_timeout_s=20,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter), **scale,
    )  # fmt: skip
    door = serve.deployment(
        serve.ingress(None)(Door), name="door", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100_000
    )
    application: serve.Application = door.bind(behind.bind(Task(model, options, settings, 0), cpus), settings)
    return application
