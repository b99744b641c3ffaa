"""Many machines, all of them in this process and none of them real: nothing is lost or doubled, whatever fails."""

from __future__ import annotations

import asyncio
import random

import pytest

import lowbit
from lowbit.batch import Answer, Dispatcher, dispatch
from lowbit.batch.asked import Asked
from lowbit.batch.dispatch import Node

HEADER = {"version": "1", "model": "m"}


class Process:
    """Answers lines with their numbers."""

    def __init__(self, machines, node):
        self.machines, self.node, self.dead = machines, node, False
        machines.processes.append(self)

    async def load(self):
        await asyncio.sleep(0)
        if self.node.id in self.machines.goes:
            self.machines.lost.add(self.node.id)
            raise ConnectionError("the node is gone")
        return self.machines.headers.get(self.node.id, HEADER)

    async def answer(self, group):
        machines = self.machines
        machines.groups.append(len(group))
        if self.node.id in machines.stuck:
            await asyncio.sleep(3600)
        for _ in range(machines.rng.randint(1, 5)):
            await asyncio.sleep(0)
            if machines.rng.random() < machines.death or {line[1] for line in group} & machines.deadly:
                self.dead = True
            if self.dead or self.node.id in machines.lost:
                raise ConnectionError("the process is gone")
        machines.answered.append(self.node.id)
        return [Answer(b"%d" % number, False, 1) for _, number, _ in group]

    def kill(self):
        self.dead = True


class Machines:
    """A cluster."""

    def __init__(self, n, seed=0, death=0.0, deadly=(), headers=None):
        self.all = [Node(str(i), f"machine {i}", 1) for i in range(n)]
        self.rng, self.death, self.deadly, self.headers = random.Random(seed), death, set(deadly), headers or {}
        self.stuck, self.goes = set(), set()
        self.lost, self.groups, self.answered, self.processes = set(), [], [], []

    def nodes(self):
        return [node for node in self.all if node.id not in self.lost]

    def start(self, node, calls):
        return Process(self, node)

    def close(self):
        pass


def answers(machines, n=500, during=lambda done: None):
    """Have lines answered; return what comes of each."""
    dispatcher = Dispatcher(machines, 8)

    async def one(number, done):
        answer = await dispatcher.answer(number, number, Asked(f"line {number}", "POST", "/v1/completions", {}))
        done.append(number)
        during(len(done))
        return answer

    async def run():
        done = []
        return await asyncio.wait_for(asyncio.gather(*(one(i, done) for i in range(n)), return_exceptions=True), 60)

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.001)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_line_gets_its_own_answer(n):
    machines = Machines(n)
    assert [answer.line for answer in answers(machines)] == [b"%d" % i for i in range(500)]
    assert set(machines.answered) == {str(i) for i in range(n)}, "all take part"
    assert sum(machines.groups) == 500, "and no line is sent twice"


def test_groups_become_small_towards_the_end():
    machines = Machines(2)
    answers(machines)
    assert max(machines.groups) == 16
    assert machines.groups[-1] == 1


def test_an_idle_machine_takes_what_a_slow_one_has(monkeypatch):
    monkeypatch.setattr(dispatch, "LONG_SECONDS", 0.01)
    machines = Machines(2)
    machines.stuck = {"1"}
    assert [answer.line for answer in answers(machines)] == [b"%d" % i for i in range(500)]
    assert set(machines.answered) == {"0"}


@pytest.mark.parametrize("seed", range(5))
def test_processes_that_die_lose_nothing(seed):
    machines = Machines(3, seed, death=0.02)
    assert [answer.line for answer in answers(machines, 2000)] == [b"%d" % i for i in range(2000)]
    assert len(machines.processes) > 3, "some died"


def test_a_machine_that_goes_leaves_its_lines_to_the_others(capsys):
    machines = Machines(3)
    found = answers(machines, during=lambda done: machines.lost.add("1") if done == 100 else None)
    assert [answer.line for answer in found] == [b"%d" % i for i in range(500)]
    assert "lowbit: node machine 1 is gone; what it had goes to others\n" in capsys.readouterr().err


def test_a_machine_that_goes_while_it_loads_is_left_out():
    machines = Machines(3)
    machines.goes = {"2"}
    assert [answer.line for answer in answers(machines)] == [b"%d" % i for i in range(500)]
    machines = Machines(1)
    machines.goes = {"0"}
    with pytest.raises(lowbit.LowbitError, match="no node of the cluster is left"):
        Dispatcher(machines, 8)


def test_a_machine_that_comes_later_takes_part():
    machines = Machines(1)

    def more(done):
        if done == 50:
            machines.all.append(Node("new", "the new one", 1))

    answers(machines, 3000, more)
    assert "new" in machines.answered


def test_a_line_that_kills_whoever_has_it_fails_and_no_other():
    machines = Machines(2, deadly=[77])
    found = answers(machines, 200)
    assert [answer.line for i, answer in enumerate(found) if i != 77] == [b"%d" % i for i in range(200) if i != 77]
    assert found[77].failed
    assert b"6 processes ended while they answered it" in found[77].line


def test_when_no_machine_is_left_everybody_is_told():
    machines = Machines(2)
    found = answers(machines, during=lambda done: machines.lost.update("01") if done == 100 else None)
    errors = [one for one in found if isinstance(one, Exception)]
    assert errors
    assert {str(error) for error in errors} == {"no node of the cluster is left"}


@pytest.mark.parametrize(
    ("header", "said"),
    [({"error": "no such file"}, "node machine 1: no such file"),
     ({**HEADER, "version": "2"}, "node machine 1 has another version than the others: 2"),
     ({**HEADER, "model": "n"}, "node machine 1 has another model than the others: n")],
)  # fmt: skip
def test_a_machine_that_is_not_as_the_others_is_named(header, said):
    with pytest.raises(lowbit.LowbitError, match=said):
        Dispatcher(Machines(3, headers={"1": header}), 8)


def test_a_cluster_without_machines_is_refused():
    with pytest.raises(lowbit.LowbitError, match="no node with a processor"):
        Dispatcher(Machines(0), 8)


def test_a_later_machine_that_is_not_as_the_others_takes_no_part(capsys):
    machines = Machines(1, headers={"new": {**HEADER, "version": "2"}})

    def more(done):
        if done == 50:
            machines.all.append(Node("new", "the new one", 1))

    answers(machines, 3000, more)
    assert "new" not in machines.answered
    assert "node the new one takes no part: it has another model or version" in capsys.readouterr().err
