"""Calls of tools: what a model is asked for, and what it answered, found in its text piece by piece.

What comes out does not depend on how the text was cut into pieces: a parser decides nothing that the next character
could change.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling import Grammar
from ..tokenizers import Tokenizer
from .toolformats import Format, Tool, choose_format, grammar_of, is_readable, is_text

MOST_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Delta:
    """A part of an answer: text, reasoning, or a part of a call."""

    text: str = ""
    reasoning: str = ""
    index: int | None = None
    """Number of the call; None if it is none."""
    id: str = ""
    """Together with `name`, in the first delta of a call."""
    name: str = ""
    arguments: str = ""
    """A part of the JSON text of the arguments."""


class ToolCalls:
    """What a request with tools needs: what to render, what to hold the text to, and a parser of the answer.

    Parameters
    ----------
    tools : list of dict
        As OpenAI has them: ``{"type": "function", "function": {"name", "description", "parameters"}}``.
    tool_choice : str or dict or None
        ``auto`` (None too), ``none``, ``required``, or ``{"type": "function", "function": {"name"}}``.
    parallel : bool
        Whether one answer may hold several calls.
    template : str
        Text of the chat template, which tells how the model writes calls; may be empty.
    thinks : bool
        Whether the prompt ends within a thought (`in_thought`).

    Attributes
    ----------
    tools : list of dict or None
        For `lowbit.chat.render`; None if the model is to know of none.
    grammar : Grammar or None
        For `Engine.submit`; None if the text is free.
    called : bool
        Whether a call was found.

    Raises
    ------
    ValueError
        If a tool or the choice is not as it must be.
    """

    def __init__(
        self, tools: list[dict[str, Any]], tool_choice: Any, parallel: bool, template: str,
        thinks: bool = False,
    ) -> None:  # fmt: skip
        known = [_checked(i, tool) for i, tool in enumerate(tools)]
        if len(known) > MOST_TOOLS:
            raise ValueError(f"{len(known)} tools are more than {MOST_TOOLS}")
        if len({tool.name for tool in known}) < len(known):
            raise ValueError("two tools have the same name")
        choice = "auto" if tool_choice is None else tool_choice
        named = _named(choice) if isinstance(choice, Mapping) else None
        if named is None and choice not in ("auto", "none", "required"):
            raise ValueError(f"tool_choice must be auto, none, required or a function, not {choice!r}")
        if named is not None:
            known = [tool for tool in known if tool.name == named]
        if (named is not None or choice == "required") and not known:
            raise ValueError("tool_choice asks for a tool that is not there")
        form = choose_format(template)
        self.tools: list[dict[str, Any]] | None = None
        self.grammar: Grammar | None = None
        if known and choice != "none":
            self.tools = tools
            required = named is not None or choice == "required"
            self.grammar = grammar_of(form, known, required, parallel and named is None, thinks)
        else:
            known = []
        self._parser = _Parser(form, known, thinks)

    @property
    def called(self) -> bool:
        """Whether a call was found."""
        return self._parser.n_calls > 0

    def push(self, text: str, last: bool = False) -> list[Delta]:
        """Take a piece of the answer, perhaps the last one; return what is certain now."""
        return self._parser.push(text) + (self._parser.finish() if last else [])

    def finish(self) -> list[Delta]:
        """Return what was held back, when no more comes."""
        return self._parser.finish()


def message_of(deltas: Iterable[Delta]) -> dict[str, Any]:
    """Put an answer together: a message with ``content``, and perhaps ``reasoning_content`` and ``tool_calls``."""
    text, reasoning = "", ""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        text += delta.text
        reasoning += delta.reasoning
        if delta.index is not None:
            if delta.name:
                calls.append({"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}})
            calls[-1]["function"]["arguments"] += delta.arguments
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return message | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def in_thought(prompt: Sequence[int], tokenizer: Tokenizer, template: str = "") -> bool:
    """Whether a prompt ends with the mark that begins a thought, as those of some models do."""
    last = [
        tokenizer.piece(token).encode() if token in tokenizer.control_ids else tokenizer.token_bytes(token)
        for token in prompt[-16:]
    ]
    return b"".join(last).decode("utf-8", "replace").rstrip().endswith(choose_format(template).reasoning[0])


def _checked(i: int, tool: Any) -> Tool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise ValueError(f"tool {i} is no function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"tool {i}: the name must be up to 128 letters, digits, dots, dashes and underscores")
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    readable = isinstance(parameters, Mapping) and is_readable(parameters)
    if not readable or parameters.get("type", "object") != "object":
        raise ValueError(f"tool {i}: the parameters are no schema of an object")
    more = {"$ref", "anyOf", "allOf", "oneOf", "patternProperties", "additionalProperties"}.intersection(parameters)
    closed = {} if more or "properties" not in parameters else {"additionalProperties": False}
    return Tool(name, {"type": "object", **closed, **parameters})  # else models invent arguments without an end


def _named(choice: Mapping[str, Any]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise ValueError("tool_choice is an object that names no function")
    return name


class _MoreError(Exception):
    """What comes next decides."""


class _Parser:
    """Finds reasoning and calls in a text.

    `_held` is what was not decided yet. Each state is a method that takes from its beginning what is certain, and
    returns the next state, or raises `_MoreError`.
    """

    def __init__(self, form: Format, tools: Sequence[Tool], thinks: bool) -> None:
        self._form = form
        self._tools = {tool.name: tool for tool in tools}
        self._held, self._ended = "", False
        self._out: list[Delta] = []
        self._state: Callable[[], Any] = self._thought if thinks else self._start
        self._fresh = True  # nothing of the answer was seen yet
        self.n_calls = 0
        self._tool: Tool | None = None
        self._depth, self._quoted, self._escaped = 0, False, False
        self._n_parameters = 0

    def push(self, text: str) -> list[Delta]:
        self._held += text
        try:
            while True:
                self._state = self._state()
        except _MoreError:
            out, self._out = self._out, []
            return out

    def finish(self) -> list[Delta]:
        self._ended = True
        return self.push("")

    # --- text and reasoning ---

    def _start(self) -> Any:
        """At the very beginning: a thought, or the answer."""
        text = self._skip_space(keep=True)
        opening = self._form.reasoning[0]
        if text.startswith(opening):
            self._held = text[len(opening) :]
            return self._thought
        if opening.startswith(text) and not self._ended:
            raise _MoreError
        return self._answer

    def _thought(self) -> Any:
        if self._fresh:
            self._skip_space()
            self._fresh = False
        done = self._until(self._form.reasoning[1], lambda text: Delta(reasoning=text))
        if not done:
            raise _MoreError
        self._fresh = True
        return self._after_thought

    def _after_thought(self) -> Any:
        self._skip_space()
        return self._answer

    def _answer(self) -> Any:
        """Text up to a call."""
        form = self._form
        if self._tools and not form.begin:
            return self._bare if self._fresh else self._text
        return self._text

    def _bare(self) -> Any:
        """A call that begins with a brace, which must be the first thing there is."""
        text = self._skip_space(keep=True)
        for mark in self._form.marks:  # which may stand before it
            if text.startswith(mark):
                text = text[len(mark) :]
                break
            if mark.startswith(text) and not self._ended:
                raise _MoreError
        if not text and not self._ended:
            raise _MoreError
        found = self._head(text, 0)
        return self._text if found is None else self._begin(*found, text)

    def _text(self) -> Any:
        form = self._form
        self._fresh = False
        mark, after = form.lead if self._tools else ("", "")
        at = self._held.find(mark) if mark else -1
        if at < 0:
            stable = len(self._held) if self._ended else len(self._held) - _overlap(self._held, mark)
            if not self._ended:
                stable = len(self._held[:stable].rstrip())  # white space before a call is none of the text
            self._give_text(self._held[:stable])
            self._held = self._held[stable:]
            raise _MoreError
        place = self._match(after, self._held, at + len(mark))
        found = None if place is None else self._head(self._held, place)
        if found is None:  # the mark, but no call
            self._give_text(self._held[: at + len(mark)])
            self._held = self._held[at + len(mark) :]
            return self._text
        self._give_text(self._held[:at].rstrip())
        return self._begin(*found, self._held)

    def _give_text(self, text: str) -> None:
        if text and not (self.n_calls and text.isspace()):
            self._out.append(Delta(text=text))

    def _skip_space(self, keep: bool = False) -> str:
        """Drop white space, or look behind it; more of it may come."""
        text = self._held.lstrip()
        if not text and not self._ended:
            if not keep:
                self._held = ""
            raise _MoreError
        if not keep:
            self._held = text
        return text

    def _until(self, mark: str, give: Callable[[str], Delta]) -> bool:
        """Give out text up to a mark, without the white space before it; whether the mark came."""
        at = self._held.find(mark)
        text = self._held[:at] if at >= 0 else self._held
        if at < 0 and not self._ended:
            text = text[: len(text) - _overlap(text, mark)]
        stable = text.rstrip()
        if stable:
            self._out.append(give(stable))
        self._held = self._held[at + len(mark) :] if at >= 0 else self._held[len(stable) :]
        return at >= 0

    # --- calls ---

    def _head(self, text: str, at: int) -> tuple[str, int] | None:
        """Read the beginning of a call; its name and where the arguments begin, or None if it is none."""
        form = self._form
        place = self._match(form.open, text, at)
        if place is None:
            return None
        middle = form.middle.lstrip()[:1] or "{"
        end = next((i for i in range(place, len(text)) if text[i] == middle or text[i].isspace()), None)
        if end is None:
            rest = text[place:]
            if not self._ended and any(name.startswith(rest) for name in self._tools):
                raise _MoreError
            return None
        name = text[place:end]
        if name not in self._tools:
            return None
        place = self._match(form.middle + ("" if form.tagged else "{"), text, end)
        if place is None:
            return None
        return name, place if form.tagged else place - 1

    def _match(self, wanted: str, text: str, at: int) -> int | None:
        """Where a text that is expected ends; white space may be more or less, but in names of marks."""
        for part in re.findall(r"\s+|[^\s\w]|\w+", wanted):
            while at < len(text) and text[at].isspace():
                at += 1
            if part.isspace():
                continue
            if text.startswith(part, at):
                at += len(part)
            elif part.startswith(text[at:]) and not self._ended:
                raise _MoreError
            else:
                return None
        return at

    def _begin(self, name: str, at: int, text: str) -> Any:
        self._held = text[at:]
        self._tool = self._tools[name]
        random = os.urandom(9)  # nine, for some templates want that
        characters = "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in random)
        self._out.append(Delta(index=self.n_calls, id=characters, name=name))
        self.n_calls += 1
        self._depth, self._quoted, self._escaped, self._n_parameters = 0, False, False, 0
        if self._form.tagged:
            self._give_arguments("{")
            return self._parameter
        return self._json

    def _give_arguments(self, text: str) -> None:
        if text:
            self._out.append(Delta(index=self.n_calls - 1, arguments=text))

    def _json(self) -> Any:
        """Arguments in JSON: up to the brace that closes the first one."""
        for i, character in enumerate(self._held):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._give_arguments(self._held[: i + 1])
                    self._held = self._held[i + 1 :]
                    return self._close
        self._give_arguments(self._held)
        self._held = ""
        raise _MoreError

    def _parameter(self) -> Any:
        """A tagged argument, or the end of them."""
        text = self._skip_space(keep=True)
        opening, closing = "<parameter=", "</parameter>"
        if not text.startswith(opening):
            if opening.startswith(text) or "</function>".startswith(text):
                raise _MoreError  # at the end, too: it was cut off
            self._give_arguments("}")
            self._held = text
            return self._close
        end = text.find(closing)
        if end < 0:
            raise _MoreError  # a value is given out as a whole: how it is written in JSON depends on all of it
        name, found, value = text[len(opening) : end].partition(">")
        if found:
            value = value.removeprefix("\n").removesuffix("\n")
            separator = ", " if self._n_parameters else ""
            self._give_arguments(f"{separator}{json.dumps(name, ensure_ascii=False)}: {self._converted(name, value)}")
            self._n_parameters += 1
        self._held = text[end + len(closing) :]
        return self._parameter

    def _converted(self, name: str, value: str) -> str:
        assert self._tool is not None
        schema = self._tool.parameters.get("properties", {}).get(name)
        only_text = isinstance(schema, Mapping) and is_text(schema) and (
            schema.get("type") == "string" or all(isinstance(v, str) for v in schema.get("enum", (0,)))
        )  # fmt: skip
        if not only_text:
            try:
                return json.dumps(json.loads(value), ensure_ascii=False, allow_nan=False)
            except (ValueError, RecursionError):
                pass
        return json.dumps(value, ensure_ascii=False)

    def _close(self) -> Any:
        """What stands after a call, and whether another one follows."""
        form, text = self._form, self._held
        if form.name == "mistral":
            at = self._match(', "id": "', text, 0)
            if at is not None:
                end = text.find('"', at)
                if end < 0 and not self._ended:
                    raise _MoreError
                text = text[end + 1 :] if end >= 0 else text
        at = self._match(form.close, text, 0)
        if at is None:  # it is cut off, or was never closed
            self._held = text
            return self._text
        self._held = text[at:]
        return self._next

    def _next(self) -> Any:
        form, text = self._form, self._held
        at = self._match(form.between, text, 0)
        if at is not None:
            found = self._head(text, at)
            if found is not None:
                return self._begin(*found, text)
        if form.end:
            at = self._match(form.end, text, 0)
            if at is not None:
                self._held = text[at:]
        return self._after_calls

    def _after_calls(self) -> Any:
        self._skip_space()
        return self._text


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    most = min(len(text), len(mark) - 1)
    return next((n for n in range(most, 0, -1) if mark.startswith(text[-n:])), 0)
