"""Anthropic's Messages API."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from ..chat.tools import ToolCalls
from ..engine import Generation
from .asking import Sampled, max_tokens_kind, stop_kind
from .blocks import (
    blocks_of,
    choice_kind,
    delta_of,
    empty_block,
    messages_kind,
    output_kind,
    system_kind,
    thinking_kind,
    tools_kind,
)
from .conversation import split_begun
from .fields import choice, flag, list_of, mapping, need, number, option, parse, text, whole
from .http import Call, encode
from .problems import Problem, anthropic_form
from .service import Service
from .talk import Talk, prepare


@dataclass(frozen=True)
class CountTokens:
    """POST /v1/messages/count_tokens."""

    messages: Any = need(messages_kind, "the conversation: role and content each; a content is text or blocks")
    model: str | None = option(text, "a name that /v1/models lists; the model of the server if left out")
    system: str | None = option(system_kind, "what the model is told before the conversation")
    tools: Any = option(tools_kind, "name, description and input_schema each")
    tool_choice: Any = option(choice_kind, "of type auto, any, none, or tool with a name")
    thinking: bool | None = option(thinking_kind, "of type disabled; of type enabled for models that have no thoughts")
    cache_control: Any = option(mapping, "accepted: what is known of prompts is found without it")

    async def talk(self, service: Service) -> Talk:
        first = [] if not self.system else [{"role": "system", "content": self.system}]
        wanted, alone = self.tool_choice or (None, False)
        if self.thinking and service.thinks:
            raise Problem(
                400, "thinking: no budget can be kept; left out, the model thinks as it does", param="thinking"
            )
        values = {"enable_thinking": False} if self.thinking is False else None
        return await prepare(service, *split_begun([*first, *self.messages]), self.tools, wanted, not alone, values)


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
    output_config: Any = option(output_kind, "format: of type json_schema, with a schema that the answer follows")
    service_tier: str | None = option(choice("auto", "standard_only"), "there is one")

    def sampled(self) -> Sampled:
        try:
            stops = stop_kind.take(list(self.stop_sequences)) if self.stop_sequences else None
        except ValueError:
            raise Problem(400, "stop_sequences must not be empty texts", param="stop_sequences") from None
        return Sampled(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=stops,
                       json_schema=self.output_config)  # fmt: skip


async def count_tokens(call: Call, service: Service) -> None:
    """Count the tokens of a conversation."""
    asked = parse(CountTokens, await call.json())
    service.check_model(asked.model)
    await call.answer(200, {"input_tokens": len((await asked.talk(service)).ids)})


async def messages(call: Call, service: Service) -> None:
    """Answer the last message of a conversation."""
    asked = parse(Messages, await call.json())
    service.check_model(asked.model)
    chosen = asked.sampled().settings(service.settings.sampling, asked.max_tokens, service.model,
                                      service.template.stops)  # fmt: skip
    talk = await asked.talk(service)
    talk.hold(chosen)
    parser = talk.parser()
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": service.name}
    with service.submit([talk.ids], 1, chosen) as answers:
        if not asked.stream:
            result = (await answers.all())[0]
            content = blocks_of(parser.push(result.text, last=True))
            end = _end(result, asked, service, parser)
            await call.answer(200, {**head, "content": content, **end, "usage": _usage(result)})
            return
        await answers.ready()
        events = await call.events(_failed)

        async def send(kind: str, **more: Any) -> None:
            await events.send({"type": kind, **more}, kind)

        usage = {"input_tokens": len(talk.ids), "output_tokens": 0, "cache_creation_input_tokens": 0,
                 "cache_read_input_tokens": 0}  # fmt: skip
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        await send("message_start", message={**head, **nothing, "usage": usage})
        await send("ping")
        index, kind = -1, ""
        async for piece in answers.pieces(service.settings.ping_seconds, lambda: send("ping")):
            for delta in parser.push(piece.text, last=piece.result is not None):
                of = "tool_use" if delta.index is not None else "thinking" if delta.reasoning else "text"
                if of != kind or delta.name:
                    if kind:
                        await send("content_block_stop", index=index)
                    index, kind = index + 1, of
                    await send("content_block_start", index=index, content_block=empty_block(of, delta.id, delta.name))
                if delta.text or delta.reasoning or delta.arguments:
                    await send("content_block_delta", index=index, delta=delta_of(delta))
            if piece.result is not None:
                result = piece.result
        if not kind:
            index = 0
            await send("content_block_start", index=0, content_block=empty_block("text"))
        await send("content_block_stop", index=index)
        await send("message_delta", delta=_end(result, asked, service, parser), usage=_usage(result))
        await send("message_stop")
        await events.end()


def _end(result: Generation, asked: Messages, service: Service, parser: ToolCalls) -> dict[str, Any]:
    word = result.stopped_by if result.stopped_by in asked.stop_sequences else None
    if result.finish_reason != "stop":
        reason = "max_tokens"
    elif word is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if parser.called else "end_turn"
    return {"stop_reason": reason, "stop_sequence": word}


def _usage(result: Generation) -> dict[str, Any]:
    known = result.timings.reused_tokens
    return {"input_tokens": result.prompt_tokens - known, "output_tokens": len(result.tokens),
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": known}  # fmt: skip


def _failed(problem: Problem) -> bytes:
    return b"event: error\ndata: " + encode(anthropic_form(problem)) + b"\n\n"
