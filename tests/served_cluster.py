"""`lowbit serve --ray` in a process of its own, its replicas' counters, and what the tests ask it with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

ray = pytest.importorskip("ray", reason="these tests need the extra 'ray'")
serve = pytest.importorskip("ray.serve", reason="these tests need the extra 'ray'")
httpx = pytest.importorskip("httpx", reason="these tests need the extra 'test-server'")

PATIENCE = 600


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def command(address, *arguments):
    port = free_port()
    return port, [sys.executable, "-m", "lowbit", "serve", "--ray", address, "--port", str(port), *map(str, arguments)]


class Served:
    """A model served on a cluster, in which this process takes part as well."""

    def __init__(self, address, *arguments):
        port, line = command(address, *arguments)
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        self.said = ""
        while "serving" not in self.said:
            more = self.process.stderr.readline()
            assert more, f"the server ended: {self.said}"
            self.said += more
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        ray.init(address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
        self._replica = serve.get_deployment_handle("replica", "lowbit")

    def stop(self):
        """Stop it as Ctrl-C does; return its status and what it said."""
        ray.shutdown()
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate()
        return self.process.returncode, said

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def stats(self, n):
        """What the engines of n replicas have done, by their process ids."""
        found = {}
        deadline = time.monotonic() + PATIENCE
        for key in range(1 << 20):  # each goes to a replica that only the key decides
            with contextlib.suppress(ray.exceptions.RayError, serve.exceptions.RayServeException):
                one = self._replica.doing.remote(key).result(timeout_s=10)
                found[one["pid"]] = one
            for pid in [pid for pid in found if not os.path.exists(f"/proc/{pid}")]:
                del found[pid]
            if len(found) == n:
                return found
            assert time.monotonic() < deadline, f"there are {len(found)} replicas, not {n}"
        return None

    @staticmethod
    def given(before, after):
        """How many texts each replica was given between two looks at the counters."""
        parts = ("running", "waiting", "finished", "cancelled")
        return {pid: sum(after[pid][part] - before[pid][part] for part in parts) for pid in after}

    def until_idle(self, n):
        """Wait until no replica has anything to do or holds a block; return their counters."""
        deadline = time.monotonic() + PATIENCE
        while True:
            stats = self.stats(n)
            if not any(one["running"] or one["waiting"] or one["kv"]["held"] for one in stats.values()):
                return stats
            assert time.monotonic() < deadline, stats
            time.sleep(0.05)


class Stream:
    """A stream of `/completion` that is read by a task of its own."""

    def __init__(self, client, **body):
        self.text, self.error, self.whole, self.events = "", None, False, 0
        self.begun = asyncio.Event()
        """Set by its first event, or its end."""
        self.task = asyncio.ensure_future(self._read(client, {**body, "stream": True}))

    async def _read(self, client, body):
        try:
            async with client.stream("POST", "/completion", json=body) as answer:
                if answer.status_code != 200:
                    self.error = json.loads(await answer.aread())["error"]
                    return
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        self._take(json.loads(line[6:]))
        except httpx.HTTPError as broken:
            self.error = {"code": "broken", "message": repr(broken)}
        finally:
            self.begun.set()

    def _take(self, data):
        self.error = data.get("error", self.error)
        self.text += data.get("content", "")
        self.whole |= data.get("stop", False)
        self.events += 1
        self.begun.set()


def client_of(url):
    """A client for any number of streams."""
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None))
