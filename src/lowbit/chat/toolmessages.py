"""Messages of conversations with tools: checked, and written for templates that know tools and for those that don't."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .toolformats import Format

_JOINS_TEXT = re.compile(r"(\['arguments'\]|\[\"arguments\"\]|\.arguments)\s*\+")
"""Where a template takes arguments for a text, which it does not turn into JSON itself."""

_HOW = "You can call these functions:\n{tools}\n\nTo call one, answer with nothing but this:\n{call}"


def more_of(i: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a message has besides role and content, checked; ValueError if it is not as it must be."""
    more: dict[str, Any] = {}
    calls = message.get("tool_calls")
    if message["role"] == "assistant" and calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise ValueError(f"message {i}: tool_calls is no list")
        more["tool_calls"] = [_call(i, call) for call in calls]
    names = {"assistant": ("reasoning_content",), "tool": ("tool_call_id", "name")}.get(message["role"], ())
    for name in names:
        if message.get(name) is not None:
            if not isinstance(message[name], str):
                raise ValueError(f"message {i}: {name} is no text")
            more[name] = message[name]
    return more


def _call(i: int, call: Any) -> dict[str, Any]:
    """A call, with its arguments as an object, as templates want them."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"message {i}: a tool call has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise ValueError(f"message {i}: the arguments of a tool call are no JSON") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(f"message {i}: the arguments of a tool call are no object")
    checked = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return checked | ({"id": str(call["id"])} if call.get("id") is not None else {})


def as_taught(messages: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Return messages for a template that knows tools; one that joins arguments to texts gets them as text."""
    if not _JOINS_TEXT.search(source):
        return [dict(message) for message in messages]
    out = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": _as_json(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        out.append({**message, "content": message["content"] or None, "tool_calls": calls} if calls else dict(message))
    return out


def in_plain_words(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages for a template that knows no tools: calls and results as ordinary text."""
    out: list[dict[str, Any]] = []
    before = None
    names: dict[str, str] = {}
    for message in messages:
        role, content = message["role"], message["content"]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            names[call.get("id", "")] = function["name"]
            content += ("\n" if content else "") + _as_json(function)
        if role == "tool":
            name = message.get("name") or names.get(message.get("tool_call_id", ""), "the function")
            role, content = "user", f"Result of {name}: {content}"
        if message["role"] == before == "tool":
            out[-1]["content"] += "\n" + content
        else:
            out.append({"role": role, "content": content})
        before = message["role"]
    return out


def with_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], form: Format) -> list[dict[str, Any]]:
    """Return messages of which the first tells what tools there are, for a template that does not."""
    arguments = '{"argument name": "value"}'
    if form.tagged:
        arguments = "<parameter=argument name>\nvalue\n</parameter>\n"
    call = f"{form.begin}{form.open}function name{form.middle}{arguments}{form.close}{form.end}"
    how = _HOW.format(tools="\n".join(_as_json(tool.get("function", tool)) for tool in tools), call=call)
    out = [dict(message) for message in messages]
    if out[0]["role"] == "system":
        out[0]["content"] = f"{out[0]['content']}\n\n{how}"
        return out
    return [{"role": "system", "content": how}, *out]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
