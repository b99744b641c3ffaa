'''What a user types, message by message: with a line editor at a terminal, or plain lines from a pipe.

A message is a line, or several between """ and """.
'''

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

QUOTES = '"""'
FILES = ("/load ", "/save ")
"""Commands behind which a file is named."""

Reader = Callable[[str], str]
"""Shows what to type behind, and returns what was typed.

EOFError at the end of the input; KeyboardInterrupt if the user presses Ctrl-C.
"""


def message_reader(commands: Iterable[str]) -> tuple[Callable[[], str], bool]:
    """Return what reads a message, and whether a person types it.

    Parameters
    ----------
    commands : iterable of str
        What can be typed in the place of a message.
    """
    person = sys.stdin is not None and sys.stdin.isatty()
    read = (_editor(commands) or _terminal()) if person else _pipe
    return lambda: _message(read), person


def _message(read: Reader) -> str:
    """Read lines until a message is whole."""
    text = read("> ")
    if not text.lstrip().startswith(QUOTES):
        return text
    with contextlib.suppress(EOFError):  # the end of the input is the end of the message
        while _is_open(text):
            text += "\n" + read("... ")
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")


def _is_open(text: str) -> bool:
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def _pipe(prompt: str) -> str:
    line = b"" if sys.stdin is None else sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _terminal() -> Reader:
    """Read lines as Python does: with history and arrows where it has the module for that."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it from now on
    return input if sys.stdout.isatty() else _with_prompt_apart


def _with_prompt_apart(prompt: str) -> str:
    """Read a line where only answers shall go to standard output."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _editor(commands: Iterable[str]) -> Reader | None:
    """Return the line editor, if it is installed and the terminal is good enough for it."""
    shown = sys.stdout if sys.stdout.isatty() else sys.stderr
    dumb = os.environ.get("TERM", "dumb") == "dumb" and os.name != "nt"
    if dumb or not shown.isatty():
        return None
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle
    except ImportError:
        return None
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if _is_open(buffer.text):
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.newline()

    session: PromptSession[str] = PromptSession(
        multiline=True,
        prompt_continuation="... ",
        key_bindings=keys,
        completer=_completer(commands),
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        reserve_space_for_menu=0,
        enable_suspend=True,
        output=create_output(shown),
    )
    return session.prompt


def _completer(commands: Iterable[str]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    files = PathCompleter(expanduser=True)

    class Commands(Completer):
        """Completes commands, and names of files behind those that take one."""

        def get_completions(self, document: Document, event: Any) -> Iterable[Completion]:
            text = document.text_before_cursor
            for name in FILES:
                if text.startswith(name):
                    yield from files.get_completions(Document(text.removeprefix(name)), event)
            if text.startswith("/"):
                for name in commands:
                    if name.startswith(text):
                        yield Completion(name, -len(text))

    return Commands()
