"""OpenAI's Responses API, as far as it works without a memory of earlier responses."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from ..chat.tools import Delta
from ..engine import Generation
from ..sampling import SamplingParams
from .asking import Sampled, max_tokens_kind, response_format_kind
from .conversation import conversation, split_begun
from .fields import Kind, flag, list_of, mapping, need, only, option, parse
from .fields import text as words
from .http import Call, encode
from .items import Item, input_kind, kind_of, own_choice_kind, own_tools_kind
from .problems import Problem
from .service import Service
from .talk import prepare, template_values_kind
from .written import extras, timings


def _take_text(value: Any) -> Any:
    if not isinstance(value, dict) or not set(value) <= {"format"}:
        raise ValueError
    return None if value.get("format") is None else response_format_kind.take(_as_chat_format(value["format"]))


def _as_chat_format(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" not in value:
        return {"type": "json_schema", "json_schema": {k: v for k, v in value.items() if k != "type"}}
    return value


text_kind = Kind("an object with a format", _take_text, {"type": "object"})


@dataclass(frozen=True)
class Responses(Sampled):
    """POST /v1/responses."""

    input: Any = need(input_kind, "a text, or messages")
    model: str | None = option(words, "a name that /v1/models lists; the model of the server if left out")
    instructions: str | None = option(words, "what the model is told before all else")
    max_output_tokens: int | None = option(max_tokens_kind, "most tokens of the answer; as many as there is room for")
    stream: bool = option(flag, "send the answer as it is made, as server-sent events", False)
    text: Any = option(text_kind, "format: text, json_object, or json_schema with a schema")
    tools: Any = option(own_tools_kind, "functions that the model may call, with JSON schemas of their arguments")
    tool_choice: Any = option(own_choice_kind, "auto, none, required, or an object that names a function")
    parallel_tool_calls: bool | None = option(flag, "whether one answer may hold several calls; true if left out")
    metadata: Any = option(mapping, "returned as it is")
    user: str | None = option(words, "accepted: a label of the caller's")
    prompt_cache_key: str | None = option(words, "accepted: what is known of prompts is found without it")
    safety_identifier: str | None = option(words, "accepted: a label of the caller's")
    store: bool | None = option(only(False), "nothing is stored")
    include: Any = option(list_of(words, 0), "nothing can be included")
    truncation: str | None = option(only("disabled"), "prompts are never cut")
    background: bool | None = option(only(False), "not supported")
    service_tier: str | None = option(only("auto", "default"), "there is one")
    chat_template_kwargs: Any = option(template_values_kind, "what the chat template is told, such as enable_thinking")


async def responses(call: Call, service: Service) -> None:
    """Answer."""
    asked = parse(Responses, await call.json())
    service.check_model(asked.model)
    chosen = asked.settings(service.settings.sampling, asked.max_output_tokens, service.model,
                            service.template.stops)  # fmt: skip
    if asked.text is not None:
        if chosen.get("json_schema") is not None:
            raise Problem(400, "text.format and json_schema cannot go together", param="text")
        chosen["json_schema"] = asked.text
    messages = asked.input
    if asked.instructions is not None:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    talk = await prepare(service, *split_begun(conversation(messages)), asked.tools, asked.tool_choice,
                         asked.parallel_tool_calls, asked.chat_template_kwargs)  # fmt: skip
    talk.hold(chosen)
    parser = talk.parser()
    answer = _Answer(asked, chosen, service)
    with service.submit([talk.ids], 1, chosen) as answers:
        if not asked.stream:
            result = (await answers.all())[0]
            for delta in parser.push(result.text, last=True):
                answer.push(delta)
            answer.finish(result)
            await call.answer(200, {**answer.whole(result), "timings": timings(result.timings)})
            return
        await answers.ready()
        events = await call.events(answer.failed)

        async def send(several: list[dict[str, Any]], **more: Any) -> None:
            for event in several:
                await events.send({**event, "sequence_number": answer.next(), **more}, event["type"])

        for kind in ("response.created", "response.in_progress"):
            await send([{"type": kind, "response": answer.object("in_progress")}])
        async for piece in answers.pieces(service.settings.ping_seconds, events.ping):
            more = extras(piece, answers, asked)
            if piece.progress is not None:
                await send([{"type": "response.in_progress", "response": answer.object("in_progress")}], **more)
                continue
            for delta in parser.push(piece.text, last=piece.result is not None):
                await send(answer.push(delta), **more)
            if piece.result is not None:
                result = piece.result
        await send(answer.finish(result))
        last = {"type": f"response.{answer.status(result)}", "response": answer.whole(result)}
        await send([last], timings=timings(result.timings))
        await events.end()


class _Answer:
    """What is the same in all events of a response."""

    def __init__(self, asked: Responses, chosen: dict[str, Any], service: Service) -> None:
        self._asked, self._service = asked, service
        default = SamplingParams()
        self._temperature = chosen.get("temperature", default.temperature)
        self._top_p = chosen.get("top_p", default.top_p)
        self.id = f"resp_{secrets.token_hex(16)}"
        self.items: list[Item] = []
        self._created, self._sequence = int(time.time()), -1

    def next(self) -> int:
        self._sequence += 1
        return self._sequence

    def failed(self, problem: Problem) -> bytes:
        event = {"type": "error", "sequence_number": self.next(), "code": problem.code or "server_error",
                 "message": problem.message, "param": problem.param}  # fmt: skip
        return b"event: error\ndata: " + encode(event) + b"\n\n"

    def push(self, delta: Delta) -> list[dict[str, Any]]:
        """Take a part of the answer; return its events."""
        events: list[dict[str, Any]] = []
        if not self.items or self.items[-1].kind != kind_of(delta) or delta.name:
            if self.items:
                events += self.items[-1].end("completed")
            self.items.append(Item(delta, len(self.items)))
            events += self.items[-1].begin()
        return events + self.items[-1].push(delta)

    def finish(self, result: Generation) -> list[dict[str, Any]]:
        """Return the events of the end of its last item; an answer without any has an empty message."""
        events = [] if self.items else self.push(Delta())
        return events + self.items[-1].end(self.status(result))

    def status(self, result: Generation) -> str:
        return "completed" if result.finish_reason == "stop" else "incomplete"

    def whole(self, result: Generation) -> dict[str, Any]:
        status, made = self.status(result), len(result.tokens)
        output = [item.object("completed") for item in self.items[:-1]] + [self.items[-1].object(status)]
        usage = {"input_tokens": result.prompt_tokens, "output_tokens": made,
                 "total_tokens": result.prompt_tokens + made,
                 "input_tokens_details": {"cached_tokens": result.timings.reused_tokens},
                 "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
        return {**self.object(status), "output": output, "usage": usage}

    def object(self, status: str) -> dict[str, Any]:
        asked, choice = self._asked, self._asked.tool_choice
        if isinstance(choice, dict):
            choice = {"type": "function", **choice["function"]}
        tools = [{"type": "function", **tool["function"]} for tool in asked.tools or ()]
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "model": self._service.name, "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None,
            "store": False, "temperature": self._temperature, "top_p": self._top_p, "tool_choice": choice or "auto",
            "tools": tools, "text": {"format": {"type": "text"}}, "truncation": "disabled", "usage": None,
        }  # fmt: skip
