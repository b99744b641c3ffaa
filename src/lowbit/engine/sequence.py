"""One request: what was asked, how far it is, and what came of it."""

from __future__ import annotations

import enum
import os
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from dataclasses import replace

import numpy as np

from .._kernels.sampler import Sampler
from .._kernels.sequence import Sequence, Turn
from ..errors import ContextLengthError, UnsupportedModelError
from ..sampling import SamplingParams
from ..tokenizers import Tokenizer
from .constraints import Constraint
from .shadow import Shadow
from .text import GeneratedText, Generation, LogprobRecorder, Timings, TokenLogprob


class State(enum.Enum):
    """What becomes of a request."""

    QUEUED = "queued"
    COMPILING = "compiling"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


def make_sampler(params: SamplingParams, vocab_size: int, seed: int, known: Sequence_[int] = ()) -> Sampler:
    """Return what chooses tokens as these settings say, after those that are known."""
    bias = {token: value for token, value in (params.logit_bias or {}).items() if token < vocab_size}
    sampler = Sampler(
        vocab_size, params.temperature, params.top_k, params.top_p, params.min_p, params.repeat_penalty, seed,
        params.presence_penalty, params.frequency_penalty, bias,
    )  # fmt: skip
    sampler.note(list(known))
    return sampler


def check_shift(context: int, recurrent: bool, constraint: Constraint | None) -> None:
    """Refuse to go on where the context is full, if what follows would not be what it is said to be.

    Raises
    ------
    UnsupportedModelError
        If layers are recurrent.
    ValueError
        If the text must be something as a whole; a ContextLengthError if nothing would be left of so small a context.
    """
    if recurrent:
        raise UnsupportedModelError(
            "context_shift is not for recurrent layers, whose state is made of all that was read"
        )
    if constraint is not None:
        raise ValueError("context_shift goes with no schema, expression or grammar, which bind the text as a whole")
    if context < LEAST_SHIFTED:
        raise ContextLengthError(f"context_shift needs a context of at least {LEAST_SHIFTED} tokens, not {context}")


