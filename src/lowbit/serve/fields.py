"""The fields of a request as a frozen dataclass: what each may be, what it means, and what it is when left out.

One table per endpoint is the parser, the check, the manual and the published description at once. A field that a table
does not have is refused by name, and so is a value that would have to be ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import one_line
from .problems import Problem

Table = TypeVar("Table")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value may be."""

    words: str
    """As in "must be a whole number"."""
    take: Callable[[Any], Any]
    """Returns the value as it is used; raises ValueError, or a Problem with a message of its own."""
    schema: dict[str, Any]
    """The same as a JSON schema."""


def _kind(words: str, holds: Callable[[Any], bool], schema: dict[str, Any]) -> Kind:
    def take(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return value

    return Kind(words, take, schema)


def whole(least: int, most: int = 2**31 - 1) -> Kind:
    """Return the kind of whole numbers in a range."""

    def take(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():  # some clients write 10.0
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    return Kind(f"a whole number from {least} to {most}", take, {"type": "integer", "minimum": least, "maximum": most})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30 and value == value


number = _kind("a number", _is_number, {"type": "number"})
flag = _kind("true or false", lambda value: isinstance(value, bool), {"type": "boolean"})
text = _kind("a text", lambda value: isinstance(value, str), {"type": "string"})
mapping = _kind("an object", lambda value: isinstance(value, dict), {"type": "object"})


def choice(*values: str) -> Kind:
    """Return the kind of some words."""
    return _kind(" or ".join(map(shown, values)), lambda value: isinstance(value, str) and value in values,
                 {"type": "string", "enum": list(values)})  # fmt: skip


def only(*values: Any) -> Kind:
    """Return the kind of a field that asks for what happens anyway, or for nothing."""
    words = " or ".join(map(shown, values)) if values else "left out"

    def holds(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in values)

    return _kind(f"{words}: nothing else is supported", holds, {"enum": list(values)})


def list_of(kind: Kind, most: int) -> Kind:
    """Return the kind of lists."""

    def take(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError
        return tuple(kind.take(one) for one in value)

    return Kind(f"a list of 0 to {most}, each {kind.words}", take,
                {"type": "array", "items": kind.schema, "minItems": 0, "maxItems": most})  # fmt: skip


def option(kind: Kind, help_: str, default: Any = None) -> Any:
    """Return a field of a table that may be left out; null is the same."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help_})


def need(kind: Kind, help_: str) -> Any:
    """Return a field that must be there."""
    return dataclasses.field(default=None, metadata={"kind": kind, "help": help_, "needed": True})


def parse(table: type[Table], body: dict[str, Any]) -> Table:
    """Read a request.

    Raises
    ------
    Problem
        400, with the field's name, if one is unknown, missing, or not what it must be.
    """
    known = {field.name: field for field in dataclasses.fields(table)}  # type: ignore[arg-type]
    for name in body:
        if name not in known:
            raise Problem(400, f"{one_line(name)[:60]} is not supported", param=one_line(name)[:60],
                          code="unknown_parameter")  # fmt: skip
    values = {}
    for name, field in known.items():
        value = body.get(name)
        if value is not None:
            values[name] = take(field.metadata["kind"], value, name)
        elif field.metadata.get("needed"):
            raise Problem(400, f"{name} is missing", param=name, code="missing_required_parameter")
    return table(**values)


def take(kind: Kind, value: Any, name: str) -> Any:
    """Return a value that is of a kind."""
    try:
        return kind.take(value)
    except ValueError:
        raise Problem(400, f"{name} must be {kind.words}, not {shown(value)}", param=name,
                      code="invalid_value") from None  # fmt: skip


def shown(value: Any) -> str:
    """Return a value for a message: short, and of one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of that size"
    words = one_line(value)
    return repr(words if len(words) <= 60 else f"{words[:57]}...") if isinstance(value, str) else words


def schema(table: Any) -> dict[str, Any]:
    """Return a table as a JSON schema."""
    fields = dataclasses.fields(table)
    return {
        "type": "object",
        "properties": {
            field.name: {**field.metadata["kind"].schema, "description": field.metadata["help"]} for field in fields
        },
        "required": [field.name for field in fields if field.metadata.get("needed")],
        "additionalProperties": False,
    }
