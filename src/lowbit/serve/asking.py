"""What all endpoints that make text take: settings of the sampler, constraints, and llama.cpp's own fields."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..engine.text import MAX_LOGPROBS
from ..model import Model
from ..sampling import SamplingParams
from ..tokenizers import Tokenizer
from .fields import Kind, flag, mapping, number, only, option, shown, text, whole
from .problems import Problem

MAX_TEXTS = 128
"""Most texts that one request may ask for."""
MAX_STOPS = 64
MAX_BIASES = 4096
FORBIDDEN = -1000.0
"""As a bias: a token that is never chosen."""


def _take_stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(isinstance(t, str) and t for t in texts):
        raise ValueError
    return tuple(texts)


def _take_bias(value: Any) -> tuple[tuple[int | str, float], ...]:
    """Token ids or texts with numbers, as an object or as pairs; false forbids."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > MAX_BIASES:
        raise ValueError
    found: list[tuple[int | str, float]] = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError
        token, bias = pair
        if isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) < 12:
            token = int(token)
        if bias is False:
            bias = FORBIDDEN
        if isinstance(token, bool) or not isinstance(token, (int, str)) or isinstance(bias, bool):
            raise ValueError
        if not isinstance(bias, (int, float)) or not FORBIDDEN <= bias <= -FORBIDDEN:
            raise ValueError
        found.append((token, float(bias)))
    return tuple(found)


def _take_format(value: Any) -> Any:
    """The schema of a response_format; None if it asks for text."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError
    kind = value["type"]
    known = {"text": {"type"}, "json_object": {"type", "schema"}, "json_schema": {"type", "json_schema", "schema"}}
    if kind not in known or not set(value) <= known[kind]:
        raise ValueError
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema", {"type": "object"})
    else:
        inner = value.get("json_schema", value)
        if not isinstance(inner, dict) or not set(inner) <= {"name", "schema", "strict", "description", "type"}:
            raise ValueError
        schema = inner.get("schema")
    if not isinstance(schema, (dict, bool)):
        raise Problem(400, f"response_format: the schema must be an object, not {shown(schema)}",
                      param="response_format", code="invalid_value")  # fmt: skip
    return schema


stop_kind = Kind(f"a text, or a list of up to {MAX_STOPS} texts, none of them empty", _take_stop,
                 {"type": ["string", "array"], "items": {"type": "string", "minLength": 1}})  # fmt: skip
bias_kind = Kind("an object of token ids and numbers from -1000 to 1000", _take_bias, {"type": ["object", "array"]})
response_format_kind = Kind("an object of type text, json_object or json_schema", _take_format, {"type": "object"})
schema_kind = Kind("an object", mapping.take, {"type": "object"})
max_tokens_kind = whole(1)
logprobs_kind = whole(0, MAX_LOGPROBS)
seed_kind = whole(-(2**63), 2**64 - 1)


NEUTRAL = {"repeat_last_n": 64, "typical_p": 1.0, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0,
           "xtc_probability": 0.0, "xtc_threshold": 0.1, "dry_multiplier": 0.0, "mirostat": 0,
           "adaptive_target": -1.0, "adaptive_decay": 0.9}  # fmt: skip
"""What llama.cpp's server calls the settings of steps that there are not, which are off."""


