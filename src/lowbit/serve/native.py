"""The paths of llama.cpp's server: completion, tokens, templates, and what the server is doing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import Generation, State, TokenLogprob
from ..sampling import SamplingParams
from .answers import Piece
from .asking import FORBIDDEN, Sampled, logprobs_kind, one_constraint
from .conversation import messages_kind, split_begun
from .fields import Kind, flag, list_of, need, only, option, parse, text, whole
from .http import Call
from .openai import event_of, timings, token_ids, token_object
from .problems import Problem
from .service import Service
from .talk import prepare, tool_choice_kind, tools_kind

__all__ = ["ApplyTemplate", "Detokenize", "NativeCompletion", "Tokenize", "apply_template", "completion",
           "detokenize", "health", "props", "slots", "tokenize"]  # fmt: skip


def _take_prompt(value: Any) -> Any:
    """A text, token ids, both mixed, or {"prompt_string": text}."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        if set(value) != {"prompt_string"} or not isinstance(value["prompt_string"], str):
            raise ValueError
        return (value["prompt_string"],)
    if not isinstance(value, list) or not value:
        raise ValueError
    parts = []
    for part in value:
        parts.append(part if isinstance(part, str) else token_ids([part])[0])
    return tuple(parts)


def _take_prompts(value: Any) -> Any:
    """(several?, prompts)."""
    several = isinstance(value, list) and (
        all(isinstance(one, str) for one in value) or any(isinstance(one, (list, dict)) for one in value)
    )
    return (True, tuple(map(_take_prompt, value))) if several and value else (False, (_take_prompt(value),))


prompt_kind = Kind("a text, token ids, both mixed, or a list of these", _take_prompts,
                   {"type": ["string", "array", "object"]})  # fmt: skip
ids_kind = Kind("a list of token ids", lambda value: () if value == [] else token_ids(value),
                {"type": "array", "items": {"type": "integer"}})  # fmt: skip


@dataclass(frozen=True)
class NativeCompletion(Sampled):
    """POST /completion."""

    prompt: Any = need(prompt_kind, "a text, token ids, both mixed, or a list of these")
    n_predict: int | None = option(whole(-1), "most tokens to make; -1 is as many as there is room for")
    stream: bool = option(flag, "send the text as it is made, as server-sent events", False)
    n_probs: int = option(logprobs_kind, "report log-probabilities, of so many of the likeliest tokens", 0)
    return_tokens: bool = option(flag, "report token ids", False)
    ignore_eos: bool = option(flag, "never end before the last token", False)
    response_fields: Any = option(list_of(text, 64), "leave out all but these, such as generation_settings/seed")
    post_sampling_probs: bool | None = option(only(False), "not supported")
    return_progress: bool | None = option(only(False), "not supported")


async def completion(call: Call, service: Service) -> None:
    """Continue texts."""
    asked = parse(NativeCompletion, await call.json())
    several, prompts = asked.prompt
    most = None if asked.n_predict is None or asked.n_predict < 0 else asked.n_predict
    defaults = service.settings.sampling
    if asked.n_predict == -1:
        defaults = {name: value for name, value in defaults.items() if name != "max_tokens"}
    chosen = asked.settings(defaults, most, service.model._tokenizer)
    one_constraint(chosen)
    ends: list[int] = sorted(service.model._ends) if asked.ignore_eos else []
    if ends:
        chosen["logit_bias"] = {**(chosen.get("logit_bias") or {}), **dict.fromkeys(ends, FORBIDDEN)}
    ids = [await _mixed_ids(service, prompt) for prompt in prompts]
    shape = _Shape(asked, chosen, service, ids, ends)
    with service.submit(ids, 1, chosen, asked.n_probs or None) as answers:
        if asked.stream:
            await answers.ready()
            events = await call.events(event_of)
            async for piece in answers.pieces(service.settings.ping_seconds):
                if piece is None:
                    await events.ping()
                    continue
                if piece.text or piece.tokens:
                    more = {}
                    if asked.timings_per_token:
                        more["timings"] = timings(answers.streams[piece.index]._request.result())
                    await events.send({**shape.part(piece), **more})
                if piece.result is not None:
                    service.note_times(piece.result)
                    await events.send(shape.whole(piece.index, piece.result, in_stream=True))
            await events.end()
            return
        results = await answers.all()
    for result in results:
        service.note_times(result)
    found = [shape.whole(i, result) for i, result in enumerate(results)]
    await call.answer(200, found if several else found[0])


