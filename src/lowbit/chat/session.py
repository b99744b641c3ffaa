"""A conversation with a model: the messages so far, and how the next one is answered."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedModelError
from ..sampling import SamplingParams
from .protocol import Talker
from .templates import TEMPLATES, Template, find_template, render
from .tools import Delta, ToolCalls, in_thought, message_of


class ChatSession:
    """A conversation that remembers what was said.

    Parameters
    ----------
    model : Talker
        Such as `lowbit.Model`.
    system : str, optional
        What the model is told before the first message.
    template : str, optional
        Name of a built-in template (`lowbit.chat.TEMPLATES`); None takes the model's.
    tools, tool_choice, parallel
        Functions that the model may call, and whether it must, as `lowbit.chat.ToolCalls` takes them. What is called is
        the last message's ``tool_calls``; somebody does it, and tells the results.

    Attributes
    ----------
    messages : list of dict
        ``role`` and ``content`` of everything said so far, and ``tool_calls`` of what was called.
    left_out : int
        Messages after the system's that the model does not read any more: the oldest turns of a conversation that has
        outgrown the context.
    template : Template

    Raises
    ------
    UnsupportedModelError
        If the model has no chat template, or there is none of this name.
    """

    def __init__(
        self, model: Talker, *, system: str | None = None, template: str | None = None,
        tools: list[dict[str, Any]] | None = None, tool_choice: Any = "auto", parallel: bool = True,
    ) -> None:  # fmt: skip
        self._model = model
        self._tools = tools, tool_choice, parallel
        self.template = _chosen(model, template)
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation and begin a new one."""
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.left_out = 0

    def size(self) -> str:
        """Tell how long the conversation is."""
        context = getattr(self._model, "context", None)
        n = len(self._prompt(self.messages)[0]) if self.messages else 0
        left_out = f"; the oldest {self.left_out} messages are left out" if self.left_out else ""
        return f"{n}{f' of {context}' if context else ''} tokens{left_out}."

    def stream(self, text: str | list[dict[str, Any]], **sampling: Any) -> Generator[str, None, Any]:
        """Say something, and get the answer piece by piece.

        Parameters
        ----------
        text : str or list of dict
            What the user says; or messages as they are, such as results of tools.
        **sampling
            As for `Model.stream`.

        Yields
        ------
        str
            The generator's return value is the `Generation`. What was yielded becomes part of the conversation, also
            if the generator is closed or interrupted before the end; without any piece, nothing was said.
        """
        messages = [*self.messages, *([{"role": "user", "content": text}] if isinstance(text, str) else text)]
        deltas: list[Delta] = []
        left_out = self.left_out
        try:
            prompt, calls = self._fitting(messages, sampling.get("max_tokens", SamplingParams.max_tokens))
            made = self._model.stream(prompt, **_with_stops(self.template, sampling, calls))
            return (yield from _texts(made, calls, deltas))
        finally:
            if deltas:
                self.messages = [*messages, message_of(deltas)]
            else:
                self.left_out = left_out

    def _prompt(self, messages: list[dict[str, Any]]) -> tuple[list[int], ToolCalls | None]:
        """Return the prompt for what is not left out, and what parses its answer if there are tools."""
        told = messages[:1] if messages[0]["role"] == "system" else []
        shown = [*told, *messages[len(told) + self.left_out :]]
        return _prepared(self._model, shown, self.template, *self._tools)

    def _fitting(self, messages: list[dict[str, Any]], most: int | None) -> tuple[list[int], ToolCalls | None]:
        """Return the prompt, and leave out the oldest turns if there is no room for an answer else.

        That is a quarter of the context, or the `most` tokens that an answer may have. If a turn has to go, more go,
        until half of the context is free: the beginning of the prompt then stays the same for some turns, and is known.
        """
        prompt = self._prompt(messages)
        context = getattr(self._model, "context", None)
        told = messages[0]["role"] == "system"
        turns = [
            i - told for i, message in enumerate(messages) if message["role"] == "user" and i - told > self.left_out
        ]
        if not context or not turns or len(prompt[0]) <= context - min(context // 4, context if most is None else most):
            return prompt

        def fits_from(turn: int) -> bool:
            self.left_out = turn
            return len(self._prompt(messages)[0]) <= context // 2

        self.left_out = turns[bisect_left(turns[:-1], True, key=fits_from)]
        return self._prompt(messages)

    def send(self, text: str | list[dict[str, Any]], **sampling: Any) -> Any:
        """Say something, and get the whole answer; as `stream`."""
        answer = self.stream(text, **sampling)
        while True:
            try:
                next(answer)
            except StopIteration as end:
                return end.value


def answer(
    model: Talker, messages: list[dict[str, Any]], template: str | None = None,
    tools: list[dict[str, Any]] | None = None, tool_choice: Any = "auto", parallel: bool = True, stream: bool = False,
    **sampling: Any,
) -> Any:  # fmt: skip
    """Answer the last message of a conversation, as `Model.chat` does.

    Parameters
    ----------
    model : Talker
        Such as `lowbit.Model`.
    messages : list of dict with ``role`` and ``content``
    template : str, optional
        Name of a built-in template; None takes the model's.
    tools, tool_choice, parallel
        As `lowbit.chat.ToolCalls` takes them; the result then has ``tool_calls`` and ``reasoning``.
    stream : bool
        Return a generator of the answer's pieces, whose return value is the result.
    **sampling
        As for `Model.generate`.
    """
    chosen = _chosen(model, template)
    prompt, calls = _prepared(model, messages, chosen, tools, tool_choice, parallel)
    settings = _with_stops(chosen, sampling, calls)
    if stream:
        return _texts(model.stream(prompt, **settings), calls, [])
    result = model.generate(prompt, **settings)
    return result if calls is None else _with_calls(result, calls.push(result.text, last=True))


def _texts(
    pieces: Generator[str, None, Any], calls: ToolCalls | None, deltas: list[Delta]
) -> Generator[str, None, Any]:
    """Yield the text of an answer, and put into `deltas` what it is made of; the return value is the result."""
    result, over = None, False
    while not over:
        try:
            piece = next(pieces)
            found = [Delta(text=piece)] if calls is None else calls.push(piece)
        except StopIteration as end:
            result, over = end.value, True
            found = [] if calls is None else calls.finish()
        for delta in found:
            deltas.append(delta)
            if delta.text:
                yield delta.text
    return result if calls is None else _with_calls(result, deltas)


def _prepared(
    model: Talker, messages: list[dict[str, Any]], template: Template, tools: list[dict[str, Any]] | None,
    choice: Any, parallel: bool,
) -> tuple[list[int], ToolCalls | None]:  # fmt: skip
    """Return the prompt, and what parses its answer if there are tools."""
    if tools is None:
        return render(messages, {}, model.tokenizer, template), None
    source = template.source
    shown = ToolCalls(tools, choice, parallel, source).tools
    prompt = render(messages, {}, model.tokenizer, template, shown)
    return prompt, ToolCalls(tools, choice, parallel, source, in_thought(prompt, model.tokenizer, source))


def _with_calls(result: Any, deltas: list[Delta]) -> Any:
    """Return a result whose text is the answer alone, with the calls and thoughts beside it."""
    message = message_of(deltas)
    return replace(
        result, text=message["content"], reasoning=message.get("reasoning_content", ""),
        tool_calls=message.get("tool_calls", []),
    )  # fmt: skip


def _with_stops(template: Template, sampling: dict[str, Any], calls: ToolCalls | None) -> dict[str, Any]:
    stop = sampling.get("stop") or ()
    grammar = {} if calls is None or calls.grammar is None else {"grammar": calls.grammar}
    return {
        "fresh": True,
        **sampling,
        **grammar,
        "stop": (*((stop,) if isinstance(stop, str) else stop), *template.stops),
    }


def _chosen(model: Talker, name: str | None) -> Template:
    """The template of this name, or the model's."""
    if name is None:
        info = model.info()
        keys = {"general.architecture": info.get("architecture"), "tokenizer.chat_template": info.get("chat_template")}
        return find_template(keys, model.tokenizer)
    if name not in TEMPLATES:
        raise UnsupportedModelError(f"there is no chat template {name!r}, only {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
