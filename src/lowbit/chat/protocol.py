"""What a conversation needs of a model; nothing here knows how texts are made."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from ..tokenizers import Tokenizer


class Talker(Protocol):
    """Something that continues texts, such as `lowbit.Model`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What messages are encoded with."""

    @property
    def generate(self) -> Callable[..., Any]:
        """(prompt, settings by their names) -> its continuation."""

    @property
    def stream(self) -> Callable[..., Generator[str, None, Any]]:
        """The same, piece by piece."""

    def info(self) -> dict[str, Any]:
        """Tell what the file says, ``chat_template`` among it."""
