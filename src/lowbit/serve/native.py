"""Completion, as llama.cpp's server has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import Generation, TokenLogprob
from .answers import Piece
from .asking import Sampled, logprobs_kind
from .fields import flag, list_of, need, option, parse, text, whole
from .http import Call
from .problems import Problem
from .prompts import mixed_ids, mixed_kind
from .service import Service
from .written import chance_object, event_of, extras, generation_settings, text_of, timings, token_object


@dataclass(frozen=True)
class NativeCompletion(Sampled):
    """POST /completion."""

    prompt: Any = need(mixed_kind, "a text, token ids, both mixed, or a list of these")
    n_predict: int | None = option(whole(-1), "most tokens to make; -1 is as many as there is room for")
    stream: bool = option(flag, "send the text as it is made, as server-sent events", False)
    n_probs: int = option(logprobs_kind, "report log-probabilities, of so many of the likeliest tokens", 0)
    return_tokens: bool = option(flag, "report token ids", False)
    response_fields: Any = option(list_of(text, 64), "leave out all but these, such as generation_settings/seed")
    post_sampling_probs: bool = option(flag, "n_probs are those by which tokens were drawn, after all cuts", False)


async def completion(call: Call, service: Service) -> None:
    """Continue texts."""
    asked = parse(NativeCompletion, await call.json())
    several, prompts = asked.prompt
    most = None if asked.n_predict is None or asked.n_predict < 0 else asked.n_predict
    defaults = service.settings.sampling
    if asked.n_predict == -1:
        defaults = {name: value for name, value in defaults.items() if name != "max_tokens"}
    chosen = asked.settings(defaults, most, service.model)
    ends = service.model._ends if asked.ignore_eos else frozenset[int]()
    ids = [await mixed_ids(service, prompt) for prompt in prompts]
    shape = _Shape(asked, generation_settings(chosen, ends), service, ids)
    if asked.post_sampling_probs and not asked.n_probs:
        raise Problem(400, "post_sampling_probs needs n_probs", param="post_sampling_probs")
    chosen["chances"] = asked.post_sampling_probs
    with service.submit(ids, 1, chosen, asked.n_probs or None) as answers:
        if asked.stream:
            await answers.ready()
            events = await call.events(event_of)
            async for piece in answers.pieces(service.settings.ping_seconds, events.ping):
                if piece.progress is not None or piece.text or piece.tokens:
                    await events.send({**shape.part(piece), **extras(piece, answers, asked)})
                if piece.result is not None:
                    await events.send(shape.whole(piece.index, piece.result, in_stream=True))
            await events.end()
            return
        results = await answers.all()
    found = [shape.whole(i, result) for i, result in enumerate(results)]
    await call.answer(200, found if several else found[0])


class _Shape:
    """The objects that answer a native completion."""

    def __init__(
        self, asked: NativeCompletion, settings: dict[str, Any], service: Service, ids: list[Sequence[int]]
    ) -> None:
        self._asked, self._settings, self._service, self._ids = asked, settings, service, ids

    def part(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.index, "content": piece.text, "tokens": piece.tokens, "stop": False, "id_slot": -1,
                "tokens_predicted": len(piece.tokens), "tokens_evaluated": len(self._ids[piece.index]),
                **self._probabilities(piece.logprobs)}  # fmt: skip

    def whole(self, index: int, result: Generation, in_stream: bool = False) -> dict[str, Any]:
        service, n = self._service, len(result.tokens)
        word = result.stopped_by
        full = result.prompt_tokens + n >= service.model.context and result.finish_reason != "stop"
        kind = "word" if word else "eos" if result.finish_reason == "stop" else "limit"
        value = {
            "index": index, "content": "" if in_stream else result.text,
            "tokens": result.tokens if self._asked.return_tokens and not in_stream else [], "id_slot": -1, "stop": True,
            "model": service.name, "tokens_predicted": n, "tokens_evaluated": result.prompt_tokens,
            "generation_settings": self._settings,
            "prompt": text_of(service.model._tokenizer, self._ids[index]),
            "has_new_line": "\n" in result.text, "truncated": full, "stop_type": kind, "stopping_word": word,
            "tokens_cached": result.prompt_tokens + n, "timings": timings(result.timings),
            **({} if in_stream else self._probabilities(result.logprobs or [])),
        }  # fmt: skip
        if not self._asked.response_fields:
            return value
        return {path: found for path in self._asked.response_fields if (found := _at(value, path)) is not None}

    def _probabilities(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        if not self._asked.n_probs:
            return {}
        tokenizer, entries = self._service.model._tokenizer, []
        if self._asked.post_sampling_probs:
            return {"completion_probabilities": [chance_object(one, tokenizer) for one in found]}
        for one in found:
            entry = token_object(one, tokenizer)
            top = [{"id": other[0], **written} for other, written in zip(one.top, entry["top_logprobs"])]
            entries.append({"id": one.token, **entry, "top_logprobs": top})
        return {"completion_probabilities": entries}


def _at(value: Any, path: str) -> Any:
    for name in path.split("/"):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value
