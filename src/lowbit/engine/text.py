"""What a generation is: its text as it grows, its end, and the time it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .._kernels.sampler import Sampler
from ..scalars import plain
from ..tokenizers import StopBuffer, Tokenizer

MAX_LOGPROBS = 100
"""Most tokens whose log-probabilities are reported in the place of one."""


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


class TokenLogprob(NamedTuple):
    """How likely a token was, to the model."""

    token: int
    piece: str
    """Its text; the name of a control token; U+FFFD for what is part of a character. Empty without a tokenizer."""
    logprob: float
    """Natural logarithm of its probability, before temperature, cuts and penalties."""
    top: tuple[tuple[int, str, float], ...]
    """The likeliest tokens in its place, the first first: token, piece and logprob of each."""
    prob: float = 0.0
    """With `LogprobRecorder.chances`: its probability after all that, as it was drawn."""
    top_probs: tuple[tuple[int, str, float], ...] = ()
    """The same of the likeliest that could be drawn."""


@dataclass(frozen=True)
class Generation:
    """A generated text; `str` gives the text alone."""

    text: str
    tokens: list[int]
    """Generated token ids, without the one that ended the text."""
    prompt_tokens: int
    finish_reason: Literal["stop", "length", "context"]
    """``stop``: the model or a stop string ended the text; ``length``: `max_tokens` did; ``context``: it is full."""
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    """One per entry of `tokens`, if they were asked for."""
    reasoning: str = ""
    """What the model thought before, where tools were given: `text` is then the answer alone."""
    tool_calls: list[dict[str, Any]] | None = None
    """Calls of tools, where tools were given: ``id``, ``type``, and ``function`` with ``name`` and ``arguments``."""
    stopped_by: str = ""
    """The stop string that ended the text, if one did."""
    seed: int | None = None
    """The same call with this seed gives the same text."""
    left_out: int = 0
    """With `context_shift`: the oldest tokens, which the last ones were made without."""

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
    shown : mapping of int to bytes, optional
        Given if the text must be something: then none of it may be left out, neither a space at its beginning, nor
        these control tokens.
    begins : bool
        Whether the text is one of its own, and does not go on with another.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stops: tuple[str, ...], ends: frozenset[int],
        shown: Mapping[int, bytes] | None = None, begins: bool = True,
    ) -> None:  # fmt: skip
        self._decoder = tokenizer.stream_decoder(shown, begins) if tokenizer is not None else None
        # Models often have more tokens than their tokenizer, to make a round number; those have no text.
        self._known = tokenizer.vocab_size if tokenizer is not None else 0
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
        if self._decoder is None or token >= self._known:
            return ""
        piece, self.stopped = self._stops.push(self._decoder.push(token))
        return self._emit(piece)

    def finish(self, whole: bool = False) -> str:
        """Return what was held back, when no more tokens come; `whole`: for the text is what it had to be."""
        if self.stopped:
            return ""
        piece = self._emit(self._rest())
        self.stopped = self.stopped or whole
        return piece

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
            "".join(self._pieces), self.tokens, prompt_tokens, "stop" if self.stopped else "length", timings,
            stopped_by=self._stops.met,
        )  # fmt: skip


class LogprobRecorder:
    """Reads the log-probability of a token, and of the likeliest ones, from the logits that it was chosen from.

    Parameters
    ----------
    tokenizer : Tokenizer, optional
    top : int
        How many of the likeliest tokens to report, 0 to `MAX_LOGPROBS`.
    chances : bool
        Report what the sampler drew from, too.

    Raises
    ------
    ValueError
        If `top` is out of range.
    """

    def __init__(self, tokenizer: Tokenizer | None, top: int, chances: bool = False) -> None:
        top = plain(top)
        if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be a whole number from 0 to {MAX_LOGPROBS}, not {top!r}")
        self._tokenizer, self._top, self._chances = tokenizer, top, chances

    def __call__(self, token: int, logits: np.ndarray, sampler: Sampler | None = None) -> TokenLogprob:
        scores = logits.astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        best: list[int] = []
        if self._top:
            n = min(self._top, len(scores))
            least = np.partition(scores, -n)[-n]
            candidates = np.flatnonzero(scores >= least)  # in order of their ids, so the lower of equals comes first
            best = candidates[np.argsort(-scores[candidates], kind="stable")][:n].tolist()
        top = tuple((i, self._piece(i), float(scores[i])) for i in best)
        found = TokenLogprob(token, self._piece(token), float(scores[token]), top)
        if not self._chances or sampler is None:
            return found
        tokens, probabilities = sampler.drawn_from()
        chances = tuple((i, self._piece(i), p) for i, p in zip(tokens, probabilities) if p > 0)
        own = next((p for i, _, p in chances if i == token), 0.0)
        return found._replace(prob=own, top_probs=chances[: self._top])

    def _piece(self, token: int) -> str:
        if self._tokenizer is None or token >= self._tokenizer.vocab_size:
            return ""
        if token in self._tokenizer.control_ids:
            return self._tokenizer.piece(token)
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")
