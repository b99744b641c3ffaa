"""Lines as the rows of a Ray Data set, for those who have a pipeline already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from ..batch import Answer, failure
from ..batch.asked import digest_of, key_of, read_line
from ..serve.problems import Problem
from .worker import Task, answerer_of


class Answers:
    """A class for `Dataset.map_batches`: rows with a column ``text``, a line of a batch each, get a column ``answer``.

    >>> lines = ray.data.read_text("requests.jsonl")
    >>> lines.map_batches(Answers, fn_constructor_args=[task], compute=ray.data.ActorPoolStrategy(size=2), num_cpus=4,
    ...                   max_concurrency=4, batch_size=64).write_json("answers")

    The model is loaded once for each actor, with as many threads as it has processors. Several batches at a time
    (`max_concurrency`) share its engine.
    """

    def __init__(self, task: Task) -> None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._answerer = answerer_of(task, max(1, int(cpus)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        lines: Sequence[str] = batch["text"]
        answers = asyncio.run_coroutine_threadsafe(self._all(lines), self._loop).result()
        return {**batch, "answer": np.array([one.line.decode().rstrip("\n") for one in answers], object)}

    async def _all(self, lines: Sequence[str]) -> list[Answer]:
        return await asyncio.gather(*map(self._one, lines))

    async def _one(self, line: str) -> Answer:
        try:
            asked = read_line(line.encode())
        except Problem as problem:
            return failure(digest_of(line.encode()), 0, None, problem)
        return await self._answerer.answer(key_of(asked), 0, asked)
