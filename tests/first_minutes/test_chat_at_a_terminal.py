"""Chat with the embedded model as somebody types it: a line editor where there is one, plain lines where not."""

from __future__ import annotations

import json
import time

import pytest

UP, ALT_ENTER, TAB, CTRL_C, CTRL_D, CTRL_U = "\x1b[A", "\x1b\r", "\t", "\x03", "\x04", "\x15"
LONG = "\x1b[200~" + "word " * 850 + "\x1b[201~"
"""Longer than a line of a terminal may be without an editor: 4,095 characters."""


def said(path):
    return [m["content"] for m in json.loads(path.read_text("utf-8")) if m["role"] == "user"]


def ask(screen, keys, answered="(The answer was cut at 4 tokens"):
    screen.type(keys)
    screen.until(answered)
    screen.until(">")


def test_the_editor_takes_lines_pastes_and_history_and_completes_commands(terminal, tmp_path):
    pytest.importorskip("prompt_toolkit", reason="the editor needs the extra 'chat'")
    screen = terminal("chat", "-n", 4, "--seed", 1, "-c", 256)
    screen.until("/help lists the commands")
    screen.until(">")
    ask(screen, "one\r")
    ask(screen, UP + " more\r")
    ask(screen, "\x1b[200~pasted\nlines\x1b[201~\r")
    ask(screen, f"two{ALT_ENTER}lines\r")
    ask(screen, '"""\rquoted\rlines\r"""\r')
    screen.type("/tok" + TAB)
    screen.until("ens")
    screen.type("\r")
    screen.until(" of 256 tokens.")
    screen.until(">")
    ask(screen, LONG + "\r", "tokens do not fit into a context of 256")
    screen.type("unsaid" + CTRL_C)
    screen.until("(Ctrl-D or /quit ends)")
    screen.until(">")
    screen.type(f"/save {tmp_path}/talk.json\r")
    screen.until("Saved 10 messages")
    screen.until(">")
    screen.type(CTRL_D)
    assert screen.ends() == 0
    assert said(tmp_path / "talk.json") == ["one", "one more", "pasted\nlines", "two\nlines", "quoted\nlines"]


def test_without_the_editor_lines_are_read_plainly(terminal, tmp_path):
    screen = terminal("chat", "-n", 4, "--seed", 1, TERM="dumb")
    screen.until(">")
    ask(screen, "one\n")
    screen.type('"""two\n')
    screen.until("... ")
    ask(screen, 'lines"""\n')
    screen.type(f"/save {tmp_path}/talk.json\n")
    screen.until("Saved 4 messages")
    screen.until(">")
    screen.type("/bye\n")
    assert screen.ends() == 0
    assert said(tmp_path / "talk.json") == ["one", "two\nlines"]


def test_ctrl_c_stops_an_answer_behind_the_editor_too(terminal, tmp_path):
    pytest.importorskip("prompt_toolkit", reason="the editor needs the extra 'chat'")
    screen = terminal("chat", "--seed", 1, slow=True)
    screen.until(">")
    screen.type("Tell me a story\r")
    screen.until("there was")
    screen.type(CTRL_C)
    screen.until("[stopped]")
    screen.until(">")
    time.sleep(0.1)
    screen.type("/exit\r")
    assert screen.ends() == 0


def test_forty_columns_are_enough(terminal):
    screen = terminal("chat", "-n", 4, "--seed", 1, columns=40)
    screen.until(">")
    ask(screen, "x" * 100 + "\r" if screen else "")
    screen.type(CTRL_D)
    assert screen.ends() == 0
