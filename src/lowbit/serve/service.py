"""The model and its engine, as all endpoints use them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..chat.templates import TEMPLATES, Template, find_template, render, write
from ..chat.toolformats import choose_format
from ..engine import Engine, Generation, Stream, Timings
from ..errors import LowbitError, UnsupportedModelError
from ..tokenizers import Tokenizer
from .answers import Answers
from .asking import MAX_TEXTS
from .problems import Problem, problem_of
from .settings import Settings

if TYPE_CHECKING:
    from ..model import Model

_Written = TypeVar("_Written")


class Service:
    """What is served.

    Parameters
    ----------
    settings : Settings
    load : callable
        Returns the model; called in a thread.

    Attributes
    ----------
    name : str
        What the model is called in answers.
    names : tuple of str
        What it may be called in requests.
    started : int
        Seconds since 1970.
    """

    def __init__(self, settings: Settings, load: Callable[[], Model]) -> None:
        self.settings, self._load = settings, load
        self._model: Model | None = None
        self._engine: Engine | None = None
        self._template: Template | None = None
        self.note = ""
        self.name = "lowbit"
        self.names: tuple[str, ...] = ()
        self.aliases: tuple[str, ...] = ()
        self.started = int(time.time())
        self.stopping = False
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.times = Times()
        self.answered: Counter[int] = Counter()
        """Answers by status; 499 where nobody was there to take one."""

    def load(self) -> None:
        """Load the model; LowbitError if that cannot be done, or a setting of the engine is out of range."""
        settings, model = self.settings, self._load()
        if model._tokenizer is not None:
            self._template, self.note = _template(settings.chat_template, model)
        info = model.info()
        own = str(info.get("name") or os.path.splitext(os.path.basename(str(info["path"])))[0])[:200]
        given = [alias for alias in settings.aliases if alias != "*"]
        self.names = tuple(dict.fromkeys([*given, own]))
        self.aliases = tuple(given)
        self.name = self.names[0]
        try:
            self._engine = Engine(
                model, max_sequences=settings.max_sequences, kv_ram=settings.kv_ram, step_ms=settings.step_ms,
                max_queue=settings.max_queue, batch=settings.batch,
            )  # fmt: skip
        except ValueError as error:  # whoever starts a server gives these on a command line
            raise LowbitError(str(error)) from None
        self._model = model

    def close(self) -> None:
        """End all requests."""
        if self._engine is not None:
            self._engine.close()

    def check(self) -> None:
        """Raise a Problem unless requests can be answered."""
        if self.stopping:
            raise Problem(503, "the server is stopping", code="stopping", headers={"connection": "close"})
        if self._model is None:
            raise Problem(503, "the model is being loaded", code="loading")
        engine = self.engine
        if engine._closed is not None or (engine._thread is not None and not engine._thread.is_alive()):
            raise Problem(503, "the engine has stopped", code="engine_dead")

    @property
    def model(self) -> Model:
        """The model; a Problem while it is being loaded."""
        if self._model is None:
            self.check()
        assert self._model is not None
        return self._model

    @property
    def engine(self) -> Engine:
        """Its engine."""
        assert self._engine is not None
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; a Problem if it has none."""
        if self.model._tokenizer is None:
            raise Problem(400, "the model has no tokenizer; give token ids", code="no_tokenizer")
        return self.model._tokenizer

    @property
    def template(self) -> Template:
        """How conversations are written."""
        assert self.tokenizer is not None
        assert self._template is not None
        return self._template

    @property
    def thinks(self) -> bool:
        """Whether answers may begin with thoughts."""
        source = self.template.source
        return "enable_thinking" in source or choose_format(source).reasoning[0] in source

    def check_model(self, name: str | None) -> None:
        """Raise a Problem if a request names another model."""
        if name is not None and name not in self.names and "*" not in self.settings.aliases:
            raise Problem(404, f"there is no model of that name here, only {', '.join(self.names)}", param="model",
                          code="model_not_found")  # fmt: skip

    # --- prompts ---

    async def encode(self, text: str, **options: Any) -> list[int]:
        """Encode a text, away from the event loop."""
        return await asyncio.to_thread(self.tokenizer.encode, text, **options)

    async def conversation_ids(
        self, messages: list[dict[str, Any]], begun: str = "", tools: list[Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> list[int]:  # fmt: skip
        """Write a conversation as token ids."""
        tokenizer, template, values = self.tokenizer, self.template, self._values(values)
        return await _told(render, messages, {}, tokenizer, template, tools, begun, values)

    async def conversation_text(
        self, messages: list[dict[str, Any]], begun: str = "", tools: list[Any] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Write a conversation as text."""
        tokenizer, template, values = self.tokenizer, self.template, self._values(values)
        text, disguise = await _told(write, messages, tokenizer, template, tools, begun, values)
        return disguise.show(text)

    def _values(self, values: Mapping[str, Any] | None) -> dict[str, Any]:
        thinking = self.settings.reasoning
        if thinking and "enable_thinking" not in self.template.source:
            thinking = None  # and it is as the template has it
        told = {"enable_thinking": thinking, "today": self.settings.today}
        return {**{name: value for name, value in told.items() if value is not None}, **(values or {})}

    # --- texts ---

    def submit(
        self, prompts: Sequence[Sequence[int]], n: int, chosen: dict[str, Any], logprobs: int | None = None
    ) -> Answers:
        """Ask for n texts after each prompt; the i-th after one has the i-th seed from the given one on."""
        if len(prompts) * n > MAX_TEXTS:
            raise Problem(
                400, f"prompt and n: a request may ask for {MAX_TEXTS} texts, not {len(prompts) * n}", param="n"
            )
        self.check()
        answers = Answers(self._note_times)
        try:
            for ids in prompts:
                for i in range(n):
                    answers.streams.append(self._submit(ids, i, chosen, logprobs))
        except BaseException:
            answers.cancel()
            raise
        return answers

    def _submit(self, ids: Sequence[int], i: int, chosen: dict[str, Any], logprobs: int | None) -> Stream:
        context = self.model.context
        if len(ids) > context:
            raise Problem(
                400, f"the prompt has {len(ids)} tokens, which exceeds the available context size of {context}",
                code="context_length_exceeded", type="exceed_context_size_error", n_prompt_tokens=len(ids),
                n_ctx=context,
            )  # fmt: skip
        seed = chosen.get("seed")
        options = chosen if seed is None or not i else {**chosen, "seed": (seed + i) % 2**64}
        try:
            return self.engine.submit(ids, logprobs=logprobs, **options)
        except (LowbitError, ValueError, MemoryError) as error:
            raise problem_of(error) from None

    def embed(self, texts: Sequence[Sequence[int]]) -> tuple[Answers, list[np.ndarray]]:
        """Ask for vectors, one for each text, or for each of its tokens where they are not pooled."""
        self.check()
        model, pooling = self.model, self.settings.pooling
        shapes = [(len(ids),) if pooling == "none" else () for ids in texts]
        vectors = [np.empty((*shape, model.config.hidden_size), np.float32) for shape in shapes]
        answers = Answers()
        try:
            for vector, ids in zip(vectors, texts):
                if len(ids) > model.context:
                    raise Problem(400, f"input: a text of {len(ids)} tokens is too large for a context of "
                                       f"{model.context}", param="input", code="context_length_exceeded")  # fmt: skip
                request = model._embedding(model._ids(ids), vector, pooling)
                answers.streams.append(self.engine.start(request))
        except BaseException as error:
            answers.cancel()
            if isinstance(error, (LowbitError, ValueError)):
                raise problem_of(error) from None
            raise
        return answers, vectors

    def _note_times(self, result: Generation) -> None:
        """Remember how long a text took."""
        times = result.timings
        self.times.add(times)
        self.first_token.add(times.first_token_seconds)
        if times.decode_tokens > 1:
            self.between_tokens.add(times.decode_seconds / times.decode_tokens)


async def _told(write: Callable[..., _Written], *arguments: Any) -> _Written:
    """Have a conversation written away from the event loop; what is wrong with it is a Problem."""
    try:
        return await asyncio.to_thread(write, *arguments)
    except LowbitError as error:
        raise problem_of(error) from None
    except ValueError as error:
        name = "chat_template_kwargs"
        raise Problem(400, str(error), param=name if str(error).startswith(name) else "messages") from None


class Times:
    """Tokens and seconds of all texts that ended."""

    def __init__(self) -> None:
        self.prompt_tokens = self.decode_tokens = self.longest = 0
        self.prompt_seconds = self.decode_seconds = 0.0

    def add(self, times: Timings) -> None:
        """Count one."""
        self.prompt_tokens += times.prompt_tokens - times.reused_tokens
        self.prompt_seconds += times.prompt_seconds
        self.decode_tokens += max(times.decode_tokens - 1, 0)
        self.decode_seconds += times.decode_seconds
        self.longest = max(self.longest, times.prompt_tokens + times.decode_tokens)


class Histogram:
    """Counts times in seconds by their size."""

    BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[sum(seconds > bound for bound in self.BOUNDS)] += 1
        self.total += seconds


def _template(given: str | None, model: Model) -> tuple[Template, str]:
    """Choose how conversations are written; and say so where it is not as the model's file says."""
    info = model.info()
    if given is None:
        metadata = {"general.architecture": info.get("architecture"),
                    "tokenizer.chat_template": info.get("chat_template")}  # fmt: skip
        try:
            return find_template(metadata, model.tokenizer), ""
        except UnsupportedModelError as error:
            return TEMPLATES["plain"], f"{error}; using the template 'plain'"
    if given in TEMPLATES:
        return TEMPLATES[given], ""
    try:
        with open(given, encoding="utf-8") as file:
            source = file.read(1 << 22)
    except FileNotFoundError:
        raise UnsupportedModelError(
            f"there is no chat template {given!r}: neither a file nor one of {', '.join(TEMPLATES)}"
        ) from None
    return find_template({"tokenizer.chat_template": source}, model.tokenizer), ""
