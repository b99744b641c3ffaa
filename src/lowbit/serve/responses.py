"""OpenAI's Responses API, as far as it works without a memory of earlier responses."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from ..engine import Generation
from ..sampling import SamplingParams
from .asking import Sampled, max_tokens_kind, one_constraint, response_format_kind
from .conversation import content_text, conversation, no_tools, split_begun
from .fields import Kind, flag, list_of, mapping, need, only, option, parse, shown
from .fields import text as words
from .http import Call, encode
from .openai import timings, tool_choice_kind, tools_kind
from .problems import Problem
from .service import Service

__all__ = ["Responses", "responses"]


def _take_input(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError
    messages = []
    for i, item in enumerate(value):
        at = f"input[{i}]"
        if not isinstance(item, dict):
            raise Problem(400, f"{at} must be an object, not {shown(item)}", param=at)
        kind = item.get("type", "message")
        if kind in ("function_call", "function_call_output"):
            no_tools(at)
        if kind != "message":
            raise Problem(400, f"{at}: items of type {shown(kind)} are not supported", param=f"{at}.type")
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise Problem(400, f"{at}.role must be system, developer, user or assistant, not {shown(role)}",
                          param=f"{at}.role")  # fmt: skip
        unknown = set(item) - {"type", "role", "content", "id", "status"}
        if unknown:
            raise Problem(400, f"{at}.{min(unknown)[:60]} is not supported", param=f"{at}.{min(unknown)[:60]}")
        said = content_text(item.get("content"), f"{at}.content", ("input_text", "output_text", "text"))
        messages.append({"role": "system" if role == "developer" else role, "content": said})
    return messages


def _take_text(value: Any) -> Any:
    if not isinstance(value, dict) or not set(value) <= {"format"}:
        raise ValueError
    return None if value.get("format") is None else response_format_kind.take(_as_chat_format(value["format"]))


def _as_chat_format(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "json_schema" and "json_schema" not in value:
        return {"type": "json_schema", "json_schema": {k: v for k, v in value.items() if k != "type"}}
    return value


input_kind = Kind("a text or a list of messages", _take_input, {"type": ["string", "array"]})
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
    tools: Any = option(tools_kind, "not supported yet")
    tool_choice: Any = option(tool_choice_kind, "none or auto")
    parallel_tool_calls: bool | None = option(flag, "accepted where there are no tools")
    metadata: Any = option(mapping, "returned as it is")
    user: str | None = option(words, "accepted: a label of the caller's")
    store: bool | None = option(only(False), "nothing is stored")
    include: Any = option(list_of(words, 0), "nothing can be included")
    truncation: str | None = option(only("disabled"), "prompts are never cut")
    background: bool | None = option(only(False), "not supported")
    service_tier: str | None = option(only("auto", "default"), "there is one")
    return_progress: bool | None = option(only(False), "not supported")


async def responses(call: Call, service: Service) -> None:
    """Answer."""
    asked = parse(Responses, await call.json())
    service.check_model(asked.model)
    chosen = asked.settings(service.settings.sampling, asked.max_output_tokens, service.model._tokenizer,
                            service.template.stops)  # fmt: skip
    if asked.text is not None:
        if chosen.get("json_schema") is not None:
            raise Problem(400, "text.format and json_schema cannot go together", param="text")
        chosen["json_schema"] = asked.text
    one_constraint(chosen)
    messages = asked.input
    if asked.instructions is not None:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    ids = await service.conversation_ids(*split_begun(conversation(messages)))
    answer = _Answer(asked, chosen, service)
    with service.submit([ids], 1, chosen) as answers:
        if not asked.stream:
            result = (await answers.all())[0]
            service.note_times(result)
            await call.answer(200, {**answer.whole(result), "timings": timings(result)})
            return
        events = await call.events(answer.failed)

        async def send(kind: str, **more: Any) -> None:
            await events.send({"type": kind, "sequence_number": answer.next(), **more}, kind)

        place = {"item_id": answer.message_id, "output_index": 0, "content_index": 0}
        await send("response.created", response=answer.object("in_progress", []))
        await send("response.in_progress", response=answer.object("in_progress", []))
        await send("response.output_item.added", output_index=0, item=answer.item("in_progress", []))
        await send("response.content_part.added", **place, part=_part(""))
        async for piece in answers.pieces(service.settings.ping_seconds):
            if piece is None:
                await events.ping()
                continue
            if piece.text:
                more = {"timings": timings(answers.streams[0]._request.result())} if asked.timings_per_token else {}
                await send("response.output_text.delta", **place, delta=piece.text, logprobs=[], **more)
            if piece.result is not None:
                result = piece.result
        service.note_times(result)
        status = "completed" if result.finish_reason == "stop" else "incomplete"
        await send("response.output_text.done", **place, text=result.text, logprobs=[])
        await send("response.content_part.done", **place, part=_part(result.text))
        await send("response.output_item.done", output_index=0, item=answer.item(status, [_part(result.text)]))
        await send(f"response.{status}", response=answer.whole(result), timings=timings(result))
        await events.end()


class _Answer:
    """What is the same in all events of a response."""

    def __init__(self, asked: Responses, chosen: dict[str, Any], service: Service) -> None:
        self._asked, self._service = asked, service
        default = SamplingParams()
        self._temperature = chosen.get("temperature", default.temperature)
        self._top_p = chosen.get("top_p", default.top_p)
        self.id, self.message_id = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created, self._sequence = int(time.time()), -1

    def next(self) -> int:
        self._sequence += 1
        return self._sequence

    def failed(self, problem: Problem) -> bytes:
        event = {"type": "error", "sequence_number": self.next(), "code": problem.code or "server_error",
                 "message": problem.message, "param": problem.param}  # fmt: skip
        return b"event: error\ndata: " + encode(event) + b"\n\n"

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def whole(self, result: Generation) -> dict[str, Any]:
        status = "completed" if result.finish_reason == "stop" else "incomplete"
        made = len(result.tokens)
        return self.object(
            status,
            [self.item(status, [_part(result.text)])],
            {"input_tokens": result.prompt_tokens, "output_tokens": made, "total_tokens": result.prompt_tokens + made,
             "input_tokens_details": {"cached_tokens": result.timings.reused_tokens},
             "output_tokens_details": {"reasoning_tokens": 0}},
        )  # fmt: skip

    def object(self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "model": self._service.name, "output": output,
            "parallel_tool_calls": True, "previous_response_id": None, "store": False,
            "temperature": self._temperature, "top_p": self._top_p, "tool_choice": asked.tool_choice or "auto",
            "tools": [], "text": {"format": {"type": "text"}}, "truncation": "disabled", "usage": usage,
        }  # fmt: skip


def _part(said: str) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
