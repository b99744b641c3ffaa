"""Messages of Anthropic's API, which are made of blocks, as those of the chat templates; and answers as blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..chat.tools import Delta, message_of
from ..errors import one_line
from .conversation import BETWEEN_PARTS, content_text
from .fields import Kind, shown, whole
from .problems import Problem


def _take_messages(value: Any) -> list[dict[str, Any]]:
    """Messages of one side that follow each other are one; results of tools are messages of their own."""
    if not isinstance(value, list) or not value:
        raise ValueError
    found: list[dict[str, Any]] = []
    for i, message in enumerate(value):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Problem(400, f"{at} must be an object, not {shown(message)}", param=at)
        role = message.get("role")
        if role not in ("user", "assistant"):
            raise Problem(400, f"{at}.role must be user or assistant, not {shown(role)}", param=f"{at}.role")
        unknown = set(message) - {"role", "content"}
        if unknown:
            raise Problem(400, f"{at}.{one_line(min(unknown))[:60]} is not supported", param=at)
        for one in _split(role, message.get("content"), f"{at}.content"):
            if found and found[-1]["role"] == one["role"] and not {"tool_calls", "tool_call_id"} & {*found[-1], *one}:
                found[-1]["content"] += BETWEEN_PARTS + one["content"]
            else:
                found.append(one)
    return found


def _split(role: str, content: Any, at: str) -> list[dict[str, Any]]:
    """Return what one message says, as OpenAI's messages."""
    if not isinstance(content, list):
        return [{"role": role, "content": content_text(content, at)}]
    said: list[Any] = []
    results: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    for i, block in enumerate(content):
        kind, here = block.get("type") if isinstance(block, dict) else None, f"{at}[{i}]"
        if kind == "tool_result" and role == "user":
            given = _field(block, "content", (str, list, type(None)), here) or ""
            results.append({"role": "tool", "tool_call_id": _field(block, "tool_use_id", (str,), here),
                            "content": content_text(given, f"{here}.content")})  # fmt: skip
        elif kind == "tool_use" and role == "assistant":
            function = {"name": _field(block, "name", (str,), here), "arguments": _field(block, "input", (dict,), here)}
            call = {"id": _field(block, "id", (str,), here), "type": "function", "function": function}
            more.setdefault("tool_calls", []).append(call)
        elif kind == "thinking" and role == "assistant":
            more["reasoning_content"] = more.get("reasoning_content", "") + _field(block, "thinking", (str,), here)
        else:
            said.append(block)
    rest = [] if results and not said else [{"role": role, "content": content_text(said, at), **more}]
    return [*results, *rest]


def _field(block: dict[str, Any], name: str, types: tuple[type, ...], at: str) -> Any:
    value = block.get(name)
    if not isinstance(value, types):
        raise Problem(400, f"{at}.{name} is missing or of the wrong type", param=f"{at}.{name}")
    return value


def _take_tools(value: Any) -> tuple[Any, ...]:
    """Tools as OpenAI has them."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError
    found = []
    for i, tool in enumerate(value):
        unknown = set(tool) - {"type", "name", "description", "input_schema", "cache_control", "strict"}
        if tool.get("type", "custom") != "custom" or unknown:
            raise Problem(400, f"tools[{i}]: only tools with name, description and input_schema are supported",
                          param="tools")  # fmt: skip
        function = {"name": tool.get("name"), "description": tool.get("description", ""),
                    "parameters": tool.get("input_schema")}  # fmt: skip
        found.append({"type": "function", "function": function})
    return tuple(found)


def _take_choice(value: Any) -> tuple[Any, bool]:
    """The choice as OpenAI has it, and whether there may be one call only."""
    if not isinstance(value, dict) or not set(value) <= {"type", "name", "disable_parallel_tool_use"}:
        raise ValueError
    kind, alone = value.get("type"), value.get("disable_parallel_tool_use", False)
    choices = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(alone, bool) or ("name" in value) != (kind == "tool"):
        raise ValueError
    if kind == "tool":
        return {"type": "function", "function": {"name": value["name"]}}, alone
    if not isinstance(kind, str) or kind not in choices:
        raise ValueError
    return choices[kind], alone


def _take_output(value: Any) -> Any:
    form = value.get("format") if isinstance(value, dict) else None
    if not isinstance(form, dict) or set(value) != {"format"} or set(form) != {"type", "schema"}:
        raise ValueError
    if form["type"] != "json_schema" or not isinstance(form["schema"], dict):
        raise ValueError
    return form["schema"]


def _take_thinking(value: Any) -> bool:
    """Whether there may be thoughts."""
    if value == {"type": "disabled"}:
        return False
    if not isinstance(value, dict) or set(value) != {"type", "budget_tokens"} or value["type"] != "enabled":
        raise ValueError
    whole(1).take(value["budget_tokens"])
    return True


messages_kind = Kind("a list of messages", _take_messages, {"type": "array", "minItems": 1})
system_kind = Kind("a text or a list of text blocks", lambda value: content_text(value, "system"),
                   {"type": ["string", "array"]})  # fmt: skip
tools_kind = Kind("a list of tools", _take_tools, {"type": "array", "items": {"type": "object"}})
choice_kind = Kind("an object of type auto, any, none or tool", _take_choice, {"type": "object"})
thinking_kind = Kind("an object of type disabled, or of type enabled with budget_tokens", _take_thinking,
                     {"type": "object"})  # fmt: skip
output_kind = Kind("an object with a format of type json_schema and its schema", _take_output, {"type": "object"})


def empty_block(kind: str, id_: str = "", name: str = "") -> dict[str, Any]:
    """Return a block of an answer before anything is in it."""
    if kind == "tool_use":
        return {"type": kind, "id": f"toolu_{id_}", "name": name, "input": {}}
    return {"type": kind, "thinking": "", "signature": ""} if kind == "thinking" else {"type": kind, "text": ""}


def delta_of(delta: Delta) -> dict[str, Any]:
    """Return a part of a block."""
    if delta.arguments:
        return {"type": "input_json_delta", "partial_json": delta.arguments}
    if delta.reasoning:
        return {"type": "thinking_delta", "thinking": delta.reasoning}
    return {"type": "text_delta", "text": delta.text}


def blocks_of(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """Return a whole answer."""
    message = message_of(deltas)
    blocks: list[dict[str, Any]] = []
    if "reasoning_content" in message:
        blocks.append({**empty_block("thinking"), "thinking": message["reasoning_content"]})
    if message["content"] or not message.get("tool_calls"):
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls", ()):
        try:
            given = json.loads(call["function"]["arguments"])
        except ValueError:  # max_tokens has cut it off
            given = {}
        blocks.append({**empty_block("tool_use", call["id"], call["function"]["name"]), "input": given})
    return blocks
