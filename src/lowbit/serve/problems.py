"""What is wrong with a request, or with the server, in the form of the API that was asked."""

from __future__ import annotations

from typing import Any

from ..errors import (
    ConstraintError,
    ContextLengthError,
    FormatError,
    LowbitError,
    MemoryBudgetError,
    QueueFullError,
    one_line,
)

RETRY_SECONDS = 1
"""What a client is told to wait when there is no room; nobody knows better."""

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC_KINDS = {**_KINDS, 500: "api_error", 501: "api_error", 503: "overloaded_error"}


class Problem(Exception):  # noqa: N818 (an answer, and not always an error of ours)
    """An answer that is an error.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
    param : str, optional
        The field that is wrong.
    code : str, optional
        For programs.
    headers : dict, optional
        Of the answer.
    **more
        What else the error object has: ``type`` in place of the status's, numbers.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers, self.more = headers or {}, more
        if status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_SECONDS))


def openai_form(problem: Problem) -> dict[str, Any]:
    """Return the error object of OpenAI's API, and of the server's own paths."""
    error = {
        "message": problem.message,
        "type": _KINDS.get(problem.status, "invalid_request_error"),
        "param": problem.param,
        "code": problem.code,
        **problem.more,
    }
    return {"error": error}


def anthropic_form(problem: Problem) -> dict[str, Any]:
    """Return the error object of Anthropic's API."""
    kind = _ANTHROPIC_KINDS.get(problem.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": problem.message}}


def problem_of(error: BaseException) -> Problem:
    """Return what to answer where an exception ended a request."""
    if isinstance(error, Problem):
        return error
    text = one_line(error)
    if isinstance(error, ContextLengthError):
        return Problem(400, text, code="context_length_exceeded", type="exceed_context_size_error")
    if isinstance(error, QueueFullError):
        return Problem(429, f"{text}; try again later", code="queue_full")
    if isinstance(error, MemoryBudgetError):
        return Problem(400, text, code="too_large")
    if isinstance(error, ConstraintError):
        return Problem(400, text, code="invalid_constraint")
    if isinstance(error, FormatError):  # of a chat template, which refuses a conversation that way
        return Problem(400, text)
    if isinstance(error, ValueError):  # a setting out of range; the message begins with its name
        return Problem(400, text, param=text.partition(" ")[0])
    if isinstance(error, MemoryError):
        return Problem(503, "not enough memory")
    if isinstance(error, LowbitError):
        return Problem(503 if "closed" in text or "cancelled" in text else 400, text)
    return Problem(500, "an error inside the server; its log says more")
