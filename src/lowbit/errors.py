"""Every exception that lowbit raises on purpose, under one base."""

from __future__ import annotations

from types import TracebackType

__all__ = [
    "ConstraintError",
    "ContextLengthError",
    "Foreign",
    "FormatError",
    "LowbitError",
    "MemoryBudgetError",
    "MissingFileError",
    "QueueFullError",
    "RemoteError",
    "UnsupportedISAError",
    "UnsupportedModelError",
    "one_line",
]


class LowbitError(Exception):
    """Base of all errors that lowbit raises on purpose."""


class FormatError(LowbitError, ValueError):
    """A file, or an array handed to a kernel, is not what it must be."""


class MissingFileError(FormatError, FileNotFoundError):
    """There is no such file."""

    def __init__(self, message: str = "", filename: str | None = None) -> None:
        import errno  # here, because no command needs it to show its help

        super().__init__(message)
        self.errno, self.filename = errno.ENOENT, filename
        if filename is not None:
            self.strerror = "no such file"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


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


class ConstraintError(LowbitError, ValueError):
    """A JSON schema, a regular expression or a grammar cannot be used, or a text cannot be held to it."""


class ContextLengthError(LowbitError, ValueError):
    """The prompt does not fit into the model's context."""


class QueueFullError(LowbitError):
    """An engine has as many waiting requests as it takes; try again later."""


class RemoteError(LowbitError):
    """The hub, or a server, cannot be reached, refuses, or answers with what it must not."""


def one_line(error: object) -> str:
    """Return what an error says on one line of bounded length, without characters that a terminal would obey."""
    text = " ".join(str(error)[:2000].split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:300]


class Foreign:
    """Lets nothing but our own errors out of another library, whatever the class of what it raises.

    A library in Rust raises PanicException where it fails, which is no Exception. What the system asks of us
    (KeyboardInterrupt, SystemExit, MemoryError) passes.

    Parameters
    ----------
    name : str
        The library.
    path : str
        File that it reads, for messages.
    """

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        passing = (LowbitError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)
        if error is not None and not isinstance(error, passing):
            raise FormatError(f"{self._path}: the library {self._name} refuses it: {one_line(error)}") from None
