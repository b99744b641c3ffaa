"""What answers are made of: counts, times, probabilities, settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ..engine import Generation, Timings, TokenLogprob
from ..sampling import SamplingParams
from ..tokenizers import Tokenizer
from .answers import Answers, Piece
from .asking import NEUTRAL, Sampled
from .http import encode
from .problems import Problem, openai_form


def usage(results: Sequence[Generation], n: int = 1) -> dict[str, Any]:
    """Count tokens; a prompt with several answers counts once."""
    prompt = sum(one.prompt_tokens for one in results[::n])
    made = sum(len(one.tokens) for one in results)
    known = sum(one.timings.reused_tokens for one in results[::n])
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": known}}  # fmt: skip


def timings(t: Timings) -> dict[str, Any]:
    """Return where the time went, as llama.cpp's server writes it."""
    computed, made = t.prompt_tokens - t.reused_tokens, max(t.decode_tokens - 1, 0)
    prompt_ms, made_ms = t.prompt_seconds * 1e3, t.decode_seconds * 1e3
    return {
        "cache_n": t.reused_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / computed if computed else 0.0,
        "prompt_per_second": 1e3 * computed / prompt_ms if prompt_ms else 0.0,
        "predicted_n": t.decode_tokens,
        "predicted_ms": made_ms,
        "predicted_per_token_ms": made_ms / made if made else 0.0,
        "predicted_per_second": 1e3 * made / made_ms if made_ms else 0.0,
    }


def extras(piece: Piece, answers: Answers, asked: Sampled) -> dict[str, Any]:
    """Return what llama.cpp's server adds to the event of a piece where it was asked to: progress and timings."""
    if piece.progress is None and not asked.timings_per_token:
        return {}
    t = (piece.result or answers.so_far(piece.index)).timings
    found: dict[str, Any] = {}
    if piece.progress is not None:
        processed, seconds = piece.progress
        found["prompt_progress"] = {"total": t.prompt_tokens, "cache": t.reused_tokens, "processed": processed,
                                    "time_ms": seconds * 1e3}  # fmt: skip
        t = replace(t, prompt_tokens=processed, prompt_seconds=seconds, decode_tokens=0, decode_seconds=0.0)
    return {**found, "timings": timings(t)} if asked.timings_per_token else found


def token_object(one: TokenLogprob, tokenizer: Tokenizer | None, first: bool = False) -> dict[str, Any]:
    """Return a token with its log-probability and the likeliest in its place, as chat completions write it.

    The `first` token of an answer is written as it begins a text, so that the tokens together are the answer.
    """

    def written(token: int, piece: str, logprob: float) -> dict[str, Any]:
        return {**_shown(token, piece, tokenizer, first), "logprob": logprob}

    top = [written(*other) for other in one.top]
    return {**written(one.token, one.piece, one.logprob), "top_logprobs": top}


def chance_object(one: TokenLogprob, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return a token with the probability that it was drawn by, and those of the likeliest that could be drawn."""

    def written(token: int, piece: str, probability: float) -> dict[str, Any]:
        return {"id": token, **_shown(token, piece, tokenizer), "prob": probability}

    return {**written(one.token, one.piece, one.prob), "top_probs": [written(*other) for other in one.top_probs]}


def _shown(token: int, piece: str, tokenizer: Tokenizer | None, first: bool = False) -> dict[str, Any]:
    data = b""
    if tokenizer is not None and token < tokenizer.vocab_size:
        data = tokenizer.token_bytes(token, first)
        piece = data.decode("utf-8", "replace") if first and token not in tokenizer.control_ids else piece
    return {"token": piece, "bytes": list(data)}


def chat_logprobs(
    asked: Any, found: Sequence[TokenLogprob] | None, tokenizer: Tokenizer, first: bool
) -> dict[str, Any] | None:
    """Return the log-probabilities of tokens; `first` tells whether they begin an answer."""
    if not asked or found is None:
        return None
    tokens = [token_object(one, tokenizer, first and i == 0) for i, one in enumerate(found)]
    return {"content": tokens, "refusal": None}


def text_logprobs(found: Sequence[TokenLogprob] | None, offset: int = 0) -> dict[str, Any] | None:
    """Return log-probabilities as the older API writes them."""
    if found is None:
        return None
    offsets = []
    for one in found:
        offsets.append(offset)
        offset += len(one.piece)
    return {
        "tokens": [one.piece for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [{piece: logprob for _, piece, logprob in one.top} for one in found],
        "text_offset": offsets,
    }


def event_of(problem: Problem) -> bytes:
    """Return the last event of a stream that fails."""
    return b"data: " + encode(openai_form(problem)) + b"\n\n"


def generation_settings(chosen: dict[str, Any], ends: Collection[int] = ()) -> dict[str, Any]:
    """Return the settings of a request as llama.cpp's server names them."""
    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
    default = SamplingParams()
    seed, most = chosen.get("seed"), chosen.get("max_tokens", -1)
    biases = chosen.get("logit_bias") or {}
    return {
        **{name: chosen.get(name, getattr(default, name)) for name in names},
        "seed": -1 if seed is None else seed,
        "n_predict": -1 if most == 2**31 - 1 else most,
        "max_tokens": -1 if most == 2**31 - 1 else most,
        "stop": list(chosen.get("stop", ())),
        "logit_bias": [{"bias": None if token in ends else bias, "token": token} for token, bias in biases.items()],
        "ignore_eos": bool(ends),
        **NEUTRAL,
    }


def text_of(tokenizer: Tokenizer | None, ids: Sequence[int]) -> str:
    """Return a prompt as a model reads it: all that its tokens say, and the names of control tokens."""
    if tokenizer is None:
        return ""
    parts = [tokenizer.piece(i).encode() if i in tokenizer.control_ids else tokenizer.token_bytes(i)
             for i in ids if i < tokenizer.vocab_size]  # fmt: skip
    return b"".join(parts).decode("utf-8", "replace")
