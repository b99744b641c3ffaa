"""The part of the manual that the tables of fields know."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from .app import ROUTES
from .asking import Sampled

_WORDS = {
    "/v1/models": "the model and its other names; /v1/models/NAME",
    "/v1/chat/completions/input_tokens": "count the tokens of a conversation",
    "/v1/messages/count_tokens": "the same in Anthropic's API",
    "/v1/messages": "Anthropic's Messages API",
    "/v1/responses": "OpenAI's Responses API, without a memory of earlier ones",
    "/completion": "llama.cpp's own",
    "/health": "whether requests can be answered; needs no key",
    "/metrics": "counts for Prometheus",
    "/props": "model and settings",
    "/slots": "what runs",
    "/openapi.json": "all of this for programs",
}


def paths() -> str:
    """Return the table of paths."""
    width = max(map(len, ROUTES)) + 2
    rows = (f"  {method:4}  {path:{width}}{_WORDS.get(path, '')}" for path, (method, *_) in ROUTES.items())
    return "\n".join(map(str.rstrip, rows))


def fields() -> str:
    """Return the fields of all tables."""
    common = {field.name for field in dataclasses.fields(Sampled)}
    parts = [_section("all that make text", Sampled, set())]
    for path, (_, _, table) in ROUTES.items():
        if table is not None and path != "/v1/chat/completions/input_tokens":
            parts.append(_section(path, table, common if issubclass(table, Sampled) else set()))
    return "\n\n".join(parts)


def _section(title: str, table: Any, left_out: set[str]) -> str:
    lines = [f"  {title}"]
    for field in dataclasses.fields(table):
        if field.name not in left_out:
            needed = " (needed)" if field.metadata.get("needed") else ""
            lines += textwrap.wrap(f"{field.name}{needed}: {field.metadata['help']}", 110, initial_indent="    ",
                                   subsequent_indent="        ")  # fmt: skip
    return "\n".join(lines)
