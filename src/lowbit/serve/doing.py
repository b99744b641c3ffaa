"""What the server is, and what it is doing."""

from __future__ import annotations

import os
from typing import Any

from ..engine import State
from .http import Call
from .problems import Problem
from .service import Service
from .written import generation_settings


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
    if not service.settings.slots:
        raise Problem(501, "this server was started without /slots", code="not_supported")
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
