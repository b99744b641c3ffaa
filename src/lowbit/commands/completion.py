"""Print what a shell needs to complete commands and options.

    bash  lowbit completion bash > ~/.local/share/bash-completion/completions/lowbit
    zsh   lowbit completion zsh > ~/.zfunc/_lowbit    (with fpath+=~/.zfunc before compinit in ~/.zshrc)
    fish  lowbit completion fish > ~/.config/fish/completions/lowbit.fish

Needs the extra "completion": pip install "lowbit[completion]"
"""

from __future__ import annotations

import argparse

from .common import FILES, InputError

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise InputError('completion needs shtab: pip install "lowbit[completion]"') from None
    _mark_files(args.parser, shtab.FILE)
    print(shtab.complete(args.parser, args.shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser, mark: object) -> None:
    """Tell which arguments of a parser, and of those of its commands, are names of files."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _mark_files(command, mark)
        elif action.metavar in FILES:
            vars(action)["complete"] = mark
