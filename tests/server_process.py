"""`lowbit serve` in a process of its own, and what the tests ask it with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
httpx = pytest.importorskip("httpx", reason="these tests need the extra 'test-server'")

PATIENCE = 600
"""Seconds until a test gives up waiting; none of them waits that long on purpose."""


class Server:
    """`lowbit serve` at a free port."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lowbit", "serve", "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE, encoding="utf-8", env={**os.environ, "LOWBIT_API_KEY": ""},
        )  # fmt: skip
        self.said = ""
        while "http://" not in self.said:
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.said}"
            self.said += line
        self.url = re.search(r"http://\S+", self.said)[0]
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def post(self, path, body, **options):
        return self.http.post(path, json=body, **options)

    def get(self, path, **options):
        return self.http.get(path, **options)

    def events(self, path, body, **options):
        """All events of a stream, as (name, data), with what else there was as (None, text)."""
        with self.http.stream("POST", path, json={**body, "stream": True}, **options) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            return parse_events("".join(answer.iter_text()))

    def running(self):
        """The texts that are being made."""
        return [slot for slot in self.get("/slots").json() if slot["is_processing"]]

    def metric(self, name):
        found = re.search(rf"^lowbit_{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found[1])

    def until(self, holds):
        """Ask again and again."""
        deadline = time.monotonic() + PATIENCE
        while not (found := holds()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)
        return found

    def until_idle(self):
        """Wait until no block is held."""
        self.until(lambda: self.metric("kv_blocks_held") == 0 and not self.running())
        assert self.metric("requests_waiting") == 0

    def raw(self, data, receive=None):
        """Send bytes on a connection of their own, which holds little that is not read if `receive` says how much."""
        connection = socket.socket()
        connection.settimeout(PATIENCE)
        if receive is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(data)
        return connection

    def stop(self):
        """Send SIGTERM; return the exit status and what was said since the start."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


def read_all(connection):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    connection.close()
    return data


def request_bytes(path, body, **headers):
    """A POST as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "localhost", "content_type": "application/json", "content_length": len(data), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def parse_events(text):
    assert text.endswith("\n\n")
    events = []
    for block in text[:-2].split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(lines) in ({"data"}, {"event", "data"}, {""}), f"not a whole event: {block!r}"
        data = lines.get("data", lines.get(""))
        events.append((lines.get("event"), json.loads(data) if data.startswith("{") else data))
    return events
