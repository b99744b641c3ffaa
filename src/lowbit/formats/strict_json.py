"""JSON from files that nobody vouches for: one object, no surprises, and no more memory than the bytes are worth."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from lowbit.errors import FormatError

MAX_BYTES = 8 << 20
MAX_MARKS = 1 << 18
"""Quotes, and commas, brackets and braces together: what makes a parsed value larger than its text. The headers of the
largest models have a tenth of that."""


def parse_object(data: bytes, what: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Parse a JSON object.

    Parameters
    ----------
    data : bytes
        UTF-8; may be padded with white space at its end.
    what : str
        For messages.
    max_bytes : int

    Raises
    ------
    FormatError
        If it is too large, no UTF-8, no JSON, no object, nested too deeply, or has a key twice.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{what} has {len(data)} bytes, limit {max_bytes}")
    if data[:1] != b"{":
        raise FormatError(f"{what} is no JSON object")
    if data.count(b'"') > MAX_MARKS or sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_MARKS:
        raise FormatError(f"{what} has too many entries")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise FormatError(f"{what} is not valid UTF-8") from None
    except FormatError as error:
        raise FormatError(f"{what} {error}") from None
    except RecursionError:
        raise FormatError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{what} is no JSON ({error})") from None
    assert isinstance(value, dict)  # it begins with a brace
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("has a key twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"holds {name}, which is no JSON")
