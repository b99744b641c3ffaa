"""Every exception that lowbit raises on purpose, under one base."""

from __future__ import annotations

__all__ = [
    "ContextLengthError",
    "FormatError",
    "LowbitError",
    "MemoryBudgetError",
    "QueueFullError",
    "UnsupportedISAError",
    "UnsupportedModelError",
]


class LowbitError(Exception):
    """Base of all errors that lowbit raises on purpose."""


class FormatError(LowbitError, ValueError):
    """A file, or an array handed to a kernel, is not what it must be."""


class UnsupportedModelError(LowbitError):
    """The file is sound, but holds an architecture, tensor type or tokenizer lowbit does not know."""


class UnsupportedISAError(LowbitError):
    """The instruction set asked for is unknown, not compiled in, or not in this CPU."""


class MemoryBudgetError(LowbitError, MemoryError):
    """The model cannot run within the memory it was given.

    Attributes
    ----------
    smallest : int or None
        Bytes that would do, if that is known.
    """

    def __init__(self, message: str = "", smallest: int | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class ContextLengthError(LowbitError, ValueError):
    """The prompt does not fit into the model's context."""


class QueueFullError(LowbitError):
    """An engine has as many waiting requests as it takes; try again later."""