@dataclass(frozen=True)
class Sampled:
    """How tokens are chosen. What is left out is as the server was started."""

    temperature: float | None = option(number, "divides the logits; 0 takes the likeliest token")
    top_p: float | None = option(number, "keep the likeliest tokens up to this sum, above 0 to 1")
    top_k: int | None = option(whole(0), "keep this many of the likeliest tokens; 0 keeps all")
    min_p: float | None = option(number, "drop tokens below this share of the likeliest, 0 to 1")
    repeat_penalty: float | None = option(number, "makes the last 64 tokens less likely; 1 is off")
    presence_penalty: float | None = option(number, "taken once from tokens that were made before")
    frequency_penalty: float | None = option(number, "taken for each time that a token was made before")
    logit_bias: Any = option(bias_kind, "token ids (or texts, for all of their tokens) and what is added to logits")
    seed: int | None = option(seed_kind, "the same seed gives the same text; -1 is a new one. Choice i has seed + i")
    stop: tuple[str, ...] | None = option(stop_kind, "texts that end the answer, and are no part of it")
    ignore_eos: bool = option(flag, "never end before the last token", False)
    json_schema: Any = option(schema_kind, "the answer is JSON that this schema allows")
    regex: str | None = option(text, "the answer is what this regular expression matches")
    grammar: str | None = option(text, "the answer is what this grammar allows")
    cache_prompt: bool = option(flag, "false: use nothing that is known of earlier prompts", True)
    id_slot: int | None = option(whole(-1, 1 << 20), "accepted: which slot computes an answer does not change it")
    timings_per_token: bool = option(flag, "timings in each event of a stream", False)
    return_progress: bool = option(flag, "events of a stream that tell how much of the prompt has been read", False)
    backend_sampling: bool | None = option(flag, "accepted: where tokens are chosen does not change the choice")
    # Steps that llama.cpp's sampler has besides: clients send them switched off.
    repeat_last_n: int | None = option(only(64), "tokens that the penalty looks back")
    typical_p: float | None = option(only(1.0, 1), "off")
    dynatemp_range: float | None = option(only(0.0, 0), "off")
    xtc_probability: float | None = option(only(0.0, 0), "off")
    dry_multiplier: float | None = option(only(0.0, 0), "off")
    mirostat: int | None = option(only(0), "off")
    adaptive_target: float | None = option(only(-1.0, -1), "off")

    def settings(
        self, defaults: dict[str, Any], max_tokens: int | None, model: Model, stops: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return keyword arguments for `Engine.submit`.

        Parameters
        ----------
        defaults : dict
            What the server was started with.
        max_tokens : int, optional
            None is as many as there is room for.
        model : Model
        stops : tuple of str
            Of the chat template.

        Raises
        ------
        Problem
            If something is out of range.
        """
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
        chosen = {**defaults, **{name: value for name in names if (value := getattr(self, name)) is not None}}
        if max_tokens is not None or "max_tokens" not in chosen:
            chosen["max_tokens"] = 2**31 - 1 if max_tokens is None else max_tokens
        if self.seed is not None:
            chosen["seed"] = None if self.seed == -1 else self.seed % 2**64
        chosen["stop"] = (*(chosen.get("stop", ()) if self.stop is None else self.stop), *stops)
        if self.logit_bias:
            chosen["logit_bias"] = self._biases(model._tokenizer)
        if self.ignore_eos:
            chosen["logit_bias"] = {**(chosen.get("logit_bias") or {}), **dict.fromkeys(model._ends, FORBIDDEN)}
        try:
            SamplingParams(**chosen)
        except ValueError as error:
            name = str(error).partition(" ")[0]
            raise Problem(400, str(error), param=name, code="invalid_value") from None
        for name in ("json_schema", "regex", "grammar"):
            if getattr(self, name) is not None:
                chosen[name] = getattr(self, name)
        one_constraint(chosen)
        if not self.cache_prompt:
            chosen["cache_salt"] = os.urandom(12).hex()
        if self.return_progress and not getattr(self, "stream", False):
            raise Problem(400, "return_progress needs stream: true", param="return_progress")
        chosen["progress"] = self.return_progress
        return chosen

    def _biases(self, tokenizer: Tokenizer | None) -> dict[int, float]:
        biases: dict[int, float] = {}
        for token, bias in self.logit_bias:
            if isinstance(token, int):
                biases[token] = bias
            elif tokenizer is None:
                raise Problem(400, "logit_bias: the model has no tokenizer; give token ids", param="logit_bias")
            else:
                biases.update(dict.fromkeys(tokenizer.encode(token, add_bos=False), bias))
        return biases


def one_constraint(chosen: dict[str, Any]) -> None:
    """Refuse a request with several constraints."""
    given = [name for name in ("json_schema", "regex", "grammar") if chosen.get(name) is not None]
    if len(given) > 1:
        raise Problem(400, f"{given[0]} and {given[1]} cannot go together", param=given[1])
