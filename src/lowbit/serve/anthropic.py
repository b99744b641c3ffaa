"""Anthropic's Messages API."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from ..engine import Generation
from .asking import Sampled, max_tokens_kind, stop_kind
from .conversation import BETWEEN_PARTS, content_text, no_tools, split_begun
from .fields import Kind, choice, flag, list_of, mapping, need, number, only, option, parse, shown, text, whole
from .http import Call, encode
from .openai import tools_kind
from .problems import Problem, anthropic_form
from .service import Service

__all__ = ["CountTokens", "Messages", "count_tokens", "messages"]


def _take_messages(value: Any) -> list[dict[str, Any]]:
    """Messages of one side that follow each other are one."""
    if not isinstance(value, list) or not value:
        raise ValueError
    found: list[dict[str, Any]] = []
    for i, message in enumerate(value):
        at = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Problem(400, f"{at} must be an object, not {shown(message)}", param=at)
        if message.get("role") not in ("user", "assistant"):
            raise Problem(400, f"{at}.role must be user or assistant, not {shown(message.get('role'))}",
                          param=f"{at}.role")  # fmt: skip
        unknown = set(message) - {"role", "content"}
        if unknown:
            raise Problem(400, f"{at}.{min(unknown)[:60]} is not supported", param=f"{at}.{min(unknown)[:60]}")
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") in ("tool_use", "tool_result"):
                no_tools(at)
        said = content_text(content, f"{at}.content")
        if found and found[-1]["role"] == message["role"]:
            found[-1]["content"] += BETWEEN_PARTS + said
        else:
            found.append({"role": message["role"], "content": said})
    return found


def _take_choice(value: Any) -> Any:
    if value != {"type": "none"}:
        no_tools("tool_choice")
    return value


messages_kind = Kind("a list of messages", _take_messages, {"type": "array", "minItems": 1})
system_kind = Kind("a text or a list of text blocks", lambda value: content_text(value, "system"),
                   {"type": ["string", "array"]})  # fmt: skip
choice_kind = Kind("an object", _take_choice, {"type": "object"})


@dataclass(frozen=True)
class CountTokens:
    """POST /v1/messages/count_tokens."""

    messages: Any = need(messages_kind, "the conversation: role and content each; a content is text or text blocks")
    model: str | None = option(text, "a name that /v1/models lists; the model of the server if left out")
    system: str | None = option(system_kind, "what the model is told before the conversation")
    tools: Any = option(tools_kind, "not supported yet")
    tool_choice: Any = option(choice_kind, "of type none")
    thinking: Any = option(only({"type": "disabled"}), "of type disabled")

    def conversation(self) -> tuple[list[dict[str, Any]], str]:
        first = [] if not self.system else [{"role": "system", "content": self.system}]
        return split_begun([*first, *self.messages])


@dataclass(frozen=True)
class Messages(CountTokens):
    """POST /v1/messages."""

    max_tokens: int = need(max_tokens_kind, "most tokens of the answer")
    stop_sequences: Any = option(list_of(text, 64), "texts that end the answer, and are no part of it", ())
    stream: bool = option(flag, "send the answer as it is made, as server-sent events", False)
    temperature: float | None = option(number, "divides the logits; 0 takes the likeliest token")
    top_k: int | None = option(whole(0), "keep this many of the likeliest tokens; 0 keeps all")
    top_p: float | None = option(number, "keep the likeliest tokens up to this sum, above 0 to 1")
    metadata: Any = option(mapping, "accepted: labels of the caller's")
    service_tier: str | None = option(choice("auto", "standard_only"), "there is one")

    def sampled(self) -> Sampled:
        stops = tuple(stop_kind.take(list(self.stop_sequences))) if self.stop_sequences else None
        return Sampled(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=stops)


async def count_tokens(call: Call, service: Service) -> None:
    """Count the tokens of a conversation."""
    asked = parse(CountTokens, await call.json())
    service.check_model(asked.model)
    await call.answer(200, {"input_tokens": len(await service.conversation_ids(*asked.conversation()))})


async def messages(call: Call, service: Service) -> None:
    """Answer the last message of a conversation."""
    asked = parse(Messages, await call.json())
    service.check_model(asked.model)
    try:
        sampled = asked.sampled()
    except ValueError:
        raise Problem(400, "stop_sequences must not be empty texts", param="stop_sequences") from None
    chosen = sampled.settings(service.settings.sampling, asked.max_tokens, service.model._tokenizer,
                              service.template.stops)  # fmt: skip
    ids = await service.conversation_ids(*asked.conversation())
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": service.name}
    nothing = {"stop_reason": None, "stop_sequence": None}
    with service.submit([ids], 1, chosen) as answers:
        if not asked.stream:
            result = (await answers.all())[0]
            service.note_times(result)
            content = [{"type": "text", "text": result.text}]
            await call.answer(
                200, {**head, "content": content, **_end(result, asked, service), "usage": _usage(result)}
            )
            return
        events = await call.events(_failed)

        async def send(kind: str, **more: Any) -> None:
            await events.send({"type": kind, **more}, kind)

        begun = {"input_tokens": len(ids), "output_tokens": 0, "cache_creation_input_tokens": 0,
                 "cache_read_input_tokens": 0}  # fmt: skip
        await send("message_start", message={**head, "content": [], **nothing, "usage": begun})
        await send("content_block_start", index=0, content_block={"type": "text", "text": ""})
        await send("ping")
        async for piece in answers.pieces(service.settings.ping_seconds):
            if piece is None:
                await send("ping")
            elif piece.text:
                await send("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})
            if piece is not None and piece.result is not None:
                result = piece.result
        service.note_times(result)
        await send("content_block_stop", index=0)
        await send("message_delta", delta=_end(result, asked, service), usage=_usage(result))
        await send("message_stop")
        await events.end()


def _end(result: Generation, asked: Messages, service: Service) -> dict[str, Any]:
    word = service.stopping_word(result, asked.stop_sequences)
    reason = "stop_sequence" if word is not None else "end_turn" if result.finish_reason == "stop" else "max_tokens"
    return {"stop_reason": reason, "stop_sequence": word}


def _usage(result: Generation) -> dict[str, Any]:
    known = result.timings.reused_tokens
    return {"input_tokens": result.prompt_tokens - known, "output_tokens": len(result.tokens),
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": known}  # fmt: skip


def _failed(problem: Problem) -> bytes:
    return b"event: error\ndata: " + encode(anthropic_form(problem)) + b"\n\n"
