"""A line of a batch: what it asks, the key by which its answer is known, and the seed that it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ..serve import embeddings, openai
from ..serve.fields import Kind, choice, mapping, need, only, parse
from ..serve.http import parse_object
from ..serve.problems import Problem

PATHS = {
    "/v1/chat/completions": openai.chat,
    "/v1/completions": openai.completions,
    "/v1/embeddings": embeddings.embeddings,
}
"""What a line may ask, and who answers it: the server's own handlers."""


def _take_id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    value.encode()  # UnicodeEncodeError is a ValueError
    return value


@dataclass(frozen=True)
class Asked:
    """The fields of a line."""

    custom_id: str = need(Kind("a text that is not empty", _take_id, {"type": "string", "minLength": 1}),
                          "the name of the line in this file")  # fmt: skip
    method: str = need(only("POST"), "POST")
    url: str = need(choice(*PATHS), "the path that would be asked of a server")
    body: Any = need(mapping, "the request, as the path has it, but for stream")


def read_line(data: bytes) -> Asked:
    """Read a line.

    Raises
    ------
    Problem
        If it is not what it must be.
    """
    asked = parse(Asked, parse_object(data, "the line"))
    if asked.body.get("stream"):
        raise Problem(400, "stream is not supported in a batch", param="stream", code="invalid_value")
    return asked


def key_of(asked: Asked) -> int:
    """Return the number by which the answer to a line is known: another id or another body has another one."""
    text = json.dumps([asked.custom_id, asked.url, asked.body], sort_keys=True)
    return digest_of(text.encode())


def seed_of(seed: int, custom_id: str) -> int:
    """Return the seed of a line that has none of its own."""
    return digest_of(f"{seed} {custom_id}".encode())


def digest_of(data: bytes) -> int:
    """Return 64 bits that stand for some bytes."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def beginning(asked: Asked) -> str:
    """Return a text in the order in which the model reads the line: lines that begin alike have prompts that do."""
    return f"{asked.url} {text_of(asked.body)}"


def text_of(body: dict[str, Any]) -> str:
    """Return what a request says, in the order in which a model reads it."""
    return "\0".join(_texts([body.get(name) for name in _FIRST]))


_FIRST = ("tools", "system", "instructions", "messages", "prompt", "input")
"""Fields that make the prompt."""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        # The role of a message comes before its content, whichever the file has first.
        for name in sorted(value, key=lambda name: (name != "role", name)):
            yield from _texts(value[name])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield str(value)
