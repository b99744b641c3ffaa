"""Answers lines on all nodes of a cluster: who is free takes the next ones, and what a failed node had goes to others.

1. A node takes groups of lines, several at a time, so that its engine is full while a group is on its way. Towards the
   end groups become small, so that no node has much left when the others are done.
2. A process that dies is begun again as long as its node is there. A node that comes later takes part.
3. A line that was with several processes when they died is sent alone; if that one dies as well, the line is to blame.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..batch import Answer, failure
from ..batch.asked import Asked
from ..errors import LowbitError, one_line
from ..serve.problems import Problem
from .node import Node, Task

__all__ = ["Cluster"]

GROUP = 16
"""Most lines of a group."""
CONNECT_SECONDS, LOOK_SECONDS = 10.0, 5.0
"""To reach the cluster; between two looks at which nodes there are."""
ALONE, BLAMED = 3, 6
"""Deaths after which a line is sent alone, and after which it fails."""
MOST_DEATHS = 5
"""Of processes on one node, one after the other without an answer."""


@dataclass
class _Line:
    key: int
    number: int
    asked: Asked
    done: asyncio.Future[Answer]
    deaths: int = 0


@dataclass
class _Worker:
    """A process on a node."""

    node: str
    name: str
    cpus: int
    actor: Any = None
    ready: bool = False
    """Whether it has the model and is given lines."""
    gone: bool = False
    deaths: int = 0


class Cluster:
    """All nodes of a Ray cluster, as one that answers lines.

    Parameters
    ----------
    address : str
        As `ray.init` takes it: ``auto``, ``HOST:PORT``, or ``local`` for one that is started here.
    task : Task

    Attributes
    ----------
    width : int
        Lines to ask at a time.

    Raises
    ------
    LowbitError
        If there is no such cluster; or a node, which is named, cannot load the model, or has another version of it.
    """

    def __init__(self, address: str, task: Task) -> None:
        self._task = task
        _connect(address)
        self._feeds = -(-2 * task.settings.max_sequences // GROUP) + 1
        self._waiting: deque[_Line] = deque()
        self._arrived: asyncio.Event | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: LowbitError | None = None
        self._workers = {worker.node: worker for worker in _nodes()}
        if not self._workers:
            raise LowbitError(f"the cluster at {address} has no node with a processor")
        for worker in self._workers.values():
            self._start(worker)
        headers = {w.node: _header(w, w.actor.load.remote()) for w in self._workers.values()}
        self._header = _common(self._workers, headers)
        self.width = 2 * GROUP * self._feeds * (len(self._workers) + 2)

    def header(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the header of the answers, which is the same on all nodes."""
        return self._header

    def _start(self, worker: _Worker) -> None:
        strategy = NodeAffinitySchedulingStrategy(worker.node, soft=False)
        # Threads are as many as processors are set aside, so that nothing else of the cluster computes there.
        worker.actor = ray.remote(Node).options(
            num_cpus=worker.cpus, scheduling_strategy=strategy, max_concurrency=2 * self._feeds + 2
        ).remote(self._task, worker.cpus)  # fmt: skip

    async def answer(self, key: int, number: int, asked: Asked) -> Answer:
        """Answer a line, wherever that is.

        Raises
        ------
        LowbitError
            If no node is left.
        """
        if self._keeper is None:
            self._arrived = asyncio.Event()
            self._keeper = self._later(self._keep())
        if self._lost is not None:
            raise self._lost
        line = _Line(key, number, asked, asyncio.get_running_loop().create_future())
        self._put([line])
        return await line.done

    def close(self) -> None:
        """Leave the cluster, which ends what runs there for us."""
        ray.shutdown()

    # --- the work ---

    def _put(self, lines: list[_Line], first: bool = False) -> None:
        (self._waiting.extendleft if first else self._waiting.extend)(lines)
        assert self._arrived is not None
        self._arrived.set()

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self) -> None:
        """See that all nodes that there are have work."""
        for worker in self._workers.values():
            self._feed(worker)
        try:
            while not all(worker.gone for worker in self._workers.values()):
                await asyncio.sleep(LOOK_SECONDS)
                for worker in await asyncio.to_thread(_nodes):
                    if worker.node not in self._workers:
                        self._workers[worker.node] = worker
                        self._later(self._begin(worker))
            self._lost = LowbitError("no node of the cluster is left")
        except Exception as error:
            self._lost = LowbitError(f"the cluster does not answer any more: {one_line(error)}")
        for line in self._waiting:
            line.done.set_exception(self._lost)
        self._waiting.clear()

    def _feed(self, worker: _Worker) -> None:
        worker.ready = True
        for _ in range(self._feeds):
            self._later(self._send(worker, worker.actor))

    async def _send(self, worker: _Worker, actor: Any) -> None:
        """Give a process groups of lines until it dies."""
        assert self._arrived is not None
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if worker.actor is not actor:
                return
            group = self._group()
            try:
                answers = await actor.answer.remote([(line.key, line.number, line.asked) for line in group])
            except Exception as error:
                self._again(group)
                if worker.actor is actor:  # this is the first that hears of it
                    worker.actor, worker.ready = None, False
                    await self._revive(worker, actor, error)
                return
            worker.deaths = 0
            for line, answer in zip(group, answers):
                if not line.done.done():  # its run was stopped, perhaps
                    line.done.set_result(answer)

    def _group(self) -> list[_Line]:
        """Take lines: many while there are many, few towards the end, and one that is suspected alone."""
        feeders = self._feeds * sum(worker.ready for worker in self._workers.values())
        most = max(1, min(GROUP, len(self._waiting) // max(feeders, 1)))
        group = [self._waiting.popleft()]
        while self._waiting and len(group) < most and group[0].deaths < ALONE and self._waiting[0].deaths < ALONE:
            group.append(self._waiting.popleft())
        return group

    def _again(self, group: list[_Line]) -> None:
        for line in group:
            line.deaths += 1
        blamed = [line for line in group if line.deaths >= BLAMED]
        for line in blamed:
            problem = Problem(500, f"{line.deaths} processes ended while they answered it", code="worker_died")
            if not line.done.done():
                line.done.set_result(failure(line.key, line.number, line.asked.custom_id, problem))
        self._put([line for line in reversed(group) if line.deaths < BLAMED and not line.done.done()], first=True)

    async def _revive(self, worker: _Worker, actor: Any, error: Exception) -> None:
        """Begin a process anew, if its node is there."""
        worker.deaths += 1
        with contextlib.suppress(RayError):
            ray.kill(actor)
        if worker.node not in {w.node for w in await asyncio.to_thread(_nodes)}:
            worker.gone = True
            self._say(worker, "is gone; what it had goes to others")
        elif worker.deaths > MOST_DEATHS:
            worker.gone = True
            self._say(worker, f"lost {worker.deaths} processes, one after the other, and is left out")
        else:
            self._say(worker, f"lost its process, and begins another ({one_line(error)[:120]})")
            await self._begin(worker)

    async def _begin(self, worker: _Worker) -> None:
        self._start(worker)
        try:
            header = await worker.actor.load.remote()
        except RayError as error:
            header = {"error": one_line(error)}
        if header == self._header:
            self._feed(worker)
        else:
            worker.gone = True
            self._say(worker, f"takes no part: {header.get('error', 'it has another model or version')}")

    def _say(self, worker: _Worker, what: str) -> None:
        print(f"lowbit: node {worker.name} {what}", file=sys.stderr, flush=True)


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise LowbitError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
    try:
        ray.init(address, logging_level="error", log_to_driver=False, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise LowbitError(f"no Ray cluster answers at {address}: {one_line(error)}") from None


def _nodes() -> list[_Worker]:
    return [
        _Worker(node["NodeID"], f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})", int(node["Resources"]["CPU"]))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


def _header(worker: _Worker, ref: Any) -> dict[str, Any]:
    try:
        header: dict[str, Any] = ray.get(ref)
    except RayError as error:
        raise LowbitError(f"node {worker.name}: {one_line(error)}") from None
    if "error" in header:
        raise LowbitError(f"node {worker.name}: {header['error']}")
    return header


def _common(workers: dict[str, _Worker], headers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the header that all nodes have."""
    most = Counter(map(repr, headers.values())).most_common(1)[0][0]
    usual = next(header for header in headers.values() if repr(header) == most)
    for node, header in headers.items():
        if header != usual:
            parts = [name for name in usual if header.get(name) != usual[name]]
            raise LowbitError(f"node {workers[node].name} has another {' and '.join(parts)} than the others: "
                              f"{one_line(header[parts[0]])}")  # fmt: skip
    return usual
