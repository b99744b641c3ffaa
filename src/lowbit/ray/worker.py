"""What runs on a node of a cluster: one process that has the model loaded, and answers groups of lines."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from .._kernels import dispatch
from ..batch import Answer, Answerer
from ..batch.asked import Asked
from ..batch.header import header_of
from ..errors import LowbitError, one_line
from ..loading.load import load
from ..serve import Settings

if TYPE_CHECKING:
    from ..model import Model

VERSION = f"lowbit-{version('lowbit')}"
"""Of the program on this node."""


class Task(NamedTuple):
    """What an answer depends on beside the line; it is sent to each node."""

    model: str | None
    options: dict[str, Any]
    """Of `lowbit.load`."""
    settings: Settings
    seed: int

    def load(self, cpus: int) -> Model:
        """Load the model with as many threads as there are processors for this process, unless the options say."""
        threads = min(self.options.get("threads", cpus), dispatch.cores())
        return load(self.model, **{**self.options, "threads": threads})

    def header_of(self, model: Model) -> dict[str, Any]:
        """Return all that answers depend on beside what is asked, as it is on this node."""
        return {**header_of(model, self.settings, self.seed, self.options), "version": VERSION}


def answerer_of(task: Task, cpus: int) -> Answerer:
    """Return what answers lines with so many processors."""
    return Answerer(task.settings, task.seed, lambda: task.load(cpus))


class Worker:
    """An actor."""

    def __init__(self, task: Task, cpus: int) -> None:
        self._task, self._cpus = task, cpus

    async def load(self) -> dict[str, Any]:
        """Load the model; return the header of its answers, or an ``error``."""
        try:
            self._answerer = await asyncio.to_thread(answerer_of, self._task, self._cpus)
            return await asyncio.to_thread(self._task.header_of, self._answerer.service.model)
        except (LowbitError, OSError, ValueError, MemoryError) as error:
            return {"error": one_line(error) or "not enough memory"}

    async def answer(self, group: list[tuple[int, int, Asked]]) -> list[Answer]:
        """Answer lines: key, number and what each asks."""
        return await asyncio.gather(*(self._answerer.answer(*line) for line in group))
