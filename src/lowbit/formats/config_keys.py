"""Typed access to a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.errors import FormatError


class Keys:
    """Typed access to a parsed JSON object; null counts as absent."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def _get(self, key: str, default: Any, kind: type | tuple[type, ...], wanted: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise FormatError(f"config.json has no {key}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FormatError(f"config.json has a {key} that is no {wanted}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default, int, "whole number")
        if not 0 < value < 1 << 31:
            raise FormatError(f"config.json has a {key} that is out of range")
        return int(value)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(key, default, (int, float), "number")
        if not low <= value <= high:
            raise FormatError(f"config.json has a {key} that is not from {low:g} to {high:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        return str(self._get(key, default, str, "text"))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._get(key, default, bool, "truth value"))

    def strings(self, key: str) -> list[str]:
        values = self._get(key, [], list, "list")
        if not all(isinstance(value, str) for value in values):
            raise FormatError(f"config.json has a {key} with entries that are no texts")
        return list(values)

    def wholes(self, key: str) -> list[int]:
        values = self._get(key, [], list, "list")
        if not all(type(value) is int and 0 <= value < 1 << 31 for value in values):
            raise FormatError(f"config.json has a {key} with entries that are no whole numbers")
        return list(values)

    def numbers(self, key: str, low: float, high: float) -> list[float]:
        values = self._get(key, None, list, "list")
        if not all(type(value) in (int, float) and low <= value <= high for value in values):
            raise FormatError(f"config.json has a {key} with entries that are no numbers from {low:g} to {high:g}")
        return list(values)

    def table(self, key: str) -> Keys | None:
        value = self._get(key, {}, dict, "object")
        return Keys(value) if value else None

    def nested(self, key: str, inner: str) -> Keys | None:
        outer = self.table(key)
        return None if outer is None else outer.table(inner)
