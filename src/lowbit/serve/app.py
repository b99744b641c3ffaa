"""The server as a plain ASGI application: paths, guards, errors, and what happens at start and stop.

Nothing stands between a handler and its client but this: middleware that hides a disconnect would leave the engine
working for nobody.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from . import anthropic, doing, embeddings, guard, native, openai, page, responses, tokens
from .fields import schema
from .http import Call, Receive, Scope, Send
from .metrics import metrics
from .problems import Problem, anthropic_form, openai_form, problem_of
from .service import Service

Handler = Callable[[Call, Service], Awaitable[None]]


async def _openapi(call: Call, service: Service) -> None:
    await call.answer(200, describe_api(service.settings.version))


ROUTES: dict[str, tuple[str, Handler, Any]] = {
    "/v1/chat/completions": ("POST", openai.chat, openai.Chat),
    "/v1/chat/completions/input_tokens": ("POST", openai.input_tokens, openai.Chat),
    "/v1/completions": ("POST", openai.completions, openai.Completion),
    "/v1/responses": ("POST", responses.responses, responses.Responses),
    "/v1/embeddings": ("POST", embeddings.embeddings, embeddings.Embeddings),
    "/v1/models": ("GET", openai.models, None),
    "/v1/messages": ("POST", anthropic.messages, anthropic.Messages),
    "/v1/messages/count_tokens": ("POST", anthropic.count_tokens, anthropic.CountTokens),
    "/completion": ("POST", native.completion, native.NativeCompletion),
    "/tokenize": ("POST", tokens.tokenize, tokens.Tokenize),
    "/detokenize": ("POST", tokens.detokenize, tokens.Detokenize),
    "/apply-template": ("POST", tokens.apply_template, tokens.ApplyTemplate),
    "/health": ("GET", doing.health, None),
    "/metrics": ("GET", metrics, None),
    "/props": ("GET", doing.props, None),
    "/slots": ("GET", doing.slots, None),
    "/openapi.json": ("GET", _openapi, None),
}
"""Method, handler and table of fields of each path; those below /v1 are there without it, too."""

OPEN = ("/health", "/v1/health")
"""Paths that need no key."""


class App:
    """An ASGI application.

    Parameters
    ----------
    service : Service
    ready : callable, optional
        Called when the model is loaded, or with what went wrong.
    """

    def __init__(self, service: Service, ready: Callable[[BaseException | None], None] | None = None) -> None:
        self.service, self._ready = service, ready
        self._calls: set[Call] = set()
        self._loading: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    # --- start and stop ---

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._loading = asyncio.ensure_future(self._load())  # meanwhile, /health says so
        await send({"type": "lifespan.startup.complete"})
        await receive()
        # Whoever ran this application has cancelled what did not end in time; their last events are on their way.
        self.service.stopping = True
        deadline = time.monotonic() + 5
        while self._calls and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.service.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _load(self) -> None:
        error: BaseException | None = None
        try:
            await asyncio.to_thread(self.service.load)
        except BaseException as wrong:
            error = wrong
        if self._ready is not None:
            self._ready(error)

    # --- requests ---

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, start = self.service, time.perf_counter()
        path = _known(scope["path"])
        form = anthropic_form if path.startswith("/v1/messages") else openai_form
        call = Call(scope, receive, send, service.settings, form)
        self._calls.add(call)
        try:
            await self._handle(call, path)
        except asyncio.CancelledError:
            await self._cut(call)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                traceback.print_exc(file=sys.stderr)
            await call.fail(problem)
        finally:
            call.close()
            self._calls.discard(call)
            service.answered[call.status or 499] += 1
            if service.settings.log_requests:
                took = 1e3 * (time.perf_counter() - start)
                print(f"{scope['method']} {ascii(scope['path'])[1:-1]} {call.status or 499} {took:.0f} ms {call.id}",
                      file=sys.stderr, flush=True)  # fmt: skip

    async def _cut(self, call: Call) -> None:
        """What ended a request from outside: its client, its time, or the end of the server."""
        if call.gone:
            abort = call.scope.get("state", {}).get("abort")
            if abort is not None:
                abort()  # what it has not read of the answer is of no use
                await asyncio.sleep(0)
            return
        if call.late:
            seconds = self.service.settings.request_seconds
            await call.fail(Problem(503, f"the answer took longer than {seconds:g} seconds", code="timeout"))
        else:
            await call.fail(Problem(503, "the server is stopping", code="stopping"))

    async def _handle(self, call: Call, path: str) -> None:
        service, settings, method = self.service, self.service.settings, call.scope["method"]
        guard.check_host(call, settings)
        call.extra_headers.update(guard.cors_headers(call, settings, method == "OPTIONS"))
        if method == "OPTIONS":
            await call.answer(200, b"", {"allow": "GET, POST, OPTIONS"}, "text/plain")
            return
        if path not in OPEN and not page.serves(path):
            guard.check_key(call, settings)
        allowed, handler = self._route(path)
        if method != allowed and not (method == "HEAD" and allowed == "GET"):
            raise Problem(405, f"{allowed} only", code="method", headers={"allow": f"{allowed}, OPTIONS"})
        if allowed == "POST":
            service.check()
            if len(self._calls) > settings.max_calls:
                raise Problem(429, "too many requests at a time; try again later", code="queue_full")
        await handler(call, service)

    def _route(self, path: str) -> tuple[str, Handler]:
        if path in ROUTES:
            return ROUTES[path][:2]
        if page.serves(path) and self.service.settings.page:
            return "GET", page.page
        if path.startswith("/v1/models/"):
            return "GET", openai.one_model
        raise Problem(404, "there is nothing at this path", code="not_found")


def _known(path: str) -> str:
    """Return the path with /v1 where the table has it so."""
    return f"/v1{path}" if f"/v1{path}" in ROUTES or path.startswith("/models/") else path


def describe_api(version: str) -> dict[str, Any]:
    """Return the OpenAPI description."""
    paths: dict[str, Any] = {}
    for path, (method, _, table) in ROUTES.items():
        operation: dict[str, Any] = {"responses": {"default": {"description": "JSON; an error has an object error"}}}
        if table is not None:
            operation["requestBody"] = {
                "required": True, "content": {"application/json": {"schema": schema(table)}},
            }  # fmt: skip
        paths[path] = {method.lower(): operation}
    return {"openapi": "3.1.0", "info": {"title": "lowbit", "version": version}, "paths": paths}
