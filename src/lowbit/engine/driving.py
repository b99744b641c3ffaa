"""Who makes the steps of an engine: a thread of its own, or whoever waits for a text."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from .._kernels.decoder import Batch, Decoder
from .._kernels.sequence import Turn
from ..errors import LowbitError

IDLE_SECONDS = 0.05
"""Between two looks of somebody who waits, in case he was not told."""
STUCK_SECONDS = 0.001
"""Between two steps, if another engine has the memory, or a grammar is being compiled."""


class Driven(ABC):
    """What takes steps as long as there is work, and tells those that wait for what comes of them.

    Parameters
    ----------
    decoder : Decoder
        Its lock is held while a step is made.
    thread : bool
        Whether a thread of its own makes the steps; else whoever waits does.
    """

    def __init__(self, decoder: Decoder, thread: bool) -> None:
        self._decoder, self._batch, self._threaded = decoder, Batch(decoder), thread
        self._thread: threading.Thread | None = None
        self._fresh()

    def _fresh(self) -> None:
        """Make what a child process cannot take over from its parent."""
        self._process = os.getpid()
        self.changed = threading.Condition()
        """Told after each step."""
        self._turn = Turn()
        self.listeners: set[Callable[[], None]] = set()
        """Called after each step, by the thread that made it."""
        self._closed: BaseException | None = None
        self._sweep = False

    @abstractmethod
    def _has_work(self) -> bool: ...

    @abstractmethod
    def _settle(self) -> None:
        """Let go of what is over."""

    @abstractmethod
    def _admit(self) -> None:
        """Take in those that wait."""

    @abstractmethod
    def _step(self) -> bool:
        """Make a step; whether there was anything to do."""

    @abstractmethod
    def _leave_parent(self) -> None:
        """In a child process: let go of what the parent goes on with."""

    def check_process(self) -> None:
        """Go on in a child process, if there is no thread, which would have stayed in the parent."""
        if os.getpid() != self._process:
            if self._threaded:
                raise LowbitError("an engine does not live on in a child process; make a new one there")
            self._leave_parent()

    def close(self) -> None:
        """Cancel all requests and stop. May be called twice."""
        self._stop(LowbitError(""))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._process:
            thread.join()

    def settle(self) -> None:
        """Let go of what was cancelled: now if nobody drives, or else at the next step.

        The garbage collector may call this amid a step of another engine, which then lets go of the memory.
        """
        if os.getpid() != self._process:
            return
        self._sweep = True
        self._decoder.interrupt()
        if not self._threaded and not self._turn.taken and not self._decoder.lock.mine:
            with self._turn as mine:
                if mine:
                    with self._decoder.lock:
                        self._settle()
        self.tell()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()`; until then make steps, unless somebody else does."""
        while not ready():
            self.check_process()
            if not self._threaded:
                with self._turn as mine:
                    while mine and not ready():
                        if not self._drive():
                            time.sleep(STUCK_SECONDS)
            with self.changed:
                if not ready():
                    self.changed.wait(IDLE_SECONDS)
        if not self._threaded:
            self.tell()  # somebody else may have to drive now

    def tell(self) -> None:
        """Wake up those that wait for something to change; in a child process nobody does."""
        if os.getpid() != self._process:
            return
        with self.changed:
            self.changed.notify_all()
            listeners = tuple(self.listeners)
        for listen in listeners:
            listen()

    def _start_thread(self) -> None:
        """Start the engine's own thread, if it has one; the caller holds `changed`."""
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="lowbit engine", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        """The engine's own thread."""
        try:
            while self._closed is None:
                stuck = self._has_work()
                if not self._drive():
                    with self.changed:
                        if self._closed is None and (stuck or not self._has_work()):
                            self.changed.wait(STUCK_SECONDS if stuck else IDLE_SECONDS)
        except BaseException as error:  # everybody has to be told
            self._stop(error)
            raise
        finally:
            with self._decoder.lock:
                self._settle()
            self.tell()

    def _drive(self) -> bool:
        """One step, and all that belongs to it; whether there was anything to do."""
        with self._decoder.lock:
            try:
                self._settle()
                self._admit()
                stepped = self._step()
            finally:
                self._settle()
        self.tell()
        return stepped

    def _stop(self, reason: BaseException) -> None:
        if os.getpid() != self._process:
            return
        with self.changed:
            self._closed = self._closed or reason
            self._batch.give_up()
            self.changed.notify_all()