class Request:
    """A text to continue, or to score.

    Parameters
    ----------
    ids : ndarray of int32
        The prompt.
    params : SamplingParams
    make_sampler : callable or None
        Called when the request's turn comes; None if no token is to be made.
    context : int
        Longest sequence, in tokens.
    tokenizer : Tokenizer, optional
    ends : frozenset of int
        Tokens that end the text.
    speculate : bool
        Propose tokens, and check several in one pass.
    drafted : bool
        Let a small model propose some of them.
    record : LogprobRecorder, optional
        Sees the logits that each token was chosen from.
    each : callable, optional
        Takes what every token of the prompt leaves behind, as an array of some rows at a time.
    want : str
        What that is: ``every`` one's logits, or ``states``.
    constraint : Constraint, optional
        What the text must be. Such a text is made one token at a time, but for those that must follow.
    salt : bytes
        Only requests of the same salt share what is known of their prompts.
    load_seconds : float
        For the timings.
    begins : bool
        Whether its text is one of its own, and does not go on with the prompt's.
    shifts : bool
        Whether it goes on where the context ends, with the newer half of what was read in the place of the prompt.
    """

    def __init__(
        self, ids: np.ndarray, params: SamplingParams, make_sampler: Callable[[], Sampler] | None, context: int,
        tokenizer: Tokenizer | None = None, ends: frozenset[int] = frozenset(), speculate: bool = False,
        drafted: bool = False, record: LogprobRecorder | None = None,
        each: Callable[[np.ndarray], None] | None = None, want: str = "last", salt: bytes = b"",
        load_seconds: float = 0.0, constraint: Constraint | None = None, begins: bool = True, shifts: bool = False,
    ) -> None:  # fmt: skip
        self.ids, self.params = ids, params
        self.given = ids
        """What its sequence has for a prompt: the prompt, or what was kept when the context was full."""
        self._before: list[int] = []  # tokens that were made before that
        self._bos = ids[:1] if tokenizer is not None and ids[0] == tokenizer.bos_id else ids[:0]
        self._shifts = shifts
        self.samples, self._make_sampler = make_sampler is not None, make_sampler
        self._sampler: Sampler | None = None
        self.tokens = ids
        """What it begins with: the prompt, and what was made before it was set aside."""
        self.capacity = min(context, len(ids) + (params.max_tokens if self.samples else 0))
        self.speculate = speculate and record is None and constraint is None
        self.drafted = drafted and self.speculate
        self.shadow: Shadow | None = None
        self.constraint = constraint
        self.record, self.each, self.want, self.salt = record, each, want, salt
        self.ends = np.array(sorted(ends), np.int32)
        self.state = State.QUEUED if constraint is None else State.COMPILING
        self.error: BaseException | None = None
        self.sequence: Sequence | None = None
        self.cancelled = False
        self._process = os.getpid()
        self.turn: Turn | None = None
        """Whose turn it is to make its steps; None if a thread does."""
        self.reused = 0
        self.pieces: deque[tuple[str, int]] = deque()
        """Text that the reader has not taken yet, and how many tokens there are with each piece."""
        self.progress: list[tuple[int, float]] | None = None
        """Filled if it is a list: how many tokens of the prompt were read after so many seconds, for each step."""
        self.collecting = False
        """Whether its reader waits for the end, so that nothing held back for a slow reader is too much."""
        self._for_text = tokenizer, params.stop, ends, None if constraint is None else constraint.shown, begins
        self._text = GeneratedText(*self._for_text)
        self._taken = 0  # tokens that the text has seen
        self._at = self._given = self._read = 0  # characters of it: made, put into `pieces`, and taken out again
        self._logprobs: list[TokenLogprob] = []
        self._whole = True  # whether these agree: a signal can arrive between any two of them
        self._load_seconds, self._start = load_seconds, time.perf_counter()
        self._prompt_seconds = self._first_token_seconds = 0.0
        self.decode_seconds = 0.0

    @property
    def sampler(self) -> Sampler | None:
        """What chooses its tokens."""
        if self._sampler is None and self._make_sampler is not None:
            self._sampler = self._make_sampler()
        return self._sampler

    @property
    def leaves(self) -> str:
        """What its rows leave behind: what is wanted, or no more than its next token depends on."""
        others = self.record is not None or self.each is not None or self.constraint is not None
        return self.want if self.want != "last" or others else "token"

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in (State.FINISHED, State.CANCELLED, State.FAILED)

    @property
    def made(self) -> int:
        """Tokens that its text has seen."""
        return self._taken

    @property
    def most(self) -> int:
        """Tokens of its sequence at which it ends."""
        return len(self.given) + self.params.max_tokens - len(self._before)

    @property
    def held_back(self) -> bool:
        """Whether its reader has so much to read that making more can wait."""
        return not self.collecting and self._given - self._read >= MOST_UNREAD

    @property
    def put_off(self) -> bool:
        """Whether it need not go on now: it is held back, or its grammar is still being compiled."""
        return self.held_back or self.state is State.COMPILING

    @property
    def idle(self) -> bool:
        """Whether nobody makes its steps now: a text that was begun, and that its reader has left for a while."""
        return self.turn is not None and not self.turn.taken and self.each is None

    def left(self, process: int) -> bool:
        """Whether nobody will make its steps any more, or those of a parent's of this process would."""
        return self._process != process or (self.cancelled and self.idle)

    def look(self) -> None:
        """Go on if its grammar has been compiled meanwhile, and end if it cannot be."""
        if self.state is State.COMPILING and self.constraint is not None:
            if self.constraint.error is not None:
                self.end(State.FAILED, self.constraint.error)
            elif self.constraint.compiled:
                self.state = State.QUEUED

    def begin(self, sequence: Sequence) -> None:
        """Start to compute, or go on after having been set aside."""
        if not self._before and len(self.tokens) == len(self.ids):
            self.reused = sequence.reused
            if self.progress is not None:
                self._begun = time.perf_counter()
                self.progress.append((self.reused, 0.0))
        self.sequence = sequence
        self.state = State.PREFILL

    def set_aside(self) -> None:
        """Give up its memory; it is computed anew, to the same bits, when it begins again."""
        sequence = self.sequence
        assert sequence is not None
        self.tokens = sequence.tokens()
        self.state, self.sequence = State.QUEUED, None
        sequence.close()
        self.leave_shadow()

    def _shift(self) -> None:
        """Go on where the context is full: BOS and the newer half of the tokens after it are the prompt now."""
        sequence, bos = self.sequence, self._bos
        assert sequence is not None
        tokens = sequence.tokens()
        before = self._before + tokens[len(self.given) :].tolist()
        kept = np.concatenate([bos, tokens[len(bos) + (len(tokens) - len(bos) + 1) // 2 :]])
        # At once, for a signal would have to find all of it changed or nothing.
        self._before, self.given, self.tokens, self.state, self.sequence = before, kept, kept, State.QUEUED, None
        sequence.close()
        self.leave_shadow()

    def leave_shadow(self) -> None:
        """Give up what the small model has of the text."""
        shadow, self.shadow = self.shadow, None
        if shadow is not None:
            shadow.sequence.close()

    def guide(self) -> None:
        """Append the tokens that must follow, and tell the sampler what may."""
        if self.constraint is not None and self.sequence is not None:
            self.constraint.guide(self.sequence, len(self.ids), self.record is None)

    def next_piece(self) -> tuple[str, int]:
        """Hand out the next piece."""
        piece = self.pieces.popleft()
        self._read += len(piece[0])
        return piece

    def take(self, logits: np.ndarray | None) -> None:
        """Take what a step made; `logits` are those that its only token was chosen from, if they are recorded."""
        sequence = self.sequence
        assert sequence is not None
        if self.progress and self.progress[-1][0] < min(sequence.length, len(self.ids)):
            self.progress.append((min(sequence.length, len(self.ids)), time.perf_counter() - self._begun))
        if self.state is State.PREFILL and sequence.pending <= 1 and sequence.n_tokens > len(self.given):
            self.state = State.DECODE
            now = time.perf_counter() - self._start
            self._prompt_seconds = self._prompt_seconds or now
            self._first_token_seconds = self._first_token_seconds or now
        self.guide()
        if not self._whole:
            self._text, self._taken, self._at = GeneratedText(*self._for_text), 0, 0
        self._whole = False
        before = len(self._before)
        new = sequence.tokens(len(self.given) + max(self._taken - before, 0)).tolist()
        for token in self._before[self._taken :] + new:
            if self.record is not None and logits is not None:
                self._logprobs.append(self.record(token, logits, self._sampler))
            self._put(self._text.push(token))
            self._taken += 1
            if self._text.stopped:
                break
        full = sequence.ended and not self._text.stopped and self._taken < self.params.max_tokens
        if full and self._shifts:
            self._whole = True
            self._shift()
            return
        if sequence.ended and not self._text.stopped:
            self._put(self._text.finish(self.constraint is not None and self.constraint.ended))
        self._whole = True
        if self._text.stopped or (sequence.ended and not (sequence.pending and sequence.n_tokens == len(self.given))):
            self._prompt_seconds = self._prompt_seconds or time.perf_counter() - self._start
            self.state = State.FINISHED

    def _put(self, piece: str) -> None:
        """Give a piece to the reader, but for what it has of it already."""
        new = piece[max(self._given - self._at, 0) :]
        self._at += len(piece)
        if new:
            self.pieces.append((new, len(self._text.tokens)))
            self._given = self._at

    def end(self, state: State, error: BaseException | None = None) -> None:
        """End it, if it has not ended."""
        if not self.over:
            self.error, self.state = error, state

    def forget(self) -> None:
        """Let go of what only a running request needs."""
        sequence, self.sequence = self.sequence, None
        self._sampler = self._make_sampler = self.constraint = None
        if sequence is not None:
            sequence.close()
        self.leave_shadow()

    def so_far(self, start: int, end: int | None = None) -> tuple[list[int], list[TokenLogprob]]:
        """The tokens made since the first `start`, and their log-probabilities."""
        tokens = self._text.tokens[start:end]
        return tokens, self._logprobs[start : start + len(tokens)]

    def result(self) -> Generation:
        """What came of it."""
        text = self._text
        timings = Timings(
            self._load_seconds, len(self.ids), self.reused, self._prompt_seconds, len(text.tokens), self.decode_seconds,
            self._first_token_seconds,
        )  # fmt: skip
        left_out = len(self.ids) + len(self._before) - len(self.given)
        out = replace(text.result(len(self.ids), timings), seed=self.params.seed, left_out=left_out)
        if out.finish_reason == "length" and len(text.tokens) < self.params.max_tokens:
            out = replace(out, finish_reason="context")
        if self.record is not None:
            out = replace(out, logprobs=self._logprobs[: len(out.tokens)])  # without the token that ended the text
        return out


LEAST_SHIFTED = 4
"""Tokens of a context of which BOS and one more can be kept, and another be made behind them."""
MOST_UNREAD = 512
"""Characters that are made ahead of a reader."""
