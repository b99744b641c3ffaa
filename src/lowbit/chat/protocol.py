"""What a conversation needs of a model; nothing here knows how texts are made."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from ..tokenizers import Tokenizer

__all__ = ["Talker"]


class Talker(Protocol):
    """Something that continues texts, such as `lowbit.Model`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What messages are encoded with."""

    def generate(self, prompt: Sequence[int], **sampling: Any) -> Any:
        """Continue a text."""

    def stream(self, prompt: Sequence[int], **sampling: Any) -> Generator[str, None, Any]:
        """Continue a text piece by piece."""

    def info(self) -> dict[str, Any]:
        """Tell what the file says, ``chat_template`` among it."""
