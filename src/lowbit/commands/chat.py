"""Talk with a model.

Each line is a message, or all lines between \"\"\" and \"\"\"; the answer appears as it is made. Ctrl-C stops an
answer, Ctrl-D or /quit ends the program, and /help lists what else begins with a slash. Lines may also come from a
pipe. A question among the arguments is answered, and that is all. At a terminal the extra "chat" (pip install
"lowbit[chat]") brings a line editor: Alt-Enter begins another line, pasted text stays one message, and Tab completes
commands.

When the conversation has outgrown the context, its oldest turns are left out of what the model reads.

With --url the model is behind a server that speaks the OpenAI protocol, such as `lowbit serve`: -m is then its name
there (default: the first that the server lists). Of the sampling options, those that are given are sent; the rest is as
the server has it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ContextLengthError, LowbitError
from ..replacing import Replacing
from .common import (
    MODEL_OPTIONS,
    InputError,
    add_constraint_arguments,
    add_model_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    constraint_values,
    load_model,
    path,
    print_json,
    printable,
    prompt_of,
    read_file,
    refused,
    sampling_values,
)
from .editor import message_reader
from .generate import as_json

if TYPE_CHECKING:
    from ..chat import ChatSession
    from ..chat.remote import RemoteChat

    Chat = ChatSession | RemoteChat

_HELP = {
    "/reset": "forget the conversation",
    "/system TEXT": "begin anew, with TEXT as the instruction (none without TEXT)",
    "/regenerate": "answer the last message again",
    "/tokens": "tell how long the conversation is",
    "/save FILE": "write the conversation to FILE, as JSON",
    "/load FILE": "go on with a conversation that was saved",
    "/help": "show this list",
    "/quit": "end; so do /exit, /bye and Ctrl-D",
    "//TEXT": "say /TEXT",
    '"""': "begins and ends a message of several lines",
    "Ctrl-C": "stops an answer",
}
_COMMANDS = (*(what.partition(" ")[0] for what in _HELP if re.match("/[a-z]", what)), "/exit", "/bye")
MOST_TOKENS = 1024
"""The model ends its answer; this only bounds one that does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser, "answer this and end; - reads a pipe")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each answer, when it is complete")
    parser.add_argument("--system", metavar="TEXT", help="instruction before the first message")
    parser.add_argument("--template", metavar="NAME", help="built-in chat template to use (default: the model's)")
    parser.add_argument("--url", metavar="URL", help="talk with a server there, such as http://127.0.0.1:8080")
    parser.add_argument("--api-key", metavar="KEY", help="with --url: its key (default: $LOWBIT_API_KEY)")
    add_constraint_arguments(parser)
    add_sampling_arguments(parser, str(MOST_TOKENS))
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    sampling = sampling_values(args, MOST_TOKENS) | constraint_values(args)
    question = prompt_of(args)
    chat: Chat
    if args.url is not None:
        # What was not asked for is the server's to decide; not every server knows all of these.
        sampling = _fields({name: sampling[name] for name in sampling if _given(args, name)})
        chat = _remote(args)
    elif args.api_key is not None:
        raise InputError("--api-key needs --url")
    else:
        chat = _local(args)
    talk = Talk(chat, sampling, args.json)
    if question is None:
        return talk.go_on()
    talk.say(question)
    return 0


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

    for name in ("template", *MODEL_OPTIONS):
        if _given(args, name):
            raise InputError(f"--{name.replace('_', '-')} is for models on this machine, not behind --url")
    with refused():
        server = Server(args.url, args.api_key or os.environ.get("LOWBIT_API_KEY"))

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


class Talk:
    """A conversation whose answers go to standard output, and all else to standard error.

    Parameters
    ----------
    chat : ChatSession or RemoteChat
    sampling : dict
        As the conversation's `stream` takes it.
    as_json : bool
        Show an answer as an object, when it is complete.
    """

    def __init__(self, chat: Chat, sampling: dict[str, Any], as_json: bool) -> None:
        self._chat, self._sampling, self._json = chat, sampling, as_json
        self._told = False
        """Whether it was said that turns are left out."""

    def go_on(self) -> int:
        """Answer messages, and do what commands say, to the end of the input."""
        read, person = message_reader(_COMMANDS)
        if person:
            _tell("/help lists the commands; Ctrl-D ends.")
        while True:
            try:
                text = read()
            except EOFError:
                if person:
                    _tell("")
                return 0
            except KeyboardInterrupt:
                if not person:
                    raise
                _tell("\n(Ctrl-D or /quit ends)")
                continue
            if text.startswith("/") and not text.startswith("//"):
                if not self._command(text):
                    return 0
            elif text.strip():
                self._answer(text[1:] if text.startswith("//") else text)

    def say(self, text: str) -> None:
        """Show the answer to a message.

        Raises
        ------
        LowbitError
            If there is none; what was shown of it stays part of the conversation, as after Ctrl-C.
        """
        seed = self._sampling.get("seed")
        answer, pieces = self._chat.stream(text, **self._sampling), list[str]()
        try:
            while True:
                try:
                    piece = next(answer)
                except StopIteration as end:
                    result = end.value
                    break
                if not pieces:
                    self._tell_of_left_out()
                pieces.append(piece)
                if not self._json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        except LowbitError:
            print(end="\n" if pieces and not self._json else "", flush=True)
            raise
        finally:
            answer.close()
            if seed is not None:  # each answer has randomness of its own, and the conversation can be had again
                self._sampling["seed"] = (seed + 1) % 2**64
        if self._json:
            remote = {"text": "".join(pieces), "finish_reason": result}
            print_json(remote if isinstance(result, str) else as_json(result, seed or 0))
        else:
            sys.stdout.write("\n")
        sys.stdout.flush()
        self._tell_of_end(result if isinstance(result, str) else result.finish_reason)

    def _answer(self, text: str) -> None:
        """Show the answer; Ctrl-C ends it, and what is wrong with the message is said."""
        try:
            self.say(text)
        except KeyboardInterrupt:
            print(" [stopped]", file=sys.stderr, end="", flush=True)
            print(flush=True)
        except LowbitError as error:
            too_long = isinstance(error, ContextLengthError)  # by itself: what was said before is left out
            hint = "; /reset forgets the conversation" if self._chat.messages and not too_long else ""
            _tell(f"lowbit: {printable(str(error))}{hint}")

    def _tell_of_left_out(self) -> None:
        if self._chat.left_out and not self._told:
            _tell("(The context is full: the oldest messages are left out of what the model reads.)")
        self._told = bool(self._chat.left_out)

    def _tell_of_end(self, reason: str) -> None:
        if reason == "context":
            _tell("(The answer ends here because the context is full.)")
        elif reason == "length":
            _tell(f"(The answer was cut{_at_most(self._sampling)}; -n takes more.)")

    def _command(self, line: str) -> bool:
        """Do what a line with a slash says; return whether to go on."""
        name, _, rest = line.partition(" ")
        rest, chat = rest.strip(), self._chat
        if name in ("/quit", "/exit", "/bye"):
            return False
        if name == "/reset":
            chat.reset(chat.messages[0]["content"] if chat.messages[:1] and _is(chat.messages[0], "system") else None)
            _tell("The conversation is forgotten.")
        elif name == "/system":
            chat.reset(rest or None)
            _tell("A new conversation begins.")
        elif name == "/regenerate":
            self._regenerate()
        elif name == "/tokens":
            _tell(chat.size())
        elif name == "/save":
            _tell(_save(chat, rest))
        elif name == "/load":
            _tell(_load(chat, rest))
        elif name == "/help":
            for what, does in _HELP.items():
                _tell(f"{what:<13} {does}")
        else:
            _tell(f"There is no command {printable(name)}; /help lists them.")
        return True

    def _regenerate(self) -> None:
        chat, before = self._chat, self._chat.messages
        asked = [i for i, message in enumerate(before) if _is(message, "user")]
        if not asked:
            _tell("There is nothing to answer yet.")
            return
        chat.messages = before[: asked[-1]]
        self._answer(before[asked[-1]]["content"])
        if len(chat.messages) == asked[-1]:  # there was no answer
            chat.messages = before


def _is(message: dict[str, Any], role: str) -> bool:
    return message["role"] == role


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _at_most(sampling: dict[str, Any]) -> str:
    return f" at {sampling['max_tokens']} tokens" if "max_tokens" in sampling else ""


def _save(chat: Chat, name: str) -> str:
    if not name:
        return "/save needs the name of a file."
    try:
        with Replacing(path(name)) as file:
            file.write(json.dumps(chat.messages, ensure_ascii=False, indent=2).encode("utf-8", "replace") + b"\n")
    except OSError as error:
        return f"{printable(name)}: {error.strerror}"
    return f"Saved {len(chat.messages)} messages to {printable(name)}."


def _load(chat: Chat, name: str) -> str:
    from ..chat.templates import check_messages

    if not name:
        return "/load needs the name of a file."
    try:
        messages = json.loads(read_file(name))
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("no list of messages")
        messages = check_messages(messages)
    except OSError as error:
        return f"{printable(name)}: {error.strerror}"
    except (ValueError, RecursionError, InputError, LowbitError) as error:
        return f"{printable(name)}: not a conversation ({printable(str(error))})"
    chat.reset()
    chat.messages = messages
    return f"Loaded {len(messages)} messages from {printable(name)}."
