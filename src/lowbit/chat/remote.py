"""A conversation with a server that speaks the OpenAI protocol, by the standard library alone."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..errors import RemoteError, one_line

CONNECT_SECONDS = 20.0
SILENT_SECONDS = 600.0
"""How long a server may say nothing; a long prompt takes its time."""
MAX_EVENT = 8 << 20
MAX_BODY = 8 << 20


class EventStream:
    """Takes server-sent events apart, wherever the bytes were cut; of their fields it keeps the data."""

    def __init__(self) -> None:
        self._rest, self._data = b"", list[bytes]()
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of each event that is complete now.

        Raises
        ------
        RemoteError
            If an event is larger than `MAX_EVENT` bytes, or is no UTF-8.
        """
        text = self._rest + chunk
        # A carriage return at the end may be half of a line end, so it waits for what follows.
        held = text.endswith(b"\r")
        lines = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + (b"\r" if held else b"")
        self._size += len(chunk)
        if self._size > MAX_EVENT:
            raise RemoteError(f"the server sends an event of more than {MAX_EVENT:,} bytes")
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
                continue
            data, self._data, self._size = self._data, [], len(self._rest)
            if data:
                try:
                    yield b"\n".join(data).decode()
                except UnicodeDecodeError:
                    raise RemoteError("the server sends an event that is no UTF-8") from None


class Server:
    """Where to ask.

    Parameters
    ----------
    url : str
        ``http://host:port``, with the path of the interface if it is not ``/v1``.
    api_key : str, optional
        Sent as a bearer token.

    Raises
    ------
    ValueError
        If the URL or the key is none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port  # a ValueError if that is no number
        if parts.scheme not in ("http", "https") or not self.host or parts.query or parts.fragment or parts.username:
            raise ValueError(f"{url!r} is no address of a server, such as http://127.0.0.1:8080")
        if not (url.isascii() and url.isprintable()) or " " in url:
            raise ValueError(f"{url!r} holds characters that no address has")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key holds characters that none has")
        self._secure, self._base = parts.scheme == "https", parts.path.rstrip("/") or "/v1"
        self._headers = {"Accept": "application/json, text/event-stream", "User-Agent": "lowbit"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.url = f"{parts.scheme}://{parts.netloc}{self._base}"

    def models(self) -> list[str]:
        """Ask for the names of the models there."""
        connection, response = self._request("GET", "/models", None)
        try:
            with self._trouble():
                answer = json.loads(response.read(MAX_BODY))
            return [str(one["id"]) for one in answer["data"]]
        except (ValueError, TypeError, LookupError):
            raise RemoteError(f"{self.url}/models does not answer with a list of models") from None
        finally:
            connection.close()

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Ask for something, and yield the objects of the stream that comes back.

        Closing the generator closes the connection, by which the server knows that nobody listens any more.

        Raises
        ------
        RemoteError
            If the server cannot be reached, refuses, reports an error, or ends before it has said that it is done.
        """
        connection, response = self._request("POST", path, {**body, "stream": True})
        try:
            with self._trouble():
                if response.getheader("Content-Type", "").partition(";")[0].strip() != "text/event-stream":
                    yield self._object(response.read(MAX_BODY).decode("utf-8", "replace"))
                    return
                stream = EventStream()
                while chunk := response.read1(1 << 16):
                    for data in stream.feed(chunk):
                        if data == "[DONE]":
                            return
                        yield self._object(data)
            raise RemoteError(f"{self.url} ended the connection within the answer")
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=CONNECT_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_SECONDS)
        try:
            with self._trouble():
                connection.connect()
                connection.sock.settimeout(SILENT_SECONDS)
                data = None if body is None else json.dumps(body).encode()
                headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
                connection.request(method, self._base + path, data, headers)
                response = connection.getresponse()
                if response.status != 200:
                    reason = _reason(response.read(MAX_BODY)) or response.reason
                    raise RemoteError(f"{self.url} answers {response.status}: {one_line(reason)}")
        except BaseException:  # Ctrl-C among it
            connection.close()
            raise
        return connection, response

    def _object(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RemoteError(f"{self.url} sends what is no JSON object: {one_line(data[:80])}")
        if value.get("error"):
            raise RemoteError(f"{self.url} reports: {one_line(_reason(data.encode()))}")
        return value

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Turn what goes wrong on the way into a RemoteError."""
        try:
            yield
        except TimeoutError:
            raise RemoteError(f"{self.url} does not answer") from None
        except (OSError, http.client.HTTPException) as error:
            text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise RemoteError(f"{self.url} cannot be reached, or ended the connection ({one_line(text)})") from None


def _reason(body: bytes) -> str:
    """What a server says of an error, in one of the forms in which servers do."""
    text = body.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return said if isinstance(said, str) else json.dumps(said)


class RemoteChat:
    """A conversation like `ChatSession`, with a model behind a server.

    Parameters
    ----------
    server : Server
    system : str, optional
        What the model is told before the first message.
    model : str, optional
        Its name there; None takes the first that the server lists.
    thinking : callable, optional
        Gets what a model thinks before it answers, piece by piece and a line end after it, where the server tells it
        apart (``reasoning_content``). It is no part of the conversation.

    Attributes
    ----------
    messages : list of dict
        ``role`` and ``content`` of everything said so far.
    model : str

    Raises
    ------
    RemoteError
        If the server cannot be asked for its models, or has none.
    """

    def __init__(
        self,
        server: Server,
        *,
        system: str | None = None,
        model: str | None = None,
        thinking: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._server, self._thinking = server, thinking
        if model is None:
            names = server.models()
            if not names:
                raise RemoteError(f"{server.url} has no models")
            model = names[0]
        self.model = model
        self.reset(system)

    left_out = 0
    """Messages that are not sent: none, for how many fit is the server's to know."""

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation and begin a new one."""
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]

    def size(self) -> str:
        """Tell how long the conversation is."""
        return f"{len(self.messages)} messages; how many tokens they are is known to the server alone."

    def stream(self, text: str, **sampling: Any) -> Generator[str, None, str]:
        """Say something, and get the answer piece by piece; `sampling` holds fields of the request.

        The generator's return value is the server's ``finish_reason``, ``stop`` if it gives none.

        What was yielded becomes part of the conversation, also if the generator is closed or interrupted before the
        end; without any piece, nothing was said. Closing it closes the connection.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        thinks, reason = False, "stop"
        events = self._server.events("/chat/completions", {"model": self.model, "messages": messages, **sampling})
        try:
            for event in events:
                reason = self._piece(event, "finish_reason") or reason
                if thought := self._piece(event, "reasoning_content"):
                    self._thinking(thought)
                    thinks = True
                if piece := self._piece(event, "content"):
                    if thinks:
                        self._thinking("\n")
                        thinks = False
                    pieces.append(piece)
                    yield piece
        finally:
            events.close()
            if pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return reason

    def _piece(self, event: dict[str, Any], kind: str) -> str:
        """What an event adds; the last one may have no choices, and the first has a role alone."""
        try:
            choice = (event.get("choices") or [{}])[0]
            part = choice if kind == "finish_reason" else choice.get("delta") or choice.get("message") or {}
            piece = part.get(kind) or ""
        except (AttributeError, LookupError, TypeError):
            piece = None
        if not isinstance(piece, str):
            raise RemoteError(f"{self._server.url} sends a piece that is no text: {one_line(str(event)[:80])}")
        return piece
