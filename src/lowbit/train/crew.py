"""Processes that share the tasks of a training step, each task done by whoever is free.

Threads that share one matrix product wait for each other at its end; on a machine that does something else as well
they wait most of the time. Processes that take whole passes wait once in a step. What a task computes does not depend
on who does it, so the number of processes changes nothing in the result.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from ..errors import LowbitError


def can_fork() -> bool:
    """Tell whether processes can begin as copies of this one."""
    return sys.platform == "linux"


class Crew:
    """This process and copies of it.

    Parameters
    ----------
    size : processes, this one included
    tasks : functions by name; the last argument is the number of the task
        Copies are made here and now: what the functions read later must be in shared memory or in their arguments.
    threads : of each process, if there are several; so far torch must have had one
    """

    def __init__(self, size: int, tasks: Mapping[str, Callable[..., Any]], threads: int = 1) -> None:
        self.tasks, self.threads = tasks, threads
        context = multiprocessing.get_context("fork") if size > 1 else multiprocessing.get_context()
        self._next: Any = context.Value("q", 0) if size > 1 else None
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for _ in range(size - 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=self._serve, args=(theirs, [*self._pipes, ours]), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        if size > 1:
            torch.set_num_threads(threads)

    def run(self, task: str, count: int, *arguments: Any) -> list[Any]:
        """Do tasks 0 to `count` - 1 and return their results in this order.

        Raises
        ------
        LowbitError
            If a process has ended, or a task has failed in one.
        """
        if not self._pipes:
            return [self.tasks[task](*arguments, i) for i in range(count)]
        self._next.value = 0
        results: dict[int, Any] = {}
        try:
            for pipe in self._pipes:
                pipe.send((task, count, arguments))
            results.update(self._work(task, count, arguments))
            for pipe in self._pipes:
                theirs = pipe.recv()
                if isinstance(theirs, str):
                    raise LowbitError(f"a training process failed: {theirs}")
                results.update(theirs)
        except (EOFError, OSError):
            raise LowbitError("a training process has ended; is there enough memory?") from None
        return [results[i] for i in range(count)]

    def close(self) -> None:
        """End the other processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._pipes, self._processes = [], []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None:  # what they are doing is of no use any more, and nobody shall wait for it
            for process in self._processes:
                process.kill()
            self._processes = []
        self.close()

    def _work(self, task: str, count: int, arguments: tuple[Any, ...]) -> dict[int, Any]:
        done: dict[int, Any] = {}
        while True:
            with self._next.get_lock():
                i = self._next.value
                self._next.value += 1
            if i >= count:
                return done
            done[i] = self.tasks[task](*arguments, i)

    def _serve(self, pipe: Connection, others: list[Connection]) -> None:
        """Work for the first process until it closes the pipe, or ends in whatever way."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for other in others:
            other.close()  # or the end of the first process would not be the end of the pipe
        torch.set_num_threads(self.threads)
        while True:
            try:
                task, count, arguments = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                answer: Any = self._work(task, count, arguments)
            except Exception as error:  # told to the first process, which ends the run
                answer = "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
            try:
                pipe.send(answer)
            except OSError:
                return
