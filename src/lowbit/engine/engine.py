"""The engine: requests come in, a batch is stepped, and pieces of text go out."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Sequence_
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .._kernels.dispatch import PlainFloats
from .._kernels.kvpool import SPAN
from .._kernels.lookup import Lookup
from .._kernels.sequence import Sequence
from ..errors import LowbitError, MemoryBudgetError, QueueFullError
from ..loading.memory import parse_size
from ..sampling import Grammar, Sampling, params_of
from ..scalars import plain
from .drafting import Drafter
from .driving import Driven
from .host import Host
from .scheduler import Pace, plan_step
from .sequence import Request, State
from .stream import Stream
from .text import LogprobRecorder

if TYPE_CHECKING:
    from typing_extensions import Unpack

BURST_STEPS = 64
"""Tokens that each sequence may make before anybody looks at its text."""
MOST_TOKENS = 2**31 - 1
BURST_NS = 8_000_000
"""Time that such a burst may take; a person sees no difference, and a tiny model is not slowed down by Python."""


class Engine(Driven):
    """Runs many requests on one model at once.

    Requests share every read of the weights, and what is known of their prompts. What one of them gets does not depend
    on the others, nor on when they came.

    Parameters
    ----------
    model : Model
    max_sequences : int
        Most requests that are computed at a time; the others wait.
    kv_ram : str or int, optional
        Most memory for keys and values, running and remembered. None is what `max_ram` left for them, or else no limit
        for what runs, and one context for what is remembered.
    step_ms : float
        What the prompts of newcomers may cost those that are being answered, in milliseconds per token.
    max_queue : int
        Most requests that wait.
    max_queue_tokens : int, optional
        Most tokens of the prompts that wait.
    batch : int, optional
        Most tokens that a step reads, and the most that there can be; None is as many as the model was loaded for.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self, model: Host, max_sequences: int = 16, kv_ram: str | int | None = None, step_ms: float = 50,
        max_queue: int = 256, max_queue_tokens: int | None = None, batch: int | None = None, *, thread: bool = True,
    ) -> None:  # fmt: skip
        max_sequences, max_queue, batch = plain(max_sequences), plain(max_queue), plain(batch)
        counts = {"max_sequences": max_sequences, "max_queue": max_queue, "batch": 1 if batch is None else batch}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 20:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 < step_ms <= 60_000:
            raise ValueError(f"step_ms must be above 0 and at most 60000, not {step_ms!r}")
        self.model = model if thread else weakref.proxy(model)  # which then holds this engine
        self.max_sequences, self.max_queue, self.max_queue_tokens = max_sequences, max_queue, max_queue_tokens
        self._pool = model._decoder.pool
        if kv_ram is not None:
            with model._decoder.lock:
                try:
                    self._pool.fit(parse_size(kv_ram, "kv_ram"))
                except MemoryBudgetError as error:
                    raise MemoryBudgetError(f"kv_ram: {error}, not {kv_ram}", error.smallest) from None
        self._drafter = None if model._draft is None else Drafter(model._draft)
        self._rows = model._decoder.batch if batch is None else min(batch, model._decoder.batch)
        self._pace = Pace(step_ms, self._rows)
        self._steps = self._entered = self._made = self._prompt_tokens = self._known_tokens = 0
        self._ended = dict.fromkeys((State.FINISHED, State.CANCELLED, State.FAILED), 0)
        self._busy_seconds = 0.0
        self._running: list[Request] = []
        self._torn = False  # whether the lists may be, as where a signal arrives between two changes of them
        super().__init__(model._decoder, thread)

    def _fresh(self) -> None:
        super()._fresh()
        self._waiting: deque[Request] = deque()

    def submit(
        self,
        prompt: str | Sequence_[int],
        *,
        json_schema: Any = None,
        regex: str | None = None,
        grammar: str | Grammar | None = None,
        speculate: bool | None = None,
        logprobs: int | None = None,
        chances: bool = False,
        cache_salt: str = "",
        fresh: bool = False,
        progress: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Ask for the continuation of a text.

        Parameters
        ----------
        prompt : str or sequence of int
        json_schema : dict or str, optional
            Schema that the text must fulfil as JSON. One of these three at most; they need the extra ``serve``. What
            is wrong with one is found while the request waits, and raised to who reads the stream.
        regex : str, optional
            Expression that the whole text must match, in the syntax of Rust's regex, without look-around.
        grammar : str or Grammar, optional
            In GBNF, or in Lark as llguidance has it.
        speculate : bool, optional
            Propose tokens, and check several in one pass, as in `Model.generate`: the same text, sooner.
        logprobs : int, optional
            Also report log-probabilities, as in `Model.generate`.
        chances : bool
            With them, the probabilities that each token was drawn by.
        cache_salt : str
            Only requests with the same salt share what is known of their prompts.
        fresh : bool
            The text is one of its own, as in `Model.generate`.
        progress : bool
            Note how much of the prompt is read after each step, for `Stream.progress`.
        **sampling
            Fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty,
            frequency_penalty, logit_bias, seed, stop.

        Returns
        -------
        Stream

        Raises
        ------
        ContextLengthError
            If the prompt does not fit into the context.
        MemoryBudgetError
            If keys and values of such a text never fit into the memory for them.
        QueueFullError
            If too many requests wait.
        ValueError
            If a setting is out of range.
        ConstraintError
            If a schema or a grammar is too large, or is none at all.
        LowbitError
            If the engine is closed, or the extra is not installed.
        """
        params = params_of(sampling)
        record = None if logprobs is None else LogprobRecorder(self.model._tokenizer, logprobs, chances)
        constraint = self.model._compiler.constraint(json_schema, regex, grammar)
        ids = self.model._prompt_ids(prompt)
        request = self.model._request(ids, params, speculate, record, cache_salt.encode(), constraint, fresh)
        request.progress = [] if progress else None
        return self.start(request)

    def start(self, request: Request) -> Stream:
        """Queue a request."""
        self.check_process()
        most, need, size = self._pool.limit, self._pool.need(request.capacity), self._pool.block_bytes
        if most is not None and need > most:
            raise MemoryBudgetError(f"keys and values of such a text need {need * size} bytes; there are {most * size}")
        with self.changed:
            if self._closed is not None:
                raise LowbitError(" ".join(["the engine is closed", str(self._closed)]).strip())
            waiting = tuple(self._waiting)  # which the engine's thread may change at any time
            if len(waiting) >= self.max_queue:
                raise QueueFullError(f"{self.max_queue} requests are waiting")
            most = self.max_queue_tokens
            if most is not None and waiting and sum(len(r.ids) for r in waiting) + len(request.ids) > most:
                raise QueueFullError(f"the prompts that wait have {most} tokens together")
            request.turn = None if self._threaded else self._turn
            self._waiting.append(request)
            self._start_thread()
            if request.constraint is None:
                self._decoder.interrupt()
                self.changed.notify_all()
        if request.constraint is not None:
            request.constraint.compile(self._compiled)
        return Stream(self, request)

    def stats(self) -> dict[str, Any]:
        """Return what the engine is doing, and what it did so far.

        Returns
        -------
        dict
            ``running`` and ``waiting`` requests; ``finished``, ``cancelled`` and ``failed`` ones; ``steps``, and
            ``entered``, the requests that took part in each, together; ``tokens``, ``tokens_per_second`` of the time
            that steps took; ``prompt_tokens``, and ``known_tokens`` of them that were not computed;
            ``proposed_tokens``, and ``accepted_tokens`` of them, of all engines of the model; ``kv``: blocks of keys
            and values, as `KVPool.stats` counts them, and in its ``disk`` those of the folder `kv_disk` of `load`, as
            `KVDisk.stats` does.
        """
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            **{state.value: n for state, n in self._ended.items()},
            "steps": self._steps,
            "entered": self._entered,
            "tokens": self._made,
            "tokens_per_second": self._made / self._busy_seconds if self._busy_seconds else 0.0,
            "prompt_tokens": self._prompt_tokens,
            "known_tokens": self._known_tokens,
            "proposed_tokens": self._decoder.proposed,
            "accepted_tokens": self._decoder.accepted,
            "kv": self._pool.stats(),
        }

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an engine cannot be pickled or copied; load the model and make one in each process")

    def _has_work(self) -> bool:
        return self._sweep or any(r.cancelled or not r.put_off for r in (*self._running, *self._waiting))

    def _compiled(self) -> None:
        """A request that waits has its grammar, or never will have."""
        self._sweep = True
        self._decoder.interrupt()
        self.tell()

    def _settle(self) -> None:
        """Let go of what is over. Whatever was interrupted, after this the lists and the blocks agree."""
        if self._torn:
            self._mend()
        self._torn = True
        if (closed := self._closed) is not None:
            for request in (*self._running, *self._waiting):
                request.end(State.FAILED if str(closed) else State.CANCELLED, closed if str(closed) else None)
            for request in self._waiting:
                self._forget(request)
            self._waiting.clear()
        if self._sweep:  # some that wait were cancelled, perhaps, or have their grammars
            self._sweep, waiting = False, tuple(self._waiting)
            for request in waiting:
                request.look()
                if request.cancelled or request.over:
                    self._waiting.remove(request)
                    self._forget(request, State.CANCELLED)
        running = []
        for request in self._running:
            if request.cancelled:
                request.end(State.CANCELLED)
            if request.over:
                self._forget(request)
            elif request.state is State.QUEUED:  # set aside for another engine
                self._waiting.append(request)
            else:
                running.append(request)
        self._running = running
        for sequence in self._pool.sequences:
            owner = sequence.owner
            if not isinstance(owner, Request) or (owner.sequence is sequence and not owner.left(self._process)):
                continue
            sequence.close()
        if self._drafter is not None:
            self._drafter.settle()
        self._torn = False

    def _mend(self) -> None:
        """Put each request into the one list where it belongs: it may be in both, but never in none."""
        with self.changed:
            requests = dict.fromkeys((*self._running, *self._waiting))
            self._running = [r for r in requests if r.state not in (State.QUEUED, State.COMPILING)]
            self._waiting = deque(r for r in requests if r.state in (State.QUEUED, State.COMPILING))
        self._sweep = True

    def _forget(self, request: Request, state: State = State.CANCELLED, error: BaseException | None = None) -> None:
        request.end(state, error)
        self._ended[request.state] += 1
        if request.sequence is not None and request.sequence.lookup is not None:
            earlier = self._decoder.texts.of(request.salt)
            if earlier is not None:
                earlier.remember(request.sequence.tokens())
        request.forget()

    def _admit(self) -> None:
        """Take in those that wait, the first first, as far as there is room for all that they may become."""
        self._torn, passed = True, 0
        while passed < len(self._waiting):
            request, full = self._waiting[passed], len(self._running) >= self.max_sequences
            if request.cancelled:
                self._forget(request, State.CANCELLED)
            elif request.put_off:  # nobody reads it, or its grammar is being compiled
                passed += 1
                continue
            elif full and not any(r.held_back for r in self._running):
                break
            elif self._is_coming(request):  # another one computes the same beginning just now
                passed += 1
                continue
            else:
                try:
                    if (full and not self._set_aside(self._running)) or not self._begin(request):
                        break
                except Exception as error:  # a fault of one request ends that one
                    self._forget(request, State.FAILED, error)
            del self._waiting[passed]
        self._torn = False

    def _is_coming(self, request: Request) -> bool:
        """Whether a prompt that is being read begins with blocks that this one could then know."""
        known, border = None, self._pool.border
        for other in self._running:
            if other.state is not State.PREFILL or other.salt != request.salt or request.each is not None:
                continue
            n = min(len(request.tokens) - 1, len(other.tokens)) // border * border
            different = np.flatnonzero(request.tokens[:n] != other.tokens[:n])
            common = (int(different[0]) if len(different) else n) // border * border
            if common:
                if known is None:
                    known = SPAN * len(self._pool.match(request.tokens[:-1].tobytes(), request.salt)[0])
                if common > known:
                    return True
        return False

    def _begin(self, request: Request) -> bool:
        """Give a request a sequence; False if there is no room for it now."""
        graph, scored = self._decoder.graph, request.each is not None
        while True:
            sequence = Sequence(
                self._pool, request.tokens, request.capacity, len(request.given), request.sampler,
                min(request.most, MOST_TOKENS), request.ends,
                request.salt, not scored, self._decoder.sparse_prefill or not graph.sparse_decode, request,
            )  # fmt: skip
            free = self._pool.free
            if free is None:
                break
            others = [s.owner for s in self._pool.sequences if isinstance(s.owner, Request) and s.owner.sequence is s]
            promised = sum(r.sequence.blocks_for(r.capacity) for r in others if r.sequence is not None)
            if sequence.blocks_for(request.capacity) <= free - promised:
                break
            sequence.close()
            if not self._set_aside(others):
                return False
        lookup = Lookup(request.capacity + 1, self._decoder.texts.of(request.salt)) if request.speculate else None
        request.begin(sequence.compute_as(lookup, scored and request.want == "every"))
        self._running.append(request)
        self._prompt_tokens += len(request.ids)
        self._known_tokens += sequence.reused
        return True

    def _set_aside(self, requests: list[Request]) -> bool:
        """Make room: the last one that need not go on now computes its text anew when it is read on."""
        for request in reversed(requests):
            if request.held_back or (request.idle and request not in self._running):
                request.set_aside()
                if request in self._running:
                    self._waiting.append(request)
                    self._running.remove(request)
                return True
        return False

    def _step(self) -> bool:
        decoder, batch = self._decoder, self._batch
        for request in self._running:
            try:
                request.guide()  # its first token, or after a signal that came between
            except Exception as error:
                request.end(State.FAILED, error)
        chosen = plan_step(self._running, self._rows, decoder.most_logits, self._pace, self._steps)
        prompt_rows = sum(rows for request, rows, _ in chosen if request.state is State.PREFILL)
        single = prompt_rows or any(r.record or r.constraint for r, _, _ in chosen)
        proposals: Mapping[Request, np.ndarray] = {}
        begun = time.perf_counter()
        if self._drafter is not None:
            proposals, more = self._drafter.propose(chosen, decoder, self._pace.rows())
            single = single or more
        steps = 1 if single else BURST_STEPS
        batch.clear()
        entered: list[Request] = []
        for request, rows, drafts in chosen:
            assert request.sequence is not None
            try:
                batch.add(request.sequence, rows, request.leaves, steps - 1, drafts, proposals.get(request))
                entered.append(request)
            except (MemoryError, ValueError) as error:
                request.end(State.FAILED, error)
        if not entered:
            return False
        self._steps += 1
        self._entered += len(entered)
        start = time.perf_counter()
        try:
            passes = decoder.step(batch, steps, BURST_NS)
        except Exception as error:  # what cannot be read concerns all of the batch
            for request in entered:
                request.end(State.FAILED, error)
            return True
        if not passes:  # the engine was closed meanwhile
            return True
        end = time.perf_counter()
        self._pace.learn(end - start, prompt_rows, passes)
        seconds = end - begun
        self._busy_seconds += seconds
        with PlainFloats():
            for i, request in enumerate(entered):
                self._take(request, batch.place(i), seconds)
        return True

    def _take(self, request: Request, place: slice, seconds: float) -> None:
        """What a step left behind of one request."""
        sequence, decoder = request.sequence, self._decoder
        assert sequence is not None
        try:
            if request.made:  # else its prompt is being read
                request.decode_seconds += seconds
            if request.each is not None:
                request.each((decoder.states if request.want == "states" else decoder.logits)[place])
            if request.shadow is not None:
                request.shadow.learn(sequence.n_tokens)
            made = request.made
            request.take(None if request.record is None or place.start == place.stop else decoder.logits[place][-1])
            self._made += request.made - made
            sequence.publish()
        except Exception as error:  # a fault of one request ends that one
            request.end(State.FAILED, error)

    def _leave_parent(self) -> None:
        self.model._compiler.renew()
        for request in (*self._running, *self._waiting):
            request.end(State.FAILED, LowbitError("the request belongs to the parent process"))
        self._fresh()
        self._settle()
