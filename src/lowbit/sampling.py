"""How the next token is chosen, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Grammar", "SamplingParams"]


@dataclass(frozen=True)
class Grammar:
    """A grammar that depends on which names are control tokens of the model."""

    write: Callable[[Mapping[str, int]], str]
    """Control tokens by their names -> the grammar, in Lark."""
    shown: tuple[str, ...] = ()
    """Names that shall be part of the text, also where they are control tokens, which have none otherwise."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings, validated when made.

    Raises
    ------
    ValueError
        If a value is out of range; the message names the field.
    """

    max_tokens: int = 64
    """Most tokens to generate, at least 0."""
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
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name in ("max_tokens", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
                raise ValueError(f"{name} must be a whole number of at least 0, not {value!r}")
        _check(self, "temperature", lambda v: 0 <= v <= 100, "between 0 and 100")
        _check(self, "top_p", lambda v: 0 < v <= 1, "above 0 and at most 1")
        _check(self, "min_p", lambda v: 0 <= v <= 1, "between 0 and 1")
        _check(self, "repeat_penalty", lambda v: 0 < v <= 100, "above 0 and at most 100")
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 2**64):
            raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {self.seed!r}")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(self, name, lambda v: -100 <= v <= 100, "between -100 and 100")
        for token, bias in (self.logit_bias or {}).items():
            known = isinstance(token, int) and isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not known or not 0 <= token < 2**31 or not -1000 <= bias <= 1000:
                raise ValueError(f"logit_bias maps token ids to numbers from -1000 to 1000, not {token!r} to {bias!r}")
        if any(not isinstance(s, str) or not s for s in stop):
            raise ValueError(f"stop must hold non-empty strings, not {self.stop!r}")


def _check(params: SamplingParams, name: str, holds: Callable[[float], bool], wording: str) -> None:
    value = getattr(params, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {wording}, not {value!r}")
