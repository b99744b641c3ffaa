"""What a generation is: its text as it grows, its end, and the time it took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from .tokenizers import StopBuffer, Tokenizer

__all__ = ["Clock", "GeneratedText", "Generation", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    load_seconds: float
    prompt_tokens: int
    reused_tokens: int
    """Prompt tokens that were still known from the call before, and not computed again."""
    prompt_seconds: float
    decode_tokens: int
    decode_seconds: float
    """Of all sequences together, where several were generated at once."""
    first_token_seconds: float
    """From the call to the first token."""

    @property
    def prefill_tps(self) -> float:
        """Computed prompt tokens per second."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens per second."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """A generated text; `str` gives the text alone."""

    text: str
    tokens: list[int]
    """Generated token ids, without the one that ended the text."""
    prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    """``stop``: the model or a stop string ended the text; ``length``: `max_tokens` or the context did."""
    timings: Timings

    def __str__(self) -> str:
        return self.text


class GeneratedText:
    """Tokens in, pieces of text out, until an end token or a stop string.

    Parameters
    ----------
    tokenizer : Tokenizer, optional
        None if the model has none: then there are tokens, but no text.
    stops : tuple of str
    ends : frozenset of int
        Tokens that end the text.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...], ends: frozenset[int]) -> None:
        self._decoder = tokenizer.stream_decoder() if tokenizer is not None else None
        self._stops = StopBuffer(stops)
        self._ends = ends
        self._pieces: list[str] = []
        self.tokens: list[int] = []
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now."""
        if token in self._ends:
            self.stopped = True
            return self._emit(self._rest())
        self.tokens.append(token)
        if self._decoder is None:
            return ""
        piece, self.stopped = self._stops.push(self._decoder.push(token))
        return self._emit(piece)

    def finish(self) -> str:
        """Return what was held back, when no more tokens come."""
        return "" if self.stopped else self._emit(self._rest())

    def _rest(self) -> str:
        if self._decoder is None:
            return ""
        piece, stopped = self._stops.push(self._decoder.flush())
        self.stopped = self.stopped or stopped
        return piece if stopped else piece + self._stops.flush()

    def _emit(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece

    def result(self, prompt_tokens: int, timings: Timings) -> Generation:
        return Generation(
            "".join(self._pieces), self.tokens, prompt_tokens, "stop" if self.stopped else "length", timings
        )


class Clock:
    """Times of one call; waiting for the reader of a stream does not count."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.prompt_seconds = self.first_token_seconds = self.decode_seconds = 0.0

    def prompt_done(self) -> None:
        self.prompt_seconds = time.perf_counter() - self._start

    def decoding(self) -> _Stretch:
        """A context in which time counts as decoding."""
        return _Stretch(self)

    def timings(self, load_seconds: float, prompt_tokens: int, reused_tokens: int, decode_tokens: int) -> Timings:
        return Timings(
            load_seconds,
            prompt_tokens,
            reused_tokens,
            self.prompt_seconds,
            decode_tokens,
            self.decode_seconds,
            self.first_token_seconds,
        )


class _Stretch:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        now = time.perf_counter()
        self._clock.decode_seconds += now - self._start
        if not self._clock.first_token_seconds:
            self._clock.first_token_seconds = now - self._clock._start
