"""Prompts of requests: texts, token ids, and both mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .fields import Kind
from .service import Service


def _take_prompts(value: Any) -> Any:
    """A text, a list of texts, token ids, or a list of these, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value or len(value) > 1 << 20:
        raise ValueError
    if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        return (token_ids(value),)
    return tuple(one if isinstance(one, str) else token_ids(one) for one in value)


def token_ids(value: Any) -> tuple[int, ...]:
    """Return token ids; ValueError if it is anything else."""
    if not isinstance(value, list) or not value:
        raise ValueError
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in value):
        raise ValueError
    return tuple(value)


def _take_mixed(value: Any) -> tuple[str | int, ...]:
    """A text, token ids, both mixed, or {"prompt_string": text}."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        if set(value) != {"prompt_string"} or not isinstance(value["prompt_string"], str):
            raise ValueError
        return (value["prompt_string"],)
    if not isinstance(value, list) or not value:
        raise ValueError
    parts = []
    for part in value:
        parts.append(part if isinstance(part, str) else token_ids([part])[0])
    return tuple(parts)


def _take_input(value: Any) -> tuple[str | int, ...]:
    """The same, or {"content": parts} with the parts of a text."""
    if not isinstance(value, dict) or set(value) != {"content"}:
        return _take_mixed(value)
    parts = value["content"]
    if not isinstance(parts, list) or not parts:
        raise ValueError
    for part in parts:
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            raise ValueError
        if not isinstance(part["text"], str):
            raise ValueError
    return ("".join(part["text"] for part in parts),)


def _take_several(value: Any, take: Any) -> tuple[bool, tuple[Any, ...]]:
    """(several?, prompts)."""
    several = isinstance(value, list) and (
        all(isinstance(one, str) for one in value) or any(isinstance(one, (list, dict)) for one in value)
    )
    return (True, tuple(map(take, value))) if several and value else (False, (take(value),))


prompts_kind = Kind("a text, token ids, or a list of these", _take_prompts, {"type": ["string", "array"]})
mixed_kind = Kind("a text, token ids, both mixed, or a list of these", lambda value: _take_several(value, _take_mixed),
                  {"type": ["string", "array", "object"]})  # fmt: skip
input_kind = Kind("a text, token ids, both mixed, an object with a content of text parts, or a list of these",
                  lambda value: _take_several(value, _take_input)[1],
                  {"type": ["string", "array", "object"]})  # fmt: skip
ids_kind = Kind("a list of token ids", lambda value: () if value == [] else token_ids(value),
                {"type": "array", "items": {"type": "integer"}})  # fmt: skip


async def prompt_ids(service: Service, prompts: Sequence[Any]) -> list[Sequence[int]]:
    """Return the token ids of prompts, texts or ids."""
    return [await mixed_ids(service, (one,) if isinstance(one, str) else one) for one in prompts]


async def mixed_ids(service: Service, parts: Sequence[str | int]) -> Sequence[int]:
    """Return the token ids of a prompt whose parts are texts and ids; BOS alone if there is nothing else."""
    if all(isinstance(part, int) for part in parts):
        ids = [part for part in parts if isinstance(part, int)]
    else:
        ids = []
        for part in parts:
            more = {"add_bos": False} if ids else {}
            ids += [part] if isinstance(part, int) else await service.encode(part, **more)
    if not ids and service.tokenizer.bos_id is not None:
        ids = [service.tokenizer.bos_id]
    return ids
