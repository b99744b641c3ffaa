"""`lowbit serve --ray`: sees that all nodes can serve the same, opens the door, and closes it at a signal."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..batch.dispatch import Node
from ..batch.header import common_header
from ..errors import LowbitError, one_line
from ..serve.guard import who_reaches
from .cluster import connect, nodes
from .serving import application
from .worker import Task, Worker

NAME = "lowbit"
"""Of the application, for Ray."""
LOOK_SECONDS = 5.0
"""Between two looks at whether the cluster is still there."""


def run(address: str, task: Task, cpus: int | None, replicas: int | tuple[int, int] | None) -> None:
    """Serve until a signal says stop.

    Parameters
    ----------
    address : str
        Of the cluster.
    task : Task
    cpus : int, optional
        Of each replica; as many as the smallest node has, if not given.
    replicas : int or pair of int, optional
        How many there are, or the fewest and the most; as many as there is room for, if not given.

    Raises
    ------
    LowbitError
        If there is no such cluster; if something else is served there; or if a node, which is named, cannot load the
        model, or has another one or another version.
    """
    before = signal.getsignal(signal.SIGTERM)
    connect(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which Ray has set, too
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _serve(task, cpus, replicas)
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _serve(task: Task, cpus: int | None, replicas: int | tuple[int, int] | None) -> None:
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    there = nodes()
    if not there:
        raise LowbitError("the cluster has no node with a processor")
    cpus = min(node.cpus for node in there) if cpus is None else cpus
    room = sum(node.cpus // cpus for node in there)
    most = max(replicas) if isinstance(replicas, tuple) else replicas
    if room < (most or 1):
        raise LowbitError(f"the cluster has room for {room} replicas of {cpus} processors, not for {most or 1}")
    mark = _claim()
    header = common_header(_try_all(task, there))
    settings = task.settings
    serve.shutdown()  # what is left of a process that was killed
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port})
        serve.run(application(task, cpus, room if replicas is None else replicas, header), name=NAME, route_prefix="/")
        address = f"http://{settings.host}:{settings.port}"
        name, who = ascii(header["model"]["name"])[1:-1], who_reaches(settings).replace("this machine", "that machine")
        print(f"lowbit: serving {name} at {address} on the cluster's head ({who}); Ctrl-C stops",
              file=sys.stderr, flush=True)  # fmt: skip
        while mark is not None:  # which is held until the end
            time.sleep(LOOK_SECONDS)
            serve.status()
    except (RuntimeError, RayError, RayServeException) as error:
        raise LowbitError(_reason(error)) from None
    finally:
        with contextlib.suppress(RuntimeError, RayError, RayServeException):  # it may be gone
            serve.shutdown()


class _Mark:
    """An actor that lives as long as this process, and shows others that it does."""


def _claim() -> Any:
    """Keep others out; raise an error if there are some."""
    try:
        mark = ray.remote(_Mark).options(name=NAME, namespace=NAME, num_cpus=0).remote()
    except ValueError:
        raise LowbitError("lowbit is being served on this cluster already") from None
    others = [name for name in serve.status().applications if name != NAME]
    if others:
        raise LowbitError(f"the cluster serves something else already: {', '.join(others)}; beside that, run "
                          "lowbit.ray.deployment(...) with a route of its own")  # fmt: skip
    return mark


def _try_all(task: Task, there: list[Node]) -> list[tuple[str, dict[str, object]]]:
    """Load the model on every node, which fetches it where it has a name of the hub; return the header of each."""
    actors = [
        ray.remote(Worker).options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
        .remote(task, 1)
        for node in there
    ]  # fmt: skip
    loading = [actor.load.remote() for actor in actors]
    found: list[tuple[str, dict[str, object]]] = []
    for node, one in zip(there, loading):
        try:
            found.append((node.name, ray.get(one)))
        except RayError as error:
            found.append((node.name, {"error": one_line(error)}))
    for actor in actors:
        ray.kill(actor)
    return found


def _reason(error: Exception) -> str:
    said = str(error)
    with contextlib.suppress(RuntimeError, RayError, RayServeException):
        for application in serve.status().applications.values():
            said += "".join(one.message for one in application.deployments.values())
    named = re.search(r"LowbitError: (node .*)", said)
    return named[1] if named else f"the cluster cannot serve: {one_line(error)}"