async def _mixed_ids(service: Service, parts: Sequence[str | int]) -> list[int]:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else await service.encode(part, **({"add_bos": False} if ids else {}))
    if not ids and service.tokenizer.bos_id is not None:
        ids = [service.tokenizer.bos_id]
    return ids


class _Shape:
    """The objects that answer a native completion."""

    def __init__(
        self, asked: NativeCompletion, chosen: dict[str, Any], service: Service, ids: list[list[int]], ends: list[int]
    ) -> None:
        self._asked, self._chosen, self._service, self._ids = asked, chosen, service, ids
        self._settings = generation_settings(chosen, ends)

    def part(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.index, "content": piece.text, "tokens": piece.tokens, "stop": False, "id_slot": -1,
                "tokens_predicted": len(piece.tokens), "tokens_evaluated": len(self._ids[piece.index]),
                **self._probabilities(piece.logprobs)}  # fmt: skip

    def whole(self, index: int, result: Generation, in_stream: bool = False) -> dict[str, Any]:
        service, n = self._service, len(result.tokens)
        word = service.stopping_word(result, self._chosen["stop"])
        full = result.prompt_tokens + n >= service.model.context and result.finish_reason == "length"
        kind = "word" if word is not None else "eos" if result.finish_reason == "stop" else "limit"
        tokenizer = service.model._tokenizer
        value = {
            "index": index, "content": "" if in_stream else result.text,
            "tokens": result.tokens if self._asked.return_tokens and not in_stream else [], "id_slot": -1, "stop": True,
            "model": service.name, "tokens_predicted": n, "tokens_evaluated": result.prompt_tokens,
            "generation_settings": self._settings,
            "prompt": "" if tokenizer is None else _text_of(tokenizer, self._ids[index]),
            "has_new_line": "\n" in result.text, "truncated": full, "stop_type": kind, "stopping_word": word or "",
            "tokens_cached": result.prompt_tokens + n, "timings": timings(result),
            **({} if in_stream else self._probabilities(result.logprobs or [])),
        }  # fmt: skip
        if not self._asked.response_fields:
            return value
        return {path: found for path in self._asked.response_fields if (found := _at(value, path)) is not None}

    def _probabilities(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        if not self._asked.n_probs:
            return {}
        tokenizer, entries = self._service.model._tokenizer, []
        for one in found:
            entry = token_object(one, tokenizer)
            top = [{"id": other[0], **written} for other, written in zip(one.top, entry["top_logprobs"])]
            entries.append({"id": one.token, **entry, "top_logprobs": top})
        return {"completion_probabilities": entries}


def generation_settings(chosen: dict[str, Any], ends: Sequence[int] = ()) -> dict[str, Any]:
    """Return the settings of a request as llama.cpp's server names them."""
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    default = SamplingParams()
    seed, most = chosen.get("seed"), chosen.get("max_tokens", -1)
    biases = chosen.get("logit_bias") or {}
    return {
        **{name: chosen.get(name, getattr(default, name)) for name in names},
        "seed": -1 if seed is None else seed,
        "n_predict": -1 if most == 2**31 - 1 else most,
        "max_tokens": -1 if most == 2**31 - 1 else most,
        "stop": list(chosen.get("stop", ())),
        "logit_bias": [{"bias": None if token in ends else bias, "token": token} for token, bias in biases.items()],
        "ignore_eos": bool(ends),
    }


def _text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return a prompt as text, with the names of its control tokens."""
    parts: list[str] = []
    run: list[int] = []
    for token in ids:
        if token in tokenizer.control_ids:
            parts += [tokenizer.decode(run), tokenizer.piece(token)]
            run = []
        elif token < tokenizer.vocab_size:
            run.append(token)
    return "".join([*parts, tokenizer.decode(run)])


def _at(value: Any, path: str) -> Any:
    for name in path.split("/"):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


# --- tokens and templates ---


@dataclass(frozen=True)
class Tokenize:
    """POST /tokenize."""

    content: str = need(text, "the text")
    add_special: bool = option(flag, "begin with BOS where the model wants it", False)
    parse_special: bool = option(flag, "read names of control tokens as these", True)
    with_pieces: bool = option(flag, "return the text of each token, too", False)


async def tokenize(call: Call, service: Service) -> None:
    """Turn text into token ids."""
    asked = parse(Tokenize, await call.json())
    tokenizer = service.tokenizer
    ids = await service.encode(asked.content, add_bos=None if asked.add_special else False,
                               parse_special=asked.parse_special)  # fmt: skip
    tokens = [{"id": i, "piece": _piece(tokenizer, i)} for i in ids] if asked.with_pieces else ids
    await call.answer(200, {"tokens": tokens})


def _piece(tokenizer: Any, token: int) -> str | list[int]:
    if token in tokenizer.control_ids:
        return str(tokenizer.piece(token))
    data: bytes = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


@dataclass(frozen=True)
class Detokenize:
    """POST /detokenize."""

    tokens: Any = need(ids_kind, "token ids")


async def detokenize(call: Call, service: Service) -> None:
    """Turn token ids into text."""
    asked = parse(Detokenize, await call.json())
    try:
        await call.answer(200, {"content": service.tokenizer.decode(asked.tokens)})
    except ValueError as error:
        raise Problem(400, str(error), param="tokens") from None


@dataclass(frozen=True)
class ApplyTemplate:
    """POST /apply-template."""

    messages: Any = need(messages_kind, "the conversation")
    tools: Any = option(tools_kind, "functions that the model may call")
    tool_choice: Any = option(tool_choice_kind, "as in chat completions")
    add_generation_prompt: bool | None = option(only(True), "the prompt ends where the answer begins")


async def apply_template(call: Call, service: Service) -> None:
    """Write a conversation as the model reads it."""
    asked = parse(ApplyTemplate, await call.json())
    messages, begun = split_begun(asked.messages)
    talk = await prepare(service, messages, begun, asked.tools, asked.tool_choice, show=True)
    await call.answer(200, {"prompt": talk.prompt})


# --- what the server is doing ---


async def health(call: Call, service: Service) -> None:
    """Tell whether requests can be answered."""
    service.check()
    await call.answer(200, {"status": "ok"})


async def props(call: Call, service: Service) -> None:
    """Describe model and settings."""
    service.check()
    info, model = service.model.info(), service.model
    tokenizer = model._tokenizer
    names = {"bos_token": "", "eos_token": ""}
    if tokenizer is not None:
        for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
            names[name] = "" if token is None else tokenizer.piece(token)
    await call.answer(200, {
        "default_generation_settings": {
            "id": 0, "n_ctx": model.context, "is_processing": False,
            "params": generation_settings(service.settings.sampling),
        },
        "total_slots": service.settings.max_sequences, "model_path": os.path.basename(str(info["path"])),
        "model_alias": service.name, "chat_template": info.get("chat_template") or "", **names,
        "modalities": {"vision": False, "audio": False}, "build_info": service.settings.version, "is_sleeping": False,
    })  # fmt: skip


async def slots(call: Call, service: Service) -> None:
    """List what runs, without a word of what it says; slots have no fixed requests."""
    service.check()
    entries: list[dict[str, Any]] = []
    for request in tuple(service.engine._running)[: service.settings.max_sequences]:
        sequence = request.sequence
        if not request.over and sequence is not None:
            entries.append({
                "id": len(entries), "n_ctx": service.model.context, "is_processing": True, "state": request.state.value,
                "n_prompt_tokens": len(request.ids), "n_decoded": request.made,
                "n_prompt_tokens_processed": len(request.ids) if request.state is State.DECODE else sequence.length,
            })  # fmt: skip
    for i in range(len(entries), service.settings.max_sequences):
        entries.append({"id": i, "n_ctx": service.model.context, "is_processing": False})
    await call.answer(200, entries)
