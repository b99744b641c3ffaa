"""The command line: a table of subcommands, and the manners that all of them share.

What a command was asked for goes to standard output, everything else to standard error. The exit status is 0,
2 after one line that says what is wrong with the input, 130 after Ctrl-C, or 141 when nobody reads the output.
Nothing heavy is imported here: a subcommand imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from . import __version__
from .commands.common import FILES, InputError, path, printable
from .errors import LowbitError

COMMANDS = {
    "generate": True, "chat": True, "serve": True, "batch": True, "plan": False, "pull": False, "models": False,
    "convert": True, "info": True, "tokenize": True, "perplexity": True, "bench": True, "quantize": True,
    "calibrate": True, "train": True, "cache": False, "completion": False,
}  # fmt: skip
"""Modules of `lowbit.commands`, in the order in which the help lists them, and whether they compute: the others begin
sooner.

Each has a docstring (its help), ``add_arguments(parser)`` and ``run(args) -> exit status``.
"""


BEGIN = """\
to begin with:
  lowbit generate "Once upon a time"   continue a text, with the model that comes along
  lowbit chat -m FILE                  talk with a model
  lowbit help COMMAND                  what a command does, and its options
"""
ELSEWHERE = {
    "--predict": "--max-tokens", "--n-predict": "--max-tokens", "--max-new-tokens": "--max-tokens",
    "--ctx-size": "--context", "--n-ctx": "--context", "--max-kv-size": "--context", "--hf-repo": "-m hf:OWNER/NAME",
    "--ignore-eos": "-n", "--system-prompt": "--system", "--reverse-prompt": "--stop", "--grammar-file": "--grammar",
    "--cache-type-k": "--kv-type", "--chat-template": "--template",
}  # fmt: skip
"""What other programs call our options."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"lowbit: error: {printable(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:  # and what goes wrong is told, unlike in argparse
            (file or sys.stderr).write(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here, and not where all of it was read: only this parser knows what may have been meant.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown[0])}")
        return found, unknown

    def _hint(self, word: str) -> str:
        if not word.startswith("-"):
            return "; a text of several words needs quotes"
        name = word.partition("=")[0]
        meant = _nearest(name, self._option_string_actions)
        if ELSEWHERE.get(name, "").partition(" ")[0] in self._option_string_actions:
            meant = ELSEWHERE[name]
        return f"; did you mean {meant}?" if meant else ""


def _nearest(word: str, names: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(names), 1)), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process if not given.

    Returns
    -------
    int
        The exit status.
    """
    try:
        _prepare_streams()
        status = _run(argv)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the terminal has echoed ^C in the middle of a line
        return 130
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except OSError as error:
        if error.filename is None:
            _discard_stdout()  # a full disk, say: what is still buffered cannot be written either
            return _fail(error.strerror or str(error))
        return _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")
    except (InputError, LowbitError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("not enough memory")


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    if words[0] in ("-m", "--model", "-p", "--prompt"):  # as for programs that have no commands
        return _fail(f"a command comes first, such as: lowbit chat {words[0]} ... (see lowbit --help)")
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        near = _nearest(words[0], COMMANDS)
        hint = f"; did you mean {near}?" if near else ""
        if os.path.exists(words[0]):
            hint = f"; to talk with a model: lowbit chat -m {words[0]}"
        return _fail(f"there is no command {words[0]!r}{hint} (see lowbit --help)")
    try:
        args = _parser().parse_args(words)
    except SystemExit as stop:  # argparse has shown help, the version, or what is wrong
        return int(stop.code or 0)
    if COMMANDS[args.command]:
        importlib.import_module("._kernels", __package__)  # it asks the CPU, which numpy does not
    status: int = args.run(args)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lowbit",
        description="Run ternary (1.58-bit) language models on an ordinary CPU.",
        epilog=BEGIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lowbit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        description = module.__doc__ or ""
        command = subparsers.add_parser(
            name,
            help=description.partition("\n")[0],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        for action in command._actions:
            if action.metavar in FILES and action.type is None:
                action.type = path
        command.set_defaults(run=module.run, parser=parser)
    return parser


def _prepare_streams() -> None:
    """Make both output streams able to take any text, wherever they lead."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character shows a question mark; a file or pipe is always UTF-8.
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain when it ends."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _fail(message: str) -> int:
    print(f"lowbit: error: {printable(message)}", file=sys.stderr)
    return 2
