"""The server on a cluster (Ray Serve): one door, and replicas behind it that each have the whole model."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from ..batch.header import common_header
from ..errors import LowbitError, one_line
from ..serve import App, Service, Settings
from .cluster import this_node
from .door import Door
from .routing import PrefixRouter
from .worker import VERSION, Task

Message = MutableMapping[str, Any]
REPLICAS = "replica"
"""What replicas are called as a deployment."""


class Replica:
    """The server's application in a process of its own.

    Parameters
    ----------
    task : Task
    cpus : int
        Threads, unless the task says.
    header : dict, optional
        What the other nodes have; one that has another model or version ends here.
    """

    def __init__(self, task: Task, cpus: int, header: dict[str, Any] | None = None) -> None:
        self._service = Service(task.settings, lambda: task.load(cpus))
        try:
            self._service.load()
        except (LowbitError, OSError, ValueError, MemoryError) as error:
            raise LowbitError(f"node {this_node()}: {one_line(error) or 'not enough memory'}") from None
        if header is not None:
            common_header([("of the others", header), (this_node(), task.header_of(self._service.model))])
        self._app = App(self._service)

    async def answer(self, scope: dict[str, Any], body: bytes, key: int) -> AsyncIterator[list[Message]]:
        """Yield the messages that the application sends; whoever stops reading is a client that has left."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left, parts = asyncio.Event(), [body]

        async def receive() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        running = asyncio.ensure_future(self._app(scope, receive, messages.put))
        running.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            ended = False
            while not ended:
                ready = [await messages.get()]
                with contextlib.suppress(asyncio.QueueEmpty):
                    while True:
                        ready.append(messages.get_nowait())
                ended = None in ready
                some = [message for message in ready if message is not None]
                if some:
                    yield some
        finally:
            left.set()
            await asyncio.wait({running}, timeout=10)
            running.cancel()

    def doing(self, key: int) -> dict[str, Any]:
        """Return what the engine has done, as `Engine.stats` tells it, and in which process."""
        return {**self._service.engine.stats(), "pid": os.getpid()}

    def check_health(self) -> None:
        """Raise an exception if the engine has ended: another process takes its place then."""
        self._service.check()


def deployment(
    model: str | None = None, *, cpus: int = 1, replicas: int | tuple[int, int] = 1, settings: Settings | None = None,
    **options: Any,
) -> serve.Application:  # fmt: skip
    """Return the server as an application for `ray.serve.run`.

    Parameters
    ----------
    model : str, optional
        As for `lowbit.load`, at the same path on every node; None is the embedded model.
    cpus : int
        Processors of each replica, and its threads.
    replicas : int or pair of int
        How many there are; or the fewest and the most, of which there are as many as the requests need.
    settings : Settings, optional
    **options
        Of `lowbit.load`.
    """
    settings = Settings(version=VERSION) if settings is None else settings
    return application(Task(model, options, settings, 0), cpus, replicas)


def application(
    task: Task, cpus: int, replicas: int | tuple[int, int], header: dict[str, Any] | None = None
) -> serve.Application:
    """Return the door with its replicas; they are to have `header`, if it is given."""
    settings = task.settings
    scale: dict[str, Any] = {"num_replicas": replicas}
    if isinstance(replicas, tuple):
        scale = {"autoscaling_config": {
            "min_replicas": replicas[0], "max_replicas": replicas[1], "upscale_delay_s": 5,
            "target_ongoing_requests": settings.max_sequences,
        }}  # fmt: skip
    behind = serve.deployment(
        Replica, name=REPLICAS, ray_actor_options={"num_cpus": cpus}, health_check_period_s=2,
        max_ongoing_requests=settings.max_sequences + settings.max_queue, max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.grace_seconds,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"full": settings.max_sequences}
        ), **scale,
    )  # fmt: skip

    def opened() -> Door:
        return Door(serve.get_deployment_handle(REPLICAS, serve.get_replica_context().app_name), settings)

    # The door is where the cluster's head is: without that, nothing goes on anyway.
    door = serve.deployment(
        serve.ingress(opened)(), name="door", max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )  # fmt: skip
    bound: serve.Application = door.bind(behind.bind(task, cpus, header))
    return bound
