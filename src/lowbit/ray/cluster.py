"""A Ray cluster as machines for a batch: one process on each node, with all of its processors."""

from __future__ import annotations

import socket
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..batch import Answer
from ..batch.asked import Asked
from ..batch.dispatch import Node
from ..errors import LowbitError, one_line
from .worker import Task, Worker

CONNECT_SECONDS = 10.0
"""To reach the cluster."""


def connect(address: str) -> None:
    """Reach a cluster.

    Parameters
    ----------
    address : str
        As `ray.init` takes it: ``auto``, ``HOST:PORT``, or ``local`` for one that is started here.

    Raises
    ------
    LowbitError
        If there is no such cluster.
    """
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, logging_level="error", log_to_driver=False)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise LowbitError(f"no Ray cluster answers at {address}: {one_line(error)}") from None


def nodes() -> list[Node]:
    """Return the nodes that are alive and have a processor."""
    return [
        Node(node["NodeID"], _name(node["NodeManagerAddress"], node["NodeID"]), int(node["Resources"]["CPU"]))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


def this_node() -> str:
    """Return the name of the node that this runs on."""
    return _name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


def _name(address: str, identity: str) -> str:
    return f"{address} ({identity[:8]})"


class Cluster:
    """The nodes of a cluster.

    Parameters
    ----------
    address : str
        As for `connect`.
    task : Task

    Raises
    ------
    LowbitError
        If there is no such cluster.
    """

    def __init__(self, address: str, task: Task) -> None:
        self._task = task
        connect(address)

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive and have a processor."""
        return nodes()

    def start(self, node: Node, calls: int) -> _Process:
        """Begin an actor on a node; threads are as many as processors, which are all set aside for it."""
        actor = ray.remote(Worker).options(
            num_cpus=node.cpus, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            max_concurrency=calls + 1,
        )  # fmt: skip
        return _Process(actor.remote(self._task, node.cpus))

    def close(self) -> None:
        """Leave the cluster, which ends our actors."""
        ray.shutdown()


class _Process:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def load(self) -> dict[str, Any]:
        header: dict[str, Any] = await self._actor.load.remote()
        return header

    async def answer(self, group: list[tuple[int, int, Asked]]) -> list[Answer]:
        answers: list[Answer] = await self._actor.answer.remote(group)
        return answers

    def kill(self) -> None:
        ray.kill(self._actor)
