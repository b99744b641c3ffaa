"""lowbit as a new user has it: the installed command in a process of its own, or at a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "lowbit"]
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][0AB]|[\x07\x08]")
"""What a line editor sends to move the cursor and to choose colours."""


SLOW = """
import sys, time
from lowbit import cli
from lowbit.engine import engine

def step(self, of=engine.Engine._step):
    time.sleep(0.1)
    return of(self)

engine.BURST_STEPS, engine.Engine._step = 1, step
sys.exit(cli.main(sys.argv[1:]))
"""
"""lowbit, but slow enough for somebody to press Ctrl-C before a text ends."""


@pytest.fixture
def lowbit():
    """Run a command; text in, text out."""

    def run(*argv, stdin="", timeout=1200, **environment):
        env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        return subprocess.run(
            [*COMMAND, *map(str, argv)], input=stdin, capture_output=True, encoding="utf-8", env=env, timeout=timeout,
            check=False,
        )  # fmt: skip

    return run


def take_terminal():
    """Make standard input what Ctrl-C comes from, and let it come: tests in the background are started without."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process at a pseudo-terminal of 24 rows."""

    def __init__(self, argv, columns, environment):
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=take_terminal,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def until(self, text):
        """Read until `text` appears after what was asked for before; return what came before it."""
        end = time.monotonic() + 120
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not in {self.seen!r}"
            try:
                self.seen = CONTROLS.sub("", self.seen + os.read(self.master, 1 << 16).decode(errors="replace"))
            except OSError:  # the other end is closed
                raise AssertionError(f"{text!r} is not in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def ends(self):
        """Wait for the end, and return the exit status."""
        while True:
            try:
                if not os.read(self.master, 1 << 16):
                    break
            except OSError:
                break
        return self.process.wait(timeout=1200)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal():
    """Start a command at a pseudo-terminal."""
    if os.name == "nt":
        pytest.skip("needs a pseudo-terminal")
    opened = []

    def start(*argv, columns=80, slow=False, **environment):
        command = [sys.executable, "-c", SLOW] if slow else COMMAND
        opened.append(Terminal([*command, *map(str, argv)], columns, environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
