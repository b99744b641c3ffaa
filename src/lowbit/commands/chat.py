"""Talk with a model.

Each line is a message; the answer appears as it is made. Ctrl-C stops an answer, Ctrl-D or /quit ends the program, and
/help lists what else begins with a slash. Lines may also come from a pipe.

With --url the model is behind a server that speaks the OpenAI protocol, such as `lowbit serve`: -m is then its name
there (default: the first that the server lists). Of the sampling options, those that are given are sent; the rest is as
the server has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .common import (
    InputError,
    add_constraint_arguments,
    add_model_arguments,
    add_sampling_arguments,
    constraint_values,
    load_model,
    printable,
    sampling_values,
)

if TYPE_CHECKING:
    from ..chat import ChatSession
    from ..chat.remote import RemoteChat

    Chat = ChatSession | RemoteChat

_HELP = """\
/reset         forget the conversation
/system TEXT   begin anew, with TEXT as the instruction (none without TEXT)
/save FILE     write the conversation to FILE, as JSON
/help          show this list
/quit          end; so does Ctrl-D
//TEXT         say /TEXT
Ctrl-C stops an answer."""
MOST_TOKENS = 1024
"""The model ends its answer; this only bounds one that does not."""
LOCAL = (
    "template", "tokenizer", "threads", "max_ram", "sparsity", "sparse_prefill", "context", "kv_type", "kv_disk",
    "kv_disk_bytes", "head",
)  # fmt: skip
"""Options of a model on this machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="instruction before the first message")
    parser.add_argument("--template", metavar="NAME", help="built-in chat template to use (default: the model's)")
    parser.add_argument("--url", metavar="URL", help="talk with a server there, such as http://127.0.0.1:8080")
    parser.add_argument("--api-key", metavar="KEY", help="with --url: its key (default: $LOWBIT_API_KEY)")
    add_constraint_arguments(parser)
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    sampling = sampling_values(args) | constraint_values(args)
    if args.url is not None:
        # What was not asked for is the server's to decide; not every server knows all of these.
        return _talk(_remote(args), _fields({name: sampling[name] for name in sampling if _given(args, name)}))
    if args.api_key is not None:
        raise InputError("--api-key needs --url")
    return _talk(_local(args), sampling if args.max_tokens is not None else {**sampling, "max_tokens": MOST_TOKENS})


def _given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name, None) is not None


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """Options as fields of a request, of which a schema is an object."""
    if "json_schema" in given:
        try:
            given["json_schema"] = json.loads(given["json_schema"])
        except (ValueError, RecursionError) as error:
            raise InputError(f"--json-schema is no JSON: {error}") from None
    return given


def _remote(args: argparse.Namespace) -> RemoteChat:
    from ..chat.remote import RemoteChat, Server

    for name in LOCAL:
        if _given(args, name):
            raise InputError(f"--{name.replace('_', '-')} is for models on this machine, not behind --url")
    try:
        server = Server(args.url, args.api_key or os.environ.get("LOWBIT_API_KEY"))
    except ValueError as error:
        raise InputError(str(error)) from None

    def thinking(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    return RemoteChat(server, system=args.system, model=args.model, thinking=thinking)


def _local(args: argparse.Namespace) -> ChatSession:
    from ..chat import ChatSession
    from ..errors import UnsupportedModelError

    model = load_model(args)
    try:
        return ChatSession(model, system=args.system, template=args.template)
    except UnsupportedModelError as error:
        if args.template is not None:
            raise
        print(f"lowbit: {printable(str(error))}; using the template 'plain'", file=sys.stderr)
        return ChatSession(model, system=args.system, template="plain")


def _talk(chat: Chat, sampling: dict[str, Any]) -> int:
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        print("/help lists the commands; Ctrl-D ends.", file=sys.stderr)
    while (line := _next_line(interactive)) is not None:
        if line.startswith("/") and not line.startswith("//"):
            if not _command(chat, line):
                break
        elif line.strip():
            _answer(chat, line[1:] if line.startswith("//") else line, sampling)
            # Each answer has randomness of its own, and the conversation as a whole can be had again.
            if "seed" in sampling:
                sampling["seed"] = (sampling["seed"] + 1) % 2**64
    return 0


def _next_line(interactive: bool) -> str | None:
    """Read a message; None at the end of the input."""
    while True:
        try:
            if not interactive:
                line = sys.stdin.buffer.readline().decode("utf-8", "replace") if sys.stdin is not None else ""
                return line.rstrip("\r\n") if line else None
            return input("> ")
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(Ctrl-D or /quit ends)", file=sys.stderr)


def _answer(chat: Chat, text: str, sampling: dict[str, Any]) -> None:
    """Stream the answer to standard output; Ctrl-C ends it, and what is wrong with the message is said."""
    from ..errors import LowbitError

    answer, begun = chat.stream(text, **sampling), False
    try:
        for piece in answer:
            sys.stdout.write(piece)
            sys.stdout.flush()
            begun = True
    except KeyboardInterrupt:
        answer.close()
        print(" [stopped]", file=sys.stderr, end="", flush=True)
    except LowbitError as error:
        print("\n" if begun else "", end="", flush=True)
        hint = "; /reset forgets the conversation" if chat.messages else ""
        print(f"lowbit: {printable(str(error))}{hint}", file=sys.stderr)
        return
    sys.stdout.write("\n")
    sys.stdout.flush()


def _command(chat: Chat, line: str) -> bool:
    """Do what a line with a slash says; return whether to go on."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/reset":
        system = chat.messages[0]["content"] if chat.messages and chat.messages[0]["role"] == "system" else None
        chat.reset(system)
        said = "The conversation is forgotten."
    elif name == "/system":
        chat.reset(rest or None)
        said = "A new conversation begins."
    elif name == "/save":
        said = _save(chat, rest)
    elif name == "/help":
        said = _HELP
    else:
        said = f"There is no command {printable(name)}; /help lists them."
    print(said, file=sys.stderr, flush=True)
    return True


def _save(chat: Chat, path: str) -> str:
    if not path:
        return "/save needs the name of a file."
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(chat.messages, file, ensure_ascii=False, indent=2)
            file.write("\n")
    except OSError as error:
        return f"{printable(path)}: {error.strerror}"
    return f"Saved {len(chat.messages)} messages to {printable(path)}."
