"""How the next token is chosen, and when to stop."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from .scalars import plain

MOST_TOKENS = 2**31 - 1
WHITESPACE = r"[ ]|\n{1,2}[ \t]{0,20}"
"""Between the tokens of JSON, at most once: without a bound some models write spaces for ever."""


@dataclass(frozen=True)
class Grammar:
    """A grammar that depends on which names are control tokens of the model."""

    write: Callable[[Mapping[str, int]], str]
    """Control tokens by their names -> the grammar, in Lark."""
    shown: tuple[str, ...] = ()
    """Names that shall be part of the text, also where they are control tokens, which have none otherwise."""


class Settings(TypedDict, total=False):
    """Fields of `SamplingParams` as keyword arguments, for type checkers; all but the seed."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    stop: str | Sequence[str]
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None


class Sampling(Settings, total=False):
    """All fields of `SamplingParams` as keyword arguments, for type checkers."""

    seed: int | None


class Asked(Settings, total=False):
    """What else `Model.generate` takes, for type checkers."""

    speculate: bool | None
    logprobs: int | None
    json_schema: Any
    regex: str | None
    grammar: str | Grammar | None
    fresh: bool
    context_shift: bool


class Answered(Asked, total=False):
    """What `Model.chat` takes, for type checkers."""

    seed: int | None
    tools: list[dict[str, Any]] | None
    tool_choice: Any
    parallel: bool


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings, validated when made.

    Raises
    ------
    ValueError
        If a value is out of range; the message names the field.
    """

    max_tokens: int = 64
    """Most tokens to generate, at least 0; None becomes 2**31 - 1, more than any context holds."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token (the first of equals)."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the smallest set of tokens whose probabilities sum to this, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one, in [0, 1]."""
    repeat_penalty: float = 1.0
    """Divides positive and multiplies negative logits of the last 64 tokens; 1 is off."""
    seed: int | None = None
    """Seed of the random numbers, 0 to 2**64 - 1; None takes one from the system."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""
    presence_penalty: float = 0.0
    """Taken from the logits of all tokens that were generated before, -100 to 100; 0 is off."""
    frequency_penalty: float = 0.0
    """The same, once for each time that the token was generated."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens, -1000 to 1000 each; -1000 forbids a token in practice."""

    def __post_init__(self) -> None:
        texts = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(texts, (list, tuple)) or any(not isinstance(s, str) or not s for s in texts):
            raise ValueError(f"stop must hold non-empty strings, not {self.stop!r}")
        object.__setattr__(self, "stop", tuple(texts))
        for field in dataclasses.fields(self):
            if field.name not in ("stop", "logit_bias"):
                object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if self.max_tokens is None:
            object.__setattr__(self, "max_tokens", MOST_TOKENS)
        for name in ("max_tokens", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
                raise ValueError(f"{name} must be a whole number of at least 0, not {value!r}")
        _check(self, "temperature", lambda v: 0 <= v <= 100, "between 0 and 100")
        _check(self, "top_p", lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check(self, "min_p", lambda v: 0 <= v <= 1, "between 0 and 1")
        _check(self, "repeat_penalty", lambda v: 0 < v <= 100, "above 0 and at most 100")
        if self.seed is not None and (
            not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**64
        ):
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {self.seed!r}")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(self, name, lambda v: -100 <= v <= 100, "between -100 and 100")
        biases = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(biases, Mapping):
            raise ValueError(f"logit_bias maps token ids to numbers from -1000 to 1000, and is not {biases!r}")
        biases = {plain(token): plain(bias) for token, bias in biases.items()}
        object.__setattr__(self, "logit_bias", biases or None)
        for token, bias in biases.items():
            known = isinstance(token, int) and isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not known or not 0 <= token < 2**31 or not -1000 <= bias <= 1000:
                raise ValueError(f"logit_bias maps token ids to numbers from -1000 to 1000, not {token!r} to {bias!r}")


def _check(params: SamplingParams, name: str, holds: Callable[[float], bool], wording: str) -> None:
    value = getattr(params, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {wording}, not {value!r}")


KNOWN_ELSEWHERE = {
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "n_predict": "max_tokens", "num_predict": "max_tokens",
    "max_completion_tokens": "max_tokens", "repetition_penalty": "repeat_penalty", "temp": "temperature",
    "stop_sequences": "stop", "stop_strings": "stop", "random_seed": "seed", "num_return_sequences": "n",
    "response_format": "json_schema",
}  # fmt: skip
"""What other libraries call our arguments."""
BESIDE = ("n", "seed", "speculate", "logprobs", "json_schema", "regex", "grammar", "fresh", "context_shift")
"""Arguments of those that take settings, which may have been meant."""


def params_of(settings: Mapping[str, Any], **more: Any) -> SamplingParams:
    """Return the settings that a caller gave by name.

    Raises
    ------
    TypeError
        If there is no setting of a name; the message says which may have been meant.
    ValueError
        If one is out of range.
    """
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in settings:
        if name not in names:
            import difflib  # here, because no command needs it

            near = difflib.get_close_matches(name, (*names, *BESIDE), 1)
            meant = KNOWN_ELSEWHERE.get(name) or (near[0] if near else None)
            hint = f"; did you mean {meant!r}?" if meant else f": there are {', '.join(names)}"
            raise TypeError(f"there is no argument {name!r}{hint}")
    return SamplingParams(**{**settings, **more})


def new_seed() -> int:
    """Return a seed that nobody can guess, of 48 bits, which JSON can tell exactly."""
    return int.from_bytes(os.urandom(6), "little")


def seeds_of(seed: int | Sequence[int] | None, n: int) -> list[int | None]:
    """Return the seeds of `n` texts: those given, or from one on, each one more than the one before.

    Raises
    ------
    ValueError
        If there are not as many seeds as texts.
    """
    if seed is None:
        return [None] * n
    try:
        first = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        seeds = None if isinstance(seed, (str, bytes, Mapping)) else seed
    else:
        params_of({"seed": first})  # which checks its range
        return [(first + i) % 2**64 for i in range(n)]
    try:
        found: list[int | None] = [operator.index(one) for one in seeds]  # type: ignore[union-attr]
    except TypeError:
        raise TypeError(f"seed must be a whole number, a list of them, or None, not {seed!r}") from None
    if len(found) != n:
        raise ValueError(f"seed has {len(found)} entries for {n} texts")
    return found
