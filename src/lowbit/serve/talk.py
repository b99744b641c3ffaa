"""A conversation made ready: its prompt, what its answer is held to, and what finds thoughts and calls in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..chat.tools import ToolCalls, in_thought
from ..engine import Generation
from .asking import one_constraint
from .fields import Kind, mapping
from .problems import Problem
from .service import Service


def _take_tools(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError
    return tuple(value)


def _take_choice(value: Any) -> Any:
    if value not in ("auto", "none", "required") and not isinstance(value, dict):
        raise ValueError
    return value


def _take_values(value: Any) -> dict[str, Any]:
    values: dict[str, Any] = mapping.take(value)
    if not all(re.fullmatch(r"[a-z]\w{0,63}", name) and name not in _OURS for name in values):
        raise ValueError
    if not isinstance(values.get("enable_thinking", False), bool):
        raise ValueError
    return values


_OURS = ("messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "today")
template_values_kind = Kind(f"an object of names, none of them {', '.join(_OURS)}", _take_values, {"type": "object"})
tools_kind = Kind("a list of tools", _take_tools, {"type": "array", "items": {"type": "object"}})
tool_choice_kind = Kind("auto, none, required, or an object that names a function", _take_choice,
                        {"type": ["string", "object"]})  # fmt: skip


@dataclass(frozen=True)
class Talk:
    """What is asked of the engine for an answer, and how the answer is read."""

    ids: list[int]
    tools: tuple[Any, ...]
    choice: Any
    parallel: bool
    source: str
    thinks: bool
    fresh: bool
    """Whether the answer begins here, and not in the last message."""

    def parser(self) -> ToolCalls:
        """Return a parser for one answer."""
        return _calls(self.tools, self.choice, self.parallel, self.source, self.thinks)

    def hold(self, chosen: dict[str, Any]) -> None:
        """Add what the tools ask of the answer to the arguments of `Engine.submit`."""
        grammar = self.parser().grammar
        if grammar is not None:
            given = [name for name in ("json_schema", "regex", "grammar") if chosen.get(name) is not None]
            if given:
                raise Problem(400, f"tools and {given[0]} cannot go together", param="tools")
            chosen["grammar"] = grammar
        one_constraint(chosen)
        chosen["fresh"] = self.fresh


async def prepare(
    service: Service, messages: list[dict[str, Any]], begun: str = "", tools: Iterable[Any] | None = None,
    choice: Any = None, parallel: bool | None = None, values: Mapping[str, Any] | None = None,
) -> Talk:  # fmt: skip
    """Write a conversation as token ids.

    Raises
    ------
    Problem
        If the messages or the tools are not as they must be.
    """
    source, known = service.template.source, tuple(tools or ())
    if choice is not None and not known and choice not in ("none", "auto"):
        raise Problem(400, "tool_choice asks for a tool that is not there", param="tool_choice")
    together = parallel is not False
    calls = await asyncio.to_thread(_calls, known, choice, together, source, False)
    ids = await service.conversation_ids(messages, begun, calls.tools, values)
    return Talk(ids, known, choice, together, source, in_thought(ids, service.tokenizer, source), not begun)


def shown_tools(service: Service, tools: Iterable[Any] | None, choice: Any) -> list[dict[str, Any]] | None:
    """Return the tools that the model is told of."""
    return _calls(tuple(tools or ()), choice, True, service.template.source, False).tools


def _calls(tools: tuple[Any, ...], choice: Any, parallel: bool, source: str, thinks: bool) -> ToolCalls:
    try:
        return ToolCalls(list(tools), choice, parallel, source, thinks)
    except ValueError as error:
        name = "tool_choice" if "tool_choice" in str(error) else "tools"
        where = "" if str(error).startswith(name) else f"{name}: "
        raise Problem(400, f"{where}{error}", param=name, code="invalid_value") from None


def finish_reason(parser: ToolCalls, result: Generation, choice: Any) -> str:
    """Return why an answer ended, in OpenAI's words: a call that was asked for by name ends as any text does."""
    reason = why(result)
    return "tool_calls" if parser.called and reason == "stop" and not isinstance(choice, Mapping) else reason


def why(result: Generation) -> str:
    """Return why a text ended, in OpenAI's words, which do not tell a full context from `max_tokens`."""
    return "stop" if result.finish_reason == "stop" else "length"
