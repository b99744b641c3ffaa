"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..chat.tools import Delta, message_of
from ..engine import Generation
from .answers import Answers, Piece
from .asking import Sampled, logprobs_kind, max_tokens_kind, response_format_kind
from .conversation import messages_kind, split_begun
from .fields import Kind, flag, mapping, need, only, option, parse, text, whole
from .http import Call, Events
from .problems import Problem
from .prompts import prompt_ids, prompts_kind
from .service import Service
from .talk import finish_reason, prepare, template_values_kind, tool_choice_kind, tools_kind, why
from .written import chat_logprobs, event_of, extras, text_logprobs, text_of, timings, usage


def _take_stream_options(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= {"include_usage", "include_obfuscation"}:
        raise ValueError
    if value.get("include_obfuscation") not in (None, False):
        raise ValueError
    if not isinstance(value.get("include_usage", False), bool):
        raise ValueError
    return bool(value.get("include_usage", False))


stream_options_kind = Kind("an object with include_usage, true or false", _take_stream_options, {"type": "object"})


@dataclass(frozen=True)
class _Asked(Sampled):
    """What chat and plain completions share."""

    model: str | None = option(text, "a name that /v1/models lists; the model of the server if left out")
    stream: bool = option(flag, "send the answer as it is made, as server-sent events", False)
    stream_options: bool = option(stream_options_kind, "include_usage: one more event with the counts", False)
    max_tokens: int | None = option(max_tokens_kind, "most tokens of an answer; as many as there is room for")
    n: int = option(whole(1, 128), "so many answers", 1)
    user: str | None = option(text, "accepted: a label of the caller's")
    metadata: Any = option(mapping, "accepted: labels of the caller's")

    def settings_for(self, service: Service, stops: tuple[str, ...] = ()) -> dict[str, Any]:
        return self.settings(service.settings.sampling, self.most(), service.model, stops)

    def most(self) -> int | None:
        return self.max_tokens


@dataclass(frozen=True)
class Chat(_Asked):
    """POST /v1/chat/completions."""

    messages: Any = need(messages_kind, "the conversation: role and content each; a content is text or parts of it")
    max_completion_tokens: int | None = option(max_tokens_kind, "the same as max_tokens")
    logprobs: bool = option(flag, "report log-probabilities", False)
    top_logprobs: int = option(logprobs_kind, "of so many of the likeliest tokens, too", 0)
    response_format: Any = option(response_format_kind, "text, json_object, or json_schema with a schema")
    tools: Any = option(tools_kind, "functions that the model may call, with JSON schemas of their arguments")
    tool_choice: Any = option(tool_choice_kind, "auto, none, required, or an object that names a function")
    parallel_tool_calls: bool | None = option(flag, "whether one answer may hold several calls; true if left out")
    continue_final_message: bool | None = option(flag, "go on with the last message if it is the assistant's")
    add_generation_prompt: bool | None = option(flag, "the opposite of it")
    verbose: bool | None = option(flag, "also return the prompt as the model reads it; as --show-prompts says")
    prompt_cache_key: str | None = option(text, "accepted: what is known of prompts is found without it")
    safety_identifier: str | None = option(text, "accepted: a label of the caller's")
    store: bool | None = option(only(False), "nothing is stored")
    modalities: Any = option(only(["text"]), "text")
    service_tier: str | None = option(only("auto", "default"), "there is one")
    chat_template_kwargs: Any = option(template_values_kind, "what the chat template is told, such as enable_thinking")
    reasoning_format: str | None = option(only("auto", "deepseek"), "thoughts are told apart from the answer")

    def most(self) -> int | None:
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            raise Problem(400, "max_tokens and max_completion_tokens differ", param="max_completion_tokens")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def begins(self) -> bool:
        """Whether an assistant's last message is the beginning of the answer."""
        if self.continue_final_message and self.add_generation_prompt:
            raise Problem(400, "add_generation_prompt and continue_final_message cannot both be true",
                          param="continue_final_message")  # fmt: skip
        return self.continue_final_message is not False and not self.add_generation_prompt


@dataclass(frozen=True)
class Completion(_Asked):
    """POST /v1/completions."""

    prompt: Any = need(prompts_kind, "a text or token ids to continue, or a list of these")
    n_predict: int | None = option(whole(-1), "the same as max_tokens; -1 is as many as there is room for")
    logprobs: int | None = option(logprobs_kind, "report log-probabilities, and those of so many likeliest tokens")
    echo: bool | None = option(only(False), "not supported")
    suffix: str | None = option(only(""), "not supported")
    best_of: int | None = option(only(1), "not supported")

    def most(self) -> int | None:
        return self.max_tokens if self.n_predict is None or self.n_predict < 0 else self.n_predict


async def stream_choices(
    events: Events,
    service: Service,
    answers: Answers,
    head: dict[str, Any],
    asked: _Asked,
    choices: Callable[[Piece], list[dict[str, Any]]],
    empty: dict[str, Any],
) -> None:
    """Send the pieces of all answers as chunks; `choices` makes those of a piece, and `empty` is one without text."""
    results: dict[int, Generation] = {}
    async for piece in answers.pieces(service.settings.ping_seconds, events.ping):
        more = extras(piece, answers, asked)
        for choice in choices(piece) if piece.progress is None else [{**empty, "index": piece.index}]:
            await events.send({**head, "choices": [choice], **more})
        if piece.result is not None:
            results[piece.index] = piece.result
    if asked.stream_options:
        in_order = [results[i] for i in sorted(results)]
        await events.send({**head, "choices": [], "usage": usage(in_order, asked.n),
                           "timings": timings(in_order[0].timings)})  # fmt: skip
    await events.end(b"data: [DONE]\n\n")


# --- chat ---


async def chat(call: Call, service: Service) -> None:
    """Answer the last message of a conversation."""
    asked = parse(Chat, await call.json())
    service.check_model(asked.model)
    if asked.top_logprobs and not asked.logprobs:
        raise Problem(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    chosen = asked.settings_for(service, service.template.stops)
    if asked.response_format is not None:
        if "json_schema" in chosen:
            raise Problem(400, "response_format and json_schema cannot go together", param="json_schema")
        chosen["json_schema"] = asked.response_format
    messages, begun = split_begun(asked.messages, asked.begins())
    talk = await prepare(service, messages, begun, asked.tools, asked.tool_choice, asked.parallel_tool_calls,
                         asked.chat_template_kwargs)  # fmt: skip
    talk.hold(chosen)
    head = {"id": f"chatcmpl-{secrets.token_hex(14)}", "created": int(time.time()), "model": service.name,
            "system_fingerprint": service.settings.version}  # fmt: skip
    parsers = [talk.parser() for _ in range(asked.n)]
    tokenizer = service.tokenizer
    with service.submit([talk.ids], asked.n, chosen, asked.top_logprobs if asked.logprobs else None) as answers:
        if asked.stream:
            await answers.ready()
            events = await call.events(event_of)
            head["object"] = "chat.completion.chunk"
            for i in range(asked.n):
                first = _chat_choice(i, {"role": "assistant", "content": None})
                await events.send({**head, "choices": [first]})

            def choices(piece: Piece) -> list[dict[str, Any]]:
                parser, result = parsers[piece.index], piece.result
                deltas = parser.push(piece.text, last=result is not None)
                found = [_chat_choice(piece.index, written) for delta in deltas for written in _delta(delta)]
                if asked.logprobs:
                    first = talk.fresh and piece.start == 0
                    found = found or ([_chat_choice(piece.index, {})] if piece.logprobs else [])
                    for i, one in enumerate(found):
                        one["logprobs"] = chat_logprobs(True, piece.logprobs if i == 0 else [], tokenizer, first)
                if result is not None:
                    found.append(_chat_choice(piece.index, {}, finish_reason(parser, result, asked.tool_choice)))
                return found

            await stream_choices(events, service, answers, head, asked, choices, _chat_choice(0, {}))
            return
        results = await answers.all()
    whole_choices = []
    for i, (parser, result) in enumerate(zip(parsers, results)):
        message = message_of(parser.push(result.text, last=True))
        if "tool_calls" in message and not message["content"]:
            message["content"] = None
        logprobs = chat_logprobs(asked.logprobs, result.logprobs, tokenizer, talk.fresh)
        reason = finish_reason(parser, result, asked.tool_choice)
        whole_choices.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": reason})
    times = timings(results[0].timings)
    show = service.settings.show_prompts if asked.verbose is None else asked.verbose
    more = {"__verbose": {"prompt": text_of(tokenizer, talk.ids)}} if show else {}
    await call.answer(200, {**head, "object": "chat.completion", "choices": whole_choices,
                            "usage": usage(results, asked.n), "timings": times, **more})  # fmt: skip


def _delta(delta: Delta) -> list[dict[str, Any]]:
    """Write a part of an answer as the deltas of chunks."""
    found: list[dict[str, Any]] = []
    if delta.text:
        found.append({"content": delta.text})
    if delta.reasoning:
        found.append({"reasoning_content": delta.reasoning})
    if delta.name:
        function = {"name": delta.name, "arguments": ""}
        found.append({"tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]})
    if delta.arguments:
        found.append({"tool_calls": [{"index": delta.index, "function": {"arguments": delta.arguments}}]})
    return found


def _chat_choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


async def input_tokens(call: Call, service: Service) -> None:
    """Count the tokens of a conversation."""
    asked = parse(Chat, await call.json())
    messages, begun = split_begun(asked.messages, asked.begins())
    talk = await prepare(service, messages, begun, asked.tools, asked.tool_choice, asked.parallel_tool_calls,
                         asked.chat_template_kwargs)  # fmt: skip
    await call.answer(200, {"object": "response.input_tokens", "input_tokens": len(talk.ids)})


# --- completions ---


async def completions(call: Call, service: Service) -> None:
    """Continue texts."""
    asked = parse(Completion, await call.json())
    service.check_model(asked.model)
    chosen = asked.settings_for(service)
    ids = await prompt_ids(service, asked.prompt)
    head = {"id": f"cmpl-{secrets.token_hex(14)}", "object": "text_completion", "created": int(time.time()),
            "model": service.name, "system_fingerprint": service.settings.version}  # fmt: skip
    with service.submit(ids, asked.n, chosen, asked.logprobs) as answers:
        if asked.stream:
            await answers.ready()
            events = await call.events(event_of)
            offsets = [0] * len(answers.streams)

            def choices(piece: Piece) -> list[dict[str, Any]]:
                logprobs = None
                if asked.logprobs is not None:
                    logprobs = text_logprobs(piece.logprobs, offsets[piece.index])
                    offsets[piece.index] += sum(len(one.piece) for one in piece.logprobs)
                found = []
                if piece.text or piece.logprobs:
                    found.append({"index": piece.index, "text": piece.text, "logprobs": logprobs,
                                  "finish_reason": None})  # fmt: skip
                if piece.result is not None:
                    found.append({"index": piece.index, "text": "", "logprobs": None,
                                  "finish_reason": why(piece.result)})  # fmt: skip
                return found

            empty = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
            await stream_choices(events, service, answers, head, asked, choices, empty)
            return
        results = await answers.all()
    whole_choices = [
        {"index": i, "text": result.text, "finish_reason": why(result),
         "logprobs": text_logprobs(result.logprobs)}
        for i, result in enumerate(results)
    ]  # fmt: skip
    await call.answer(200, {**head, "choices": whole_choices, "usage": usage(results, asked.n),
                            "timings": timings(results[0].timings)})  # fmt: skip


# --- models ---


async def models(call: Call, service: Service) -> None:
    """Describe the model, as a list of one."""
    service.check()
    info = service.model.info()
    meta = {"n_vocab": info["vocab_size"], "n_ctx": service.model.context, "n_ctx_train": info["context_length"],
            "n_embd": info["hidden_size"], "n_params": info["parameters"], "size": info["file_bytes"]}  # fmt: skip
    entry = {"id": service.name, "object": "model", "created": service.started, "owned_by": "lowbit",
             "aliases": list(service.aliases), "tags": list(service.settings.tags), "meta": meta}  # fmt: skip
    await call.answer(200, {"object": "list", "data": [entry]})


async def one_model(call: Call, service: Service) -> None:
    """Describe a model."""
    service.check()
    name = call.scope["path"].rpartition("/models/")[2]
    service.check_model(name)
    await call.answer(200, {"id": name, "object": "model", "created": service.started, "owned_by": "lowbit"})
