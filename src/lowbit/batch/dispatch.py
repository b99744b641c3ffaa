"""Answers lines on many machines: who is free takes the next ones, and what a machine that fails had goes to others.

1. A machine takes groups of lines, several at a time, so that its engine is full while a group is on its way. Towards
   the end groups become small, so that no machine has much left when the others are done.
2. A process that dies is begun again as long as its machine is there. A machine that comes later takes part.
3. When no lines are left, a machine that has nothing to do takes those, too, that another has had for long. The first
   answer counts, for both are the same.
4. A line that was with several processes when they died is tried by a process that has nothing else; if that dies as
   well, again and again, the line is to blame.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import LowbitError, one_line
from ..fleet import GROUP, groups_at_a_time, lines_of_group
from ..serve.problems import Problem
from .answering import Answer, failure
from .asked import Asked
from .header import common_header

LOOK_SECONDS = 5.0
"""Between two looks at which machines there are."""
LONG_SECONDS = 2.0
"""For which a machine has a line before another one that is idle takes it, too."""
ALONE, BLAMED = 3, 6
"""Deaths after which a line is tried alone, and after which it fails."""
MOST_DEATHS = 5
"""Of processes on one machine, one after the other without an answer."""


class Node(NamedTuple):
    """A machine."""

    id: str
    name: str
    """For people."""
    cpus: int


class Process(Protocol):
    """What runs on a machine; both calls raise an exception if it dies."""

    async def load(self) -> dict[str, Any]:
        """Load the model; return the header of its answers, or an ``error``."""

    async def answer(self, group: list[tuple[int, int, Asked]]) -> list[Answer]:
        """Answer lines: key, number and what each asks."""

    def kill(self) -> None:
        """End it, if it is there."""


class Machines(Protocol):
    """Where processes run."""

    def nodes(self) -> list[Node]:
        """Return the machines that there are now."""

    def start(self, node: Node, calls: int) -> Process:
        """Begin a process that takes so many calls at a time."""

    def close(self) -> None:
        """End all."""


@dataclass
class _Line:
    key: int
    number: int
    asked: Asked
    done: asyncio.Future[Answer]
    deaths: int = 0
    sent: float = 0.0
    holders: list[_Worker] = field(default_factory=list)
    """Who has it."""


@dataclass
class _Worker:
    node: Node
    process: Process | None = None
    ready: bool = False
    """Whether it has the model and is given lines."""
    gone: bool = False
    deaths: int = 0
    groups: int = 0
    """That it has now."""


class Dispatcher:
    """All machines, as one that answers lines.

    Parameters
    ----------
    machines : Machines
    parallel : int
        Texts that each makes at a time.

    Attributes
    ----------
    width : int
        Lines to ask at a time.

    Raises
    ------
    LowbitError
        If there is no machine; or one, which is named, cannot load the model, or has another one or another version.
    """

    def __init__(self, machines: Machines, parallel: int) -> None:
        self._machines, self._feeds = machines, groups_at_a_time(parallel)
        self._waiting: deque[_Line] = deque()
        self._suspects: deque[_Line] = deque()
        self._tester: _Worker | None = None
        """Who tries suspects, one at a time and nothing else."""
        self._sent: deque[_Line] = deque()
        """Lines that one machine has, the oldest first, and some that are done."""
        self._arrived: asyncio.Event | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: LowbitError | None = None
        self._workers = {node.id: _Worker(node) for node in machines.nodes()}
        if not self._workers:
            raise LowbitError("the cluster has no node with a processor")
        self._header = asyncio.run(self._load_all())
        self.width = 2 * GROUP * self._feeds * (len(self._workers) + 2)

    async def _load_all(self) -> dict[str, Any]:
        """Load the model everywhere; return the header that all have."""
        workers = list(self._workers.values())
        loaded = await asyncio.gather(*map(self._load, workers))
        there = {node.id for node in await asyncio.to_thread(self._machines.nodes)}
        for worker in workers:
            worker.gone = worker.node.id not in there  # it went while it was loading, which is no fault of the model's
        found = [(worker.node.name, header) for worker, header in zip(workers, loaded) if not worker.gone]
        if not found:
            raise LowbitError("no node of the cluster is left")
        return common_header(found)

    async def _load(self, worker: _Worker) -> dict[str, Any]:
        worker.process = self._machines.start(worker.node, self._feeds)
        try:
            return await worker.process.load()
        except Exception as error:
            return {"error": one_line(error)}

    def header(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the header of the answers, which all machines agree on."""
        return self._header

    async def answer(self, key: int, number: int, asked: Asked) -> Answer:
        """Answer a line, wherever that is.

        Raises
        ------
        LowbitError
            If no machine is left.
        """
        if self._keeper is None:
            self._arrived = asyncio.Event()
            self._keeper = self._later(self._keep())
        if self._lost is not None:
            raise self._lost
        line = _Line(key, number, asked, asyncio.get_running_loop().create_future())
        self._waiting.append(line)
        self._tell()
        return await line.done

    def close(self) -> None:
        """End all that runs on the machines for us."""
        self._machines.close()

    # --- the work ---

    def _tell(self) -> None:
        assert self._arrived is not None
        self._arrived.set()

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self) -> None:
        """See that all machines that there are have work."""
        for worker in self._workers.values():
            if not worker.gone:
                self._feed(worker)
        try:
            while not all(worker.gone for worker in self._workers.values()):
                await asyncio.sleep(LOOK_SECONDS)
                for node in await asyncio.to_thread(self._machines.nodes):
                    if node.id not in self._workers:
                        self._workers[node.id] = _Worker(node)
                        self._later(self._begin(self._workers[node.id]))
            self._lost = LowbitError("no node of the cluster is left")
        except Exception as error:
            self._lost = LowbitError(f"the cluster does not answer any more: {one_line(error)}")
        for line in (*self._waiting, *self._suspects):
            if not line.done.done():
                line.done.set_exception(self._lost)
        self._waiting.clear()
        self._suspects.clear()

    def _feed(self, worker: _Worker) -> None:
        assert worker.process is not None
        worker.ready = True
        for _ in range(self._feeds):
            self._later(self._send(worker, worker.process))

    async def _send(self, worker: _Worker, process: Process) -> None:
        """Give a process groups of lines until it dies."""
        assert self._arrived is not None
        while worker.process is process:
            group = self._next(worker)
            if not group:
                self._arrived.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), LONG_SECONDS)
                continue
            worker.groups += 1
            for line in group:
                line.holders.append(worker)
            try:
                answers = await process.answer([(line.key, line.number, line.asked) for line in group])
            except Exception as error:
                worker.groups -= 1
                self._again(worker, group)
                if worker.process is process:  # this is the first that hears of it
                    worker.process, worker.ready = None, False
                    await self._revive(worker, process, error)
                return
            worker.groups -= 1
            worker.deaths = 0
            for line, answer in zip(group, answers):
                line.holders.remove(worker)
                if not line.done.done():  # somebody else was quicker, or nobody waits any more
                    line.done.set_result(answer)
            self._tell()

    def _next(self, worker: _Worker) -> list[_Line]:
        """Return what a machine does next; nothing if it waits."""
        if self._suspects and self._tester in (None, worker):
            self._tester = worker
            return [] if worker.groups else [self._suspects.popleft()]
        if self._tester is worker:
            if worker.groups:
                return []
            self._tester = None
        feeders = self._feeds * sum(one.ready for one in self._workers.values())
        if self._waiting:
            n = lines_of_group(len(self._waiting), feeders)
            group = [self._waiting.popleft() for _ in range(n)]
            now = time.monotonic()
            for line in group:
                line.sent = now
            self._sent.extend(group)
            return group
        return self._late() if not worker.groups else []

    def _late(self) -> list[_Line]:
        """Take lines that another machine has had for long."""
        group: list[_Line] = []
        before = time.monotonic() - LONG_SECONDS
        while self._sent and len(group) < GROUP:
            line = self._sent[0]
            if line.holders and line.sent > before and not line.done.done():
                break
            self._sent.popleft()
            if line.holders and not line.done.done():
                group.append(line)
        return group

    def _again(self, worker: _Worker, group: list[_Line]) -> None:
        """Put the lines of a process that died back, before all others."""
        if self._tester is worker:
            self._tester = None
        for line in reversed(group):
            line.holders.remove(worker)
            line.deaths += 1
            if line.done.done() or line.holders:
                continue
            if line.deaths < BLAMED:
                (self._waiting if line.deaths < ALONE else self._suspects).appendleft(line)
                continue
            problem = Problem(500, f"{line.deaths} processes ended while they answered it", code="worker_died")
            line.done.set_result(failure(line.key, line.number, line.asked.custom_id, problem))
        self._tell()

    async def _revive(self, worker: _Worker, process: Process, error: Exception) -> None:
        """Begin a process anew, if its machine is there."""
        worker.deaths += 1
        with contextlib.suppress(Exception):
            process.kill()
        if worker.node.id not in {node.id for node in await asyncio.to_thread(self._machines.nodes)}:
            worker.gone = True
            self._say(worker, "is gone; what it had goes to others")
        elif worker.deaths > MOST_DEATHS:
            worker.gone = True
            self._say(worker, f"lost {worker.deaths} processes, one after the other, and is left out")
        else:
            self._say(worker, f"lost its process, and begins another ({one_line(error)[:120]})")
            await self._begin(worker)

    async def _begin(self, worker: _Worker) -> None:
        header = await self._load(worker)
        if header == self._header:
            self._feed(worker)
        else:
            worker.gone = True
            self._say(worker, f"takes no part: {header.get('error', 'it has another model or version')}")

    def _say(self, worker: _Worker, what: str) -> None:
        print(f"lowbit: node {worker.node.name} {what}", file=sys.stderr, flush=True)
