"""Answers lines with the handlers of the server: a model, its engine, and no HTTP."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..errors import LowbitError
from ..serve.http import Call, encode
from ..serve.problems import Problem, openai_form, problem_of
from ..serve.service import Service
from ..serve.settings import Settings
from .asked import PATHS, Asked, digest_of, seed_of
from .header import header_of
from .journal import PREFIX

if TYPE_CHECKING:
    from ..model import Model


class Answer(NamedTuple):
    """What came of a line."""

    line: bytes
    """For the file of answers, or that of failures."""
    failed: bool
    tokens: int
    """Read and made."""


class Answerer:
    """A model that answers lines, any number at a time.

    Parameters
    ----------
    settings : Settings
    seed : int
        From which each line's own is made.
    load : callable
        Returns the model.
    """

    def __init__(self, settings: Settings, seed: int, load: Callable[[], Model]) -> None:
        self.service = Service(settings, load)
        self.service.load()
        self._seed = seed
        self.width = 2 * settings.max_sequences
        """Lines to ask at a time: those that are computed, and as many that wait for their turn."""

    async def answer(self, key: int, number: int, asked: Asked) -> Answer:
        """Answer a line.

        Raises
        ------
        LowbitError
            If the engine has ended, or there is no memory: no fault of the line's.
        """
        call = _Line(self.service.settings, self._with_seed(asked))
        try:
            await PATHS[asked.url](call, self.service)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 503:
                raise LowbitError(problem.message) from None
            if problem.status == 500:
                traceback.print_exc(file=sys.stderr)
            return failure(key, number, asked.custom_id, problem)
        body = _settled(call.body, key)
        return Answer(_line(key, asked.custom_id, 200, body), False, body["usage"]["total_tokens"])

    def _with_seed(self, asked: Asked) -> dict[str, Any]:
        if asked.url == "/v1/embeddings" or asked.body.get("seed", -1) not in (-1, None):
            return asked.body
        return {**asked.body, "seed": seed_of(self._seed, asked.custom_id)}

    def header(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return all that the answers depend on beside the lines; `options` are those of `lowbit.load`."""
        return header_of(self.service.model, self.service.settings, self._seed, options)

    def close(self) -> None:
        """End the engine."""
        self.service.close()


def failure(key: int, number: int, custom_id: str | None, problem: Problem) -> Answer:
    """Return what is written about a line that cannot be answered."""
    line = _line(key, custom_id, problem.status, openai_form(problem), number, problem)
    return Answer(line, True, 0)


def _line(
    key: int, custom_id: str | None, status: int, body: dict[str, Any], number: int = 0, problem: Problem | None = None
) -> bytes:
    error = None if problem is None else {"code": problem.code, "message": problem.message}
    return encode({
        "id": f"{PREFIX}{key:016x}", "custom_id": custom_id, **({"line": number} if number else {}),
        "response": {"status_code": status, "request_id": f"req_{key:016x}", "body": body}, "error": error,
    }) + b"\n"  # fmt: skip


def _settled(body: dict[str, Any], key: int) -> dict[str, Any]:
    """Return an answer without what depends on the clock and on other lines, and with names made of the line's key."""
    body = {name: value for name, value in body.items() if name != "timings"}
    if "id" in body:
        body["id"] = f"{body['id'].partition('-')[0]}-{key:016x}"
        body["created"] = 0
    body["usage"] = {name: n for name, n in body["usage"].items() if name != "prompt_tokens_details"}
    for choice in body.get("choices", ()):
        for i, call in enumerate(choice.get("message", {}).get("tool_calls", ())):
            call["id"] = f"{digest_of(repr((key, choice['index'], i)).encode()):016x}"[:9]
    return body


class _Line(Call):
    """What a handler knows as its call: the body is there, and the answer is kept."""

    def __init__(self, settings: Settings, body: dict[str, Any]) -> None:
        super().__init__({"type": "http", "path": "", "headers": []}, _nobody, _nobody, settings, openai_form)
        self._body_asked = body
        self.body: dict[str, Any] = {}

    async def json(self) -> dict[str, Any]:
        return self._body_asked

    async def answer(
        self, status: int, value: Any, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.body = value


async def _nobody(message: MutableMapping[str, Any] | None = None) -> NoReturn:
    raise asyncio.CancelledError
