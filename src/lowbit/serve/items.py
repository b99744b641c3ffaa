"""What goes into a response and comes out of it: items of the Responses API."""

from __future__ import annotations

import secrets
from typing import Any

from ..chat.tools import Delta
from ..errors import one_line
from .conversation import content_text
from .fields import Kind, shown
from .problems import Problem

_KNOWN = {
    "message": {"role", "content", "phase"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "reasoning": {"summary", "content", "encrypted_content"},
}


def _take_input(value: Any) -> list[dict[str, Any]]:
    """Items as the messages of chat completions."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError
    messages: list[dict[str, Any]] = []
    thought = ""
    for i, item in enumerate(value):
        at = f"input[{i}]"
        if not isinstance(item, dict):
            raise Problem(400, f"{at} must be an object, not {shown(item)}", param=at)
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in _KNOWN:
            raise Problem(400, f"{at}: items of type {shown(kind)} are not supported", param=f"{at}.type")
        unknown = set(item) - _KNOWN[kind] - {"type", "id", "status"}
        if unknown:
            raise Problem(400, f"{at}.{one_line(min(unknown))[:60]} is not supported", param=at)
        if kind == "reasoning":
            thought += content_text(item.get("content") or "", f"{at}.content", ("reasoning_text",))
        elif kind == "function_call_output":
            said = content_text(item.get("output"), f"{at}.output", ("input_text", "output_text", "text"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": said})
        else:
            message = _call(item) if kind == "function_call" else _message(item, at)
            if message["role"] == "assistant" and thought:
                message["reasoning_content"], thought = thought, ""
            if kind == "function_call" and messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).extend(message.pop("tool_calls"))
            else:
                messages.append(message)
    return messages


def _call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _message(item: dict[str, Any], at: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise Problem(400, f"{at}.role must be system, developer, user or assistant, not {shown(role)}",
                      param=f"{at}.role")  # fmt: skip
    said = content_text(item.get("content"), f"{at}.content", ("input_text", "output_text", "text"))
    return {"role": "system" if role == "developer" else role, "content": said}


def _take_tools(value: Any) -> tuple[Any, ...]:
    """Tools as chat completions have them."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError
    for i, tool in enumerate(value):
        if tool.get("type") != "function" or set(tool) - {"type", "name", "description", "parameters", "strict"}:
            raise Problem(400, f"tools[{i}]: only tools of type function are supported", param="tools")
    return tuple({"type": "function", "function": {k: v for k, v in tool.items() if k not in ("type", "strict")}}
                 for tool in value)  # fmt: skip


def _take_choice(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"type", "name"} and value["type"] == "function":
        return {"type": "function", "function": {"name": value["name"]}}
    if value not in ("auto", "none", "required"):
        raise ValueError
    return value


input_kind = Kind("a text or a list of items", _take_input, {"type": ["string", "array"]})
own_tools_kind = Kind("a list of functions", _take_tools, {"type": "array", "items": {"type": "object"}})
own_choice_kind = Kind("auto, none, required, or an object of type function with a name", _take_choice,
                       {"type": ["string", "object"]})  # fmt: skip


class Item:
    """A part of an answer: a message, a thought or a call.

    Parameters
    ----------
    delta : Delta
        The first of it.
    place : int
        Number of the item.
    """

    def __init__(self, delta: Delta, place: int) -> None:
        self.kind = kind_of(delta)
        self.id = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}[self.kind] + secrets.token_hex(16)
        self.place, self.text, self._call = place, "", {"call_id": f"call_{delta.id}", "name": delta.name}
        self._events = {"message": "response.output_text", "reasoning": "response.reasoning_text",
                        "function_call": "response.function_call_arguments"}[self.kind]  # fmt: skip

    def object(self, status: str) -> dict[str, Any]:
        """Return the item as it is by now."""
        head = {"id": self.id, "type": self.kind, "status": status}
        done = status != "in_progress"
        if self.kind == "function_call":
            return {**head, **self._call, "arguments": self.text if done else ""}
        content = [self._part()] if done else []
        return {**head, "summary": [], "content": content} if self.kind == "reasoning" else {
            **head, "role": "assistant", "content": content}  # fmt: skip

    def _part(self) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def begin(self) -> list[dict[str, Any]]:
        """Return the events that come before its text."""
        added = {"type": "response.output_item.added", "output_index": self.place, "item": self.object("in_progress")}
        if self.kind == "function_call":
            return [added]
        return [added, {"type": "response.content_part.added", **self._where(), "part": self._part()}]

    def push(self, delta: Delta) -> list[dict[str, Any]]:
        """Take a part of its text; return the event."""
        new = delta.text or delta.reasoning or delta.arguments
        self.text += new
        more: dict[str, Any] = {"logprobs": []} if self.kind == "message" else {}
        return [{"type": f"{self._events}.delta", **self._where(), "delta": new, **more}] if new else []

    def end(self, status: str) -> list[dict[str, Any]]:
        """Return the events that come after its text."""
        whole: dict[str, Any] = {"type": f"{self._events}.done", **self._where()}
        whole |= {"arguments": self.text, "name": self._call["name"]} if self.kind == "function_call" else {
            "text": self.text}  # fmt: skip
        if self.kind == "message":
            whole["logprobs"] = []
        events = [whole]
        if self.kind != "function_call":
            events.append({"type": "response.content_part.done", **self._where(), "part": self._part()})
        done = {"type": "response.output_item.done", "output_index": self.place, "item": self.object(status)}
        return [*events, done]

    def _where(self) -> dict[str, Any]:
        more = {} if self.kind == "function_call" else {"content_index": 0}
        return {"item_id": self.id, "output_index": self.place, **more}


def kind_of(delta: Delta) -> str:
    """Return the kind of item that a part of an answer belongs to."""
    return "function_call" if delta.index is not None else "reasoning" if delta.reasoning else "message"
