"""Runs the application under uvicorn: sockets, signals, and the bounds that lie below ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import LowbitError
from .app import App
from .guard import who_reaches
from .http import encode
from .problems import Problem, openai_form
from .service import Service
from .settings import Settings

if TYPE_CHECKING:
    from ..model import Model

HEAD_BYTES = 64 << 10
"""Of the lines and headers of a request."""
MOST_CONNECTIONS = 4096
SEND_BYTES = 64 << 10
"""Of an answer, that the system holds for a client."""


class _Protocol(H11Protocol):
    """HTTP/1.1, with an end for clients that do not say what they want, and for those that do not read."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._await_request()
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def _await_request(self) -> None:
        self._head = self.loop.call_later(Settings.body_seconds, self._no_request)

    def _no_request(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._head.cancel()
        if not self.transport.is_closing():
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all other errors."""
        body = encode(openai_form(Problem(400, "this is no HTTP request", code="invalid_http")))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal ends the server in order; it is no signal any more when that is done."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(settings: Settings, load: Callable[[], Model]) -> None:
    """Serve until a signal says stop.

    Raises
    ------
    LowbitError
        If the model cannot be loaded, or the address cannot be had.
    """
    listening = _listen(settings)
    service = Service(settings, load)
    failed: list[BaseException] = []

    def ready(error: BaseException | None) -> None:
        if error is not None:
            failed.append(error)
            server.should_exit = True
        else:
            _say(service, listening)

    config = uvicorn.Config(
        App(service, ready), http=_Protocol, ws="none", lifespan="on", loop="asyncio", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=30, h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=round(settings.grace_seconds), backlog=1024, proxy_headers=False,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # whoever sends rubbish writes no log
    server = _Server(config)
    asyncio.run(server.serve(sockets=listening))
    if failed:
        raise failed[0]


def _listen(settings: Settings) -> list[socket.socket]:
    listening: list[socket.socket] = []
    try:
        for host in settings.host_names:
            # A free port that the first one was given is that of all.
            port = listening[0].getsockname()[1] if listening else settings.port
            listening.append(_listen_at(host, port))
    except OSError as error:
        for one in listening:
            one.close()
        raise LowbitError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return listening


def _listen_at(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by all connections: what a slow reader has not read is seen by the engine, and costs little memory.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listening.bind(address)
        listening.listen(1024)
    except OSError:
        listening.close()
        raise
    return listening


def _say(service: Service, listening: list[socket.socket]) -> None:
    settings, port = service.settings, listening[0].getsockname()[1]
    names = settings.host_names
    hosts = " and ".join(f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}" for name in names)
    if service.note:
        print(f"lowbit: {service.note}", file=sys.stderr)
    print(f"lowbit: serving {ascii(service.name)[1:-1]} at {hosts} ({who_reaches(settings)}); Ctrl-C stops",
          file=sys.stderr, flush=True)  # fmt: skip
