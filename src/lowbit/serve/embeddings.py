"""OpenAI's embeddings."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fields import choice, need, option, parse, text, whole
from .http import Call
from .openai import prompt_ids, prompts_kind
from .problems import Problem
from .service import Service

__all__ = ["Embeddings", "embeddings"]

MAX_TEXTS = 2048


@dataclass(frozen=True)
class Embeddings:
    """POST /v1/embeddings."""

    input: Any = need(prompts_kind, "a text or token ids, or a list of these")
    model: str | None = option(text, "a name that /v1/models lists; the model of the server if left out")
    encoding_format: str = option(choice("float", "base64"), "float, or base64 of little-endian float32", "float")
    dimensions: int | None = option(whole(1), "must be the model's own")
    user: str | None = option(text, "accepted: a label of the caller's")


async def embeddings(call: Call, service: Service) -> None:
    """Turn texts into vectors of length 1."""
    asked = parse(Embeddings, await call.json())
    service.check_model(asked.model)
    own = service.model.config.hidden_size
    if asked.dimensions not in (None, own):
        raise Problem(400, f"dimensions must be {own}, not {asked.dimensions}", param="dimensions")
    if len(asked.input) > MAX_TEXTS:
        raise Problem(400, f"input: at most {MAX_TEXTS} texts at a time, not {len(asked.input)}", param="input")
    ids = await prompt_ids(service, asked.input)
    vectors = np.empty((len(ids), own), np.float32)
    part = service.settings.max_sequences  # so that one request does not fill the queue
    for start in range(0, len(ids), part):
        answers, found = service.embed(ids[start : start + part])
        with answers:
            await answers.all()
        vectors[start : start + part] = found
    for vector in vectors:
        vector /= max(float(np.sqrt((vector.astype(np.float64) ** 2).sum())), 1e-12)
    n = sum(map(len, ids))
    data = [{"object": "embedding", "index": i, "embedding": _written(vector, asked.encoding_format)}
            for i, vector in enumerate(vectors)]  # fmt: skip
    await call.answer(200, {"object": "list", "data": data, "model": service.name,
                            "usage": {"prompt_tokens": n, "total_tokens": n}})  # fmt: skip


def _written(vector: np.ndarray, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
