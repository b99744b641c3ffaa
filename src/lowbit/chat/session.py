"""A conversation with a model: the messages so far, and how the next one is answered."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..errors import UnsupportedModelError
from .protocol import Talker
from .templates import TEMPLATES, Template, find_template, render

__all__ = ["ChatSession"]


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

    Attributes
    ----------
    messages : list of dict
        ``role`` and ``content`` of everything said so far.
    template : Template

    Raises
    ------
    UnsupportedModelError
        If the model has no chat template, or there is none of this name.
    """

    def __init__(self, model: Talker, *, system: str | None = None, template: str | None = None) -> None:
        self._model = model
        self.template = _named(template) if template is not None else find_template(_metadata(model), model.tokenizer)
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation and begin a new one."""
        self.messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]

    def stream(self, text: str, **sampling: Any) -> Generator[str, None, Any]:
        """Say something, and get the answer piece by piece.

        Parameters
        ----------
        text : str
        **sampling
            As for `Model.stream`.

        Yields
        ------
        str
            The generator's return value is the `Generation`. What was yielded becomes part of the conversation, also
            if the generator is closed or interrupted before the end; without any piece, nothing was said.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        try:
            prompt = render(messages, {}, self._model.tokenizer, self.template)
            stream = self._model.stream(prompt, **_with_stops(self.template, sampling))
            while True:
                try:
                    piece = next(stream)
                except StopIteration as end:
                    result = end.value
                    break
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return result

    def send(self, text: str, **sampling: Any) -> Any:
        """Say something, and get the whole answer; as `stream`."""
        answer = self.stream(text, **sampling)
        while True:
            try:
                next(answer)
            except StopIteration as end:
                return end.value


def answer(model: Talker, messages: list[dict[str, str]], template: str | None = None, **sampling: Any) -> Any:
    """Answer the last message of a conversation, as `Model.chat` does.

    Parameters
    ----------
    model : Talker
        Such as `lowbit.Model`.
    messages : list of dict with ``role`` and ``content``
    template : str, optional
        Name of a built-in template; None takes the model's.
    **sampling
        As for `Model.generate`.
    """
    chosen = _named(template) if template is not None else find_template(_metadata(model), model.tokenizer)
    prompt = render(messages, {}, model.tokenizer, chosen)
    return model.generate(prompt, **_with_stops(chosen, sampling))


def _with_stops(template: Template, sampling: dict[str, Any]) -> dict[str, Any]:
    stop = sampling.get("stop") or ()
    return {**sampling, "stop": (*((stop,) if isinstance(stop, str) else stop), *template.stops)}


def _named(name: str) -> Template:
    if name not in TEMPLATES:
        raise UnsupportedModelError(f"there is no chat template {name!r}, only {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _metadata(model: Talker) -> dict[str, Any]:
    info = model.info()
    return {
        "general.architecture": info.get("architecture"),
        "tokenizer.chat_template": info.get("chat_template"),
    }
