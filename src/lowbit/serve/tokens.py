"""Tokens of texts, and conversations as a model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .conversation import messages_kind, split_begun
from .fields import flag, need, option, parse, text
from .http import Call
from .problems import Problem
from .prompts import ids_kind
from .service import Service
from .talk import shown_tools, template_values_kind, tool_choice_kind, tools_kind


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
    add_generation_prompt: bool = option(flag, "the prompt ends where the answer begins", True)
    chat_template_kwargs: Any = option(template_values_kind, "what the chat template is told, such as enable_thinking")


async def apply_template(call: Call, service: Service) -> None:
    """Write a conversation as the model reads it."""
    asked = parse(ApplyTemplate, await call.json())
    messages, begun = split_begun(asked.messages, asked.add_generation_prompt)
    values = {**(asked.chat_template_kwargs or {})}
    if not asked.add_generation_prompt:
        values["add_generation_prompt"] = False
    tools = shown_tools(service, asked.tools, asked.tool_choice)
    await call.answer(200, {"prompt": await service.conversation_text(messages, begun, tools, values)})
