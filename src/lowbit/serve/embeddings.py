"""OpenAI's embeddings."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fields import choice, need, option, parse, text, whole
from .http import Call
from .problems import Problem
from .prompts import input_kind, mixed_ids
from .service import Service

MAX_TEXTS = 2048


@dataclass(frozen=True)
class Embeddings:
    """POST /v1/embeddings."""

    input: Any = need(
        input_kind, "a text, token ids, both mixed, an object with a content of text parts, or a list of these"
    )
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
    if service.settings.pooling == "none":
        await _each_token(call, service, asked)
        return
    ids = [await mixed_ids(service, one) for one in asked.input]
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


async def _each_token(call: Call, service: Service, asked: Embeddings) -> None:
    """Answer as llama.cpp's server does where vectors are not pooled: those of all tokens, as they are."""
    if call.scope["path"] != "/embeddings":
        raise Problem(400, "OpenAI's embeddings are pooled, which --pooling none switches off; ask /embeddings")
    if asked.encoding_format != "float":
        raise Problem(400, "encoding_format must be float where vectors are not pooled", param="encoding_format")
    found = []
    for i, one in enumerate(asked.input):
        answers, vectors = service.embed([await mixed_ids(service, one)])
        with answers:
            await answers.all()
        found.append({"index": i, "embedding": vectors[0].tolist()})
    await call.answer(200, found)


def _written(vector: np.ndarray, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
