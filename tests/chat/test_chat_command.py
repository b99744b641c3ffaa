"""`lowbit chat`: through a pipe, and at a terminal with a user who presses Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import lowbit
from lowbit import cli

TALKATIVE = """
import sys, time
from types import SimpleNamespace
import lowbit
from lowbit import cli

class Tokenizer:
    bos_id = eos_id = None
    add_bos = False
    def special_texts(self): return []
    def encode_template(self, text, show): return list(text.translate(show).encode())

class Model:
    tokenizer = Tokenizer()
    def info(self): return {"architecture": "llama", "chat_template": None}
    def stream(self, prompt, **sampling):
        said = bytes(prompt).decode().rpartition("User: ")[2].partition(chr(10))[0]
        yield "<" + said + ">"
        if said == "talk":
            for i in range(10000):
                time.sleep(0.02)
                yield f" {i}"
        return SimpleNamespace(text="", finish_reason="stop")

vars(lowbit)["load"] = lambda *args, **options: Model()
sys.exit(cli.main(sys.argv[1:]))
"""


def take_terminal():
    """Make standard input what Ctrl-C comes from, and let it come: tests in the background are started without."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A child process at a pseudo-terminal."""

    def __init__(self, *argv):
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", TALKATIVE, *argv],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=take_terminal, env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, text, seconds=120):
        """Read until `text` has appeared after what was asked for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"{text!r} is not in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.master)


@pytest.fixture
def terminal():
    opened = []

    def start(*argv):
        opened.append(Terminal(*argv))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    screen = terminal("chat")
    screen.until("> ")
    screen.type("talk\n")
    screen.until("<talk> 0 1 2 3")
    screen.type("\x03")
    screen.until("[stopped]")
    screen.until("> ")
    time.sleep(0.3)  # the prompt is shown just before the program waits for a line
    screen.type("\x03")
    screen.until("(Ctrl-D or /quit ends)")
    screen.until("> ")
    screen.type("more\n")
    screen.until("<more>")
    screen.until("> ")
    screen.type(f"/save {tmp_path}/talk.json\n")
    screen.until("Saved 4 messages")
    screen.until("> ")
    screen.type("\x04")
    assert screen.child.wait(timeout=1200) == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["role"] for m in saved] == ["user", "assistant", "user", "assistant"]
    assert saved[1]["content"].startswith("<talk> 0 1 2")
    assert saved[3]["content"] == "<more>"


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_answers_appear_as_they_are_made(terminal):
    screen = terminal("chat")
    screen.until("> ")
    screen.type("talk\n")
    screen.until("<talk> 0")
    screen.child.send_signal(signal.SIGINT)
    assert " 9999" not in screen.until("[stopped]"), "what was shown first was not the whole answer"
    screen.type("/quit\n")
    assert screen.child.wait(timeout=1200) == 0


@pytest.fixture
def talk(monkeypatch, capsys):
    """Run `lowbit chat` in this process with lines from a pipe."""
    from lowbit.tokenizers import spm

    def run(lines, *argv):
        space = {}
        exec(TALKATIVE.split("vars(lowbit)")[0], space)
        monkeypatch.setitem(vars(lowbit), "load", lambda *args, **options: space["Model"]())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        status = cli.main(["chat", *argv])
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())

    assert spm  # the tokenizer's dependencies are importable
    return run


def test_lines_of_a_pipe_are_messages_and_answers_alone_go_to_standard_output(talk):
    out = talk("Hi\n\n//slash\nÄ".encode())
    assert out.status == 0
    assert out.out == "<Hi>\n</slash>\n<Ä>\n"
    assert "using the template 'plain'" in out.err


def test_commands_change_the_conversation_and_answer_on_standard_error(talk, tmp_path):
    saved = tmp_path / "a.json"
    lines = (
        f"one\n/reset\n/system Be kind.\ntwo\n/save {saved}\n/help\n/nonsense\n/save\n/save {tmp_path}\n/quit\nthree\n"
    )
    out = talk(lines.encode())
    assert out.out == "<one>\n<two>\n"
    assert json.loads(saved.read_text()) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<two>"},
    ]
    for text in ("/save FILE", "no command /nonsense", "needs the name", "Is a directory", "Saved 3 messages"):
        assert text in out.err


def test_an_unknown_template_is_an_error(talk):
    out = talk(b"Hi\n", "--template", "nonsense")
    assert out.status == 2
    assert "'nonsense'" in out.err
