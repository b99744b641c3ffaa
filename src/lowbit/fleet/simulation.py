"""A batch on many machines, as discrete events: who gets which group when, who fails, and when all is done.

The rules are those of the cluster (`sharing`): groups shrink towards the end, what a machine that fails had goes to
others, a machine without work takes what another has had for long, and the first that has done it counts. A failed
machine comes back after its repair and the loading of its model. A machine's groups share its speed. One
driver hands out all groups, one after the other.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .sharing import GROUP, groups_at_a_time, lines_of_group


@dataclass(frozen=True)
class Fleet:
    """Machines, and what goes wrong with them. All times in seconds.

    Parameters
    ----------
    rates : sequence of float
        Tokens per second of each machine when its engine is full.
    parallel : int
        Texts that each makes at a time.
    between_failures : float
        Mean time between two failures of a machine, by which failures come at random; 0 is never.
    repair : float
        From a failure until the machine is back.
    load : float
        To load the model, at the beginning and after a failure.
    driver : float
        That the driver needs for a line.
    taken : float
        Share of the machines' speed that other programs take, as the driver does where it runs on one of them.
    fixed_groups, copies : bool
        Whether groups stay as large as they are at the beginning, and whether idle machines take what others have.
    """

    rates: Sequence[float]
    parallel: int = 32
    between_failures: float = 0.0
    repair: float = 600.0
    load: float = 1.0
    driver: float = 0.0
    taken: float = 0.0
    fixed_groups: bool = False
    copies: bool = True


@dataclass(frozen=True)
class Run:
    """What became of a batch."""

    seconds: float
    failures: int
    lost_tokens: float
    """Computed, and computed again elsewhere, because a machine failed."""
    ideal: float
    """Seconds that it would take if all machines were busy to the end, and none failed."""

    @property
    def efficiency(self) -> float:
        """The part of the machines' speed that was of use."""
        return self.ideal / self.seconds


class _Machine:
    """A machine with some groups, which share its speed."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.groups: list[tuple[float, int, int, float]] = []
        """When it ends (on the machine's own clock), first line, end, and tokens; a heap."""
        self.coming = 0  # groups that the driver is sending
        self.up = False
        self.version = self.lives = 0
        self.clock = self.since = 0.0
        """Tokens that each group had since the machine exists, at the time `since`."""

    def advance(self, now: float) -> None:
        if self.groups:
            self.clock += (now - self.since) * self.rate / len(self.groups)
        self.since = now

    def next_end(self) -> float:
        return self.since + max(0.0, self.groups[0][0] - self.clock) * len(self.groups) / self.rate


def simulate(tokens: Sequence[float], fleet: Fleet, seed: int = 0) -> Run:
    """Run a batch.

    Parameters
    ----------
    tokens : sequence of float
        Of each line, read and made.
    fleet : Fleet
    seed : int
    """
    return _Simulation(tokens, fleet, seed).run()


class _Simulation:
    def __init__(self, tokens: Sequence[float], fleet: Fleet, seed: int) -> None:
        self._fleet, self._random = fleet, random.Random(seed)
        self._sums = [0.0]
        for one in tokens:
            self._sums.append(self._sums[-1] + one)
        self._machines = [_Machine(rate * (1 - fleet.taken)) for rate in fleet.rates]
        self._feeds = groups_at_a_time(fleet.parallel)
        self._again: deque[tuple[int, int]] = deque()
        self._sent: deque[tuple[int, int]] = deque()  # that one machine has, the oldest first, and some that are done
        self._holders: dict[int, int] = {}  # of the groups that are not done, by their first lines
        self._next, self._left, self._up = 0, len(tokens), 0
        self._driver_free = 0.0
        self._events: list[tuple[float, int, str, int, tuple[int, ...]]] = []
        self._number = self._failures = 0
        self._lost = 0.0

    def _at(self, time: float, kind: str, machine: int, *more: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, kind, machine, more))

    def run(self) -> Run:
        now, fleet = 0.0, self._fleet
        for i in range(len(self._machines)):
            self._at(fleet.load, "up", i)
        while self._left:
            now, _, kind, i, more = heapq.heappop(self._events)
            machine = self._machines[i]
            if kind == "up":
                machine.up, machine.since = True, now
                self._up += 1
                if fleet.between_failures:
                    self._at(now + self._random.expovariate(1 / fleet.between_failures), "down", i)
                self._fill(i, now)
            elif kind == "down":
                self._fail(machine, now)
                self._at(now + fleet.repair + fleet.load, "up", i)
            elif kind == "start":
                self._start(i, now, *more)
            elif machine.version == more[0]:
                machine.advance(now)
                _, first, end, _ = heapq.heappop(machine.groups)
                if self._holders.pop(first, 0):  # nobody was quicker
                    self._left -= end - first
                self._fill(i, now)
                self._expect(i)
        return Run(now, self._failures, self._lost, self._sums[-1] / sum(fleet.rates))

    def _fail(self, machine: _Machine, now: float) -> None:
        machine.advance(now)
        machine.up = False
        machine.version += 1
        machine.lives += 1
        self._up -= 1
        self._failures += 1
        for ends, first, end, tokens in machine.groups:
            self._lost += max(0.0, tokens - max(0.0, ends - machine.clock))
            self._give_back(first, end)
        machine.groups, machine.coming = [], 0
        self._offer(now)

    def _give_back(self, first: int, end: int) -> None:
        """One machine less has a group."""
        if first in self._holders:
            self._holders[first] -= 1
            if not self._holders[first]:
                self._again.append((first, end))

    def _offer(self, now: float) -> None:
        """Give what a machine had to those that have nothing to do."""
        for i, machine in enumerate(self._machines):
            if not self._again:
                break
            if machine.up and len(machine.groups) + machine.coming < self._feeds:
                self._fill(i, now)

    def _fill(self, i: int, now: float) -> None:
        """Have groups sent to a machine until it has enough."""
        machine = self._machines[i]
        while machine.up and len(machine.groups) + machine.coming < self._feeds:
            group = self._group(idle=not machine.groups)
            if group is None:
                break
            self._holders[group[0]] = self._holders.get(group[0], 0) + 1
            self._driver_free = max(self._driver_free, now) + self._fleet.driver * (group[1] - group[0])
            machine.coming += 1
            self._at(self._driver_free, "start", i, machine.lives, *group)

    def _start(self, i: int, now: float, life: int, first: int, end: int) -> None:
        """A group has arrived."""
        machine = self._machines[i]
        if machine.lives != life:  # which has failed meanwhile
            self._give_back(first, end)
            self._offer(now)
            return
        machine.advance(now)
        machine.coming -= 1
        tokens = self._sums[end] - self._sums[first]
        heapq.heappush(machine.groups, (machine.clock + tokens, first, end, tokens))
        self._expect(i)

    def _expect(self, i: int) -> None:
        """Note when a machine's next group ends."""
        machine = self._machines[i]
        machine.version += 1
        if machine.groups:
            self._at(machine.next_end(), "end", i, machine.version)

    def _group(self, idle: bool) -> tuple[int, int] | None:
        waiting = len(self._sums) - 1 - self._next
        if self._again:
            group = self._again.popleft()
        elif waiting:
            n = GROUP if self._fleet.fixed_groups else lines_of_group(waiting, self._feeds * self._up)
            group = self._next, self._next + min(n, waiting)
            self._next = group[1]
        else:
            while self._fleet.copies and idle and self._sent:
                group = self._sent.popleft()
                if self._holders.get(group[0]):
                    return group
            return None
        self._sent.append(group)
        return group
