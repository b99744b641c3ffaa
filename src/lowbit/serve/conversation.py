"""Messages of the chat APIs, as what a chat template takes."""

from __future__ import annotations

from typing import Any

from ..chat.templates import MAX_MESSAGES
from ..errors import one_line
from .fields import Kind, shown
from .problems import Problem

BETWEEN_PARTS = "\n\n"
_HARMLESS = ("name", "refusal", "audio", "function_call", "annotations")
"""What clients send along; none may say anything."""  # fmt: skip


_MORE: dict[str, tuple[str, ...]] = {
    "system": (), "developer": (), "user": (), "assistant": ("tool_calls", "reasoning_content"),
    "tool": ("tool_call_id", "name"),
}  # fmt: skip
"""What a message of a role has besides its content."""


def content_text(content: Any, at: str, types: tuple[str, ...] = ("text",)) -> str:
    """Return the text of a content: a text, or a list of parts of these types."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Problem(400, f"{at} must be a text or a list of parts, not {shown(content)}", param=at)
    texts = []
    for i, part in enumerate(content):
        here = f"{at}[{i}]"
        if not isinstance(part, dict):
            raise Problem(400, f"{here} must be an object, not {shown(part)}", param=here)
        if part.get("type") not in types:
            raise Problem(400, f"{here}: parts of type {shown(part.get('type'))} are not supported, only text",
                          param=f"{here}.type", code="unsupported_content")  # fmt: skip
        if not isinstance(part.get("text"), str):
            raise Problem(400, f"{here}.text must be a text, not {shown(part.get('text'))}", param=f"{here}.text")
        unknown = set(part) - {"type", "text", "cache_control", "annotations", "citations", "logprobs"}
        if unknown:
            raise Problem(400, f"{here}.{min(unknown)} is not supported", param=f"{here}.{min(unknown)}")
        texts.append(part["text"])
    return BETWEEN_PARTS.join(texts)


def _take_messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise ValueError
    messages: list[dict[str, Any]] = []
    for i, message in enumerate(value):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Problem(400, f"{at} must be an object, not {shown(message)}", param=at)
        role = message.get("role")
        if not isinstance(role, str) or role not in _MORE:
            raise Problem(400, f"{at}.role must be {', '.join(_MORE)}, not {shown(role)}", param=f"{at}.role",
                          code="invalid_value")  # fmt: skip
        for name, given in message.items():
            if name in ("role", "content") or name in _MORE[role] or (name in _HARMLESS and given in (None, [])):
                continue
            raise Problem(400, f"{at}.{one_line(name)[:60]} is not supported", param=f"{at}.{one_line(name)[:60]}",
                          code="unknown_parameter")  # fmt: skip
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        text = content_text(content, f"{at}.content")
        more = {name: message[name] for name in _MORE[role] if message.get(name) is not None}
        messages.append({"role": "system" if role == "developer" else role, "content": text, **more})
    return conversation(messages)


def conversation(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with all instructions at the beginning in one."""
    n = 0
    while n < len(messages) and messages[n]["role"] == "system":
        n += 1
    if n > 1:
        messages = [
            {"role": "system", "content": BETWEEN_PARTS.join(m["content"] for m in messages[:n])},
            *messages[n:],
        ]
    if all(message["role"] == "system" for message in messages):
        raise Problem(400, "messages: there is nothing to answer", param="messages")
    return messages


def split_begun(messages: list[dict[str, Any]], begin: bool = True) -> tuple[list[dict[str, Any]], str]:
    """Return the messages, and the answer that the last one begins, if it is the assistant's."""
    if begin and messages[-1]["role"] == "assistant":
        if len(messages) > 1 and messages[-2]["role"] == "assistant":
            raise Problem(400, "messages: two of the assistant's stand at the end", param="messages")
        if len(messages) > 1 and "tool_calls" not in messages[-1]:
            return messages[:-1], messages[-1]["content"]
    return messages, ""


messages_kind = Kind(f"a list of 1 to {MAX_MESSAGES} messages", _take_messages,
                     {"type": "array", "minItems": 1, "items": {"type": "object"}})  # fmt: skip
