"""Typed reading of the ``tokenizer.ggml.*`` keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError


def get(metadata: Mapping[str, Any], name: str, kind: type, path: str, default: Any = None) -> Any:
    """Return a value of the type `kind`, or `default` if there is none; FormatError if it is of another type."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value is default:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{path}: tokenizer.ggml.{name} has the wrong type, {type(value).__name__}")
    return value


def special_id(
    metadata: Mapping[str, Any], name: str, n_tokens: int, path: str, default: int | None = None
) -> int | None:
    """Return the id of a special token; as in llama.cpp, `default` takes the place of one that is out of range."""
    for token in (get(metadata, f"{name}_token_id", int, path), default):
        if token is not None and 0 <= token < n_tokens:
            return int(token)
    return None
