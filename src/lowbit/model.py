"""A loaded model, as Python programs use it: generate, stream, score. `lowbit.load` makes it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ._kernels import dispatch
from ._kernels.decoder import Decoder
from ._kernels.kvpool import SPAN
from ._kernels.sampler import Sampler
from .engine import Engine, Generation, Stream, Timings, TokenLogprob
from .engine.constraints import Compiler, Constraint
from .engine.pooling import Every, Mean, One
from .engine.sequence import Request, make_sampler
from .engine.text import LogprobRecorder
from .errors import ContextLengthError, UnsupportedModelError
from .loading.memory import MemoryPlan
from .plan import ModelPlan
from .sampling import Grammar, SamplingParams
from .tokenizers import Tokenizer

__all__ = ["Generation", "Model", "Perplexity", "Timings", "TokenLogprob"]

MOST_TEXTS = 1 << 19
"""Texts that one call may have."""


@dataclass(frozen=True)
class Perplexity:
    """How well the model predicts a text."""

    nats_per_token: float
    bits_per_byte: float
    """Per byte of the UTF-8 text."""
    perplexity: float
    tokens: int
    """Predicted tokens: all but the first."""


class Model:
    """A loaded model. Calls from several threads share their passes through the weights.

    Attributes
    ----------
    config : ModelPlan
    tokenizer : Tokenizer
    context : int
        Longest sequence, in tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: ModelPlan,
        tokenizer: Tokenizer | None,
        description: dict[str, Any],
        load_seconds: float,
        plan: MemoryPlan | None = None,
        draft: Decoder | None = None,
    ) -> None:
        self._decoder, self._draft = decoder, draft
        self._tokenizer = tokenizer
        self._description = description
        self._load_seconds = load_seconds
        self._plan = plan
        # Story models begin the next text with BOS, so that ends a text too.
        self._ends: frozenset[int] = frozenset()
        if tokenizer is not None:
            self._ends = tokenizer.eos_ids if tokenizer.bos_id is None else tokenizer.eos_ids | {tokenizer.bos_id}
        self.config = config
        self.context: int = decoder.graph.context
        self._compiler = Compiler(tokenizer, self._ends, config.vocab_size)
        # Whoever calls drives it; nothing runs between calls.
        self._engine = Engine(self, max_sequences=decoder.batch, max_queue=MOST_TEXTS, thread=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UnsupportedModelError if the file has none."""
        if self._tokenizer is None:
            raise UnsupportedModelError(f"{self._description['path']} has no tokenizer; give token ids instead of text")
        return self._tokenizer

    @overload
    def generate(
        self, prompt: str, *, speculate: bool | None = ..., logprobs: int | None = ..., **sampling: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[int], *, speculate: bool | None = ..., logprobs: int | None = ..., **sampling: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[str], *, speculate: bool | None = ..., logprobs: int | None = ..., **sampling: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Sequence[int]],
        *,
        speculate: bool | None = ...,
        logprobs: int | None = ...,
        **sampling: Any,
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Any, *, speculate: bool | None = None, logprobs: int | None = None, json_schema: Any = None,
        regex: str | None = None, grammar: str | Grammar | None = None, fresh: bool = False, **sampling: Any,
    ) -> Generation | list[Generation]:  # fmt: skip
        """Continue a text, or several texts at once.

        Parameters
        ----------
        prompt : str, sequence of int, or a list of these
            Text, or token ids that are taken as they are. The texts of a list go through each weight together, and
            each comes out as it would alone.
        speculate : bool, optional
            Propose tokens, and check several in one pass: the text is the same, and comes sooner where they are right.
            Proposed is what followed the same words earlier, in the text or in texts that were made with this before,
            and what the model `draft` of `load` would say. None does so if there is such a model.
        logprobs : int, optional
            Also report, for each generated token, its log-probability and this many of the likeliest tokens in its
            place, 0 to 100. These are natural logarithms of what the model itself predicts, before temperature, cuts
            and penalties. The text is the same, but is made one token and one prompt at a time: `speculate` and the
            sharing of a list do not speed it up.
        json_schema : dict or str, optional
            Schema that the text must fulfil as JSON. One of these three at most; they need the extra ``serve``. A text
            that `max_tokens` cuts off (`finish_reason` is ``length``) is the beginning of such a text.
        regex : str, optional
            Expression that the whole text must match, in the syntax of Rust's regex, without look-around.
        grammar : str or Grammar, optional
            In GBNF, or in Lark as llguidance has it.
        fresh : bool
            The text is one of its own, such as an answer. A text that goes on with the prompt's keeps a space at its
            beginning, so that both together are what the tokens say.
        **sampling
            Fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed, stop.

        Returns
        -------
        Generation, or list of Generation for a list

        Raises
        ------
        ContextLengthError
            If a prompt does not fit into the context.
        ValueError
            If a setting is out of range, or an entry of a list is empty.
        ConstraintError
            If the schema, the expression or the grammar cannot be used; it is a ValueError.
        """
        params = SamplingParams(**sampling)
        several = isinstance(prompt, (list, tuple)) and (not prompt or not isinstance(prompt[0], (int, np.integer)))
        record = None if logprobs is None else LogprobRecorder(self._tokenizer, logprobs)
        if several and not all(len(entry) for entry in prompt):
            raise ValueError("an entry of the batch is empty")
        entries = [self._prompt_ids(entry) for entry in (prompt if several else [prompt])]
        results = self._run([
            self._request(
                ids, params, speculate, record, constraint=self._compiler.constraint(json_schema, regex, grammar),
                fresh=fresh,
            )
            for ids in entries
        ])  # fmt: skip
        return results if several else results[0]

    def stream(
        self, prompt: str | Sequence[int], *, speculate: bool | None = None, json_schema: Any = None,
        regex: str | None = None, grammar: str | Grammar | None = None, fresh: bool = False, **sampling: Any,
    ) -> Generator[str, None, Generation]:  # fmt: skip
        """Continue a text, piece by piece.

        Takes what `generate` takes for one text, and gives the same text. Pieces are valid UTF-8; the generator's
        return value is the `Generation`. Settings are checked here, before the first piece is asked for.
        """
        constraint = self._compiler.constraint(json_schema, regex, grammar)
        ids, params = self._prompt_ids(prompt), SamplingParams(**sampling)
        return self._stream(self._request(ids, params, speculate, constraint=constraint, fresh=fresh))

    def chat(self, messages: list[dict[str, Any]], *, template: str | None = None, **options: Any) -> Generation:
        """Answer the last message of a conversation.

        Parameters
        ----------
        messages : list of dict
            Each with ``role`` (``system``, ``user``, ``assistant`` or ``tool``) and ``content``; of an assistant also
            ``tool_calls``, of a tool ``tool_call_id``. Names of special tokens in them stay ordinary text.
        template : str, optional
            Name of a built-in chat template; None takes the one that the model's file names.
        **options
            ``tools``, ``tool_choice`` and ``parallel``, as `lowbit.chat.ToolCalls` takes them; what `generate` takes.

        Returns
        -------
        Generation

        Raises
        ------
        ValueError
            If the conversation or a setting is not valid.
        ContextLengthError
            If the conversation does not fit into the context.
        """
        from .chat.session import answer

        return answer(self, messages, template, **options)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Return the logits after each token of a sequence.

        Parameters
        ----------
        token_ids : sequence of int, n of them

        Returns
        -------
        ndarray of float32, shape (n, vocab_size)

        Raises
        ------
        ContextLengthError
            If the sequence does not fit into the context.
        ValueError
            If there is no token, or one is not in the vocabulary.
        """
        ids = self._ids(token_ids)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        done = 0

        def each(rows: np.ndarray) -> None:
            nonlocal done
            out[done : done + len(rows)] = rows
            done += len(rows)

        self._score(ids, each)
        return out

    @overload
    def embed(self, texts: str, pooling: str | None = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[int], pooling: str | None = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[str], pooling: str | None = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[Sequence[int]], pooling: str | None = ...) -> np.ndarray: ...
    def embed(self, texts: Any, pooling: str | None = None) -> np.ndarray:
        """Turn texts into vectors: what the output head reads, after the last RMSNorm.

        Parameters
        ----------
        texts : str, sequence of int, or a list of these
            Texts are encoded as for `generate`, with BOS where the model wants it; token ids are taken as they are.
        pooling : str, optional
            ``last`` takes the vector of the last token, which has seen the whole text; ``mean`` the mean over all
            tokens, BOS among them; ``first`` the vector of the first token. None does as the model says, and makes the
            vectors' length 1; ``last`` if it was not made for this.

        Returns
        -------
        ndarray of float32, shape (n_texts, hidden_size)
            One text is a list of one.

        Raises
        ------
        ContextLengthError
            If a text does not fit into the context.
        ValueError
            If there is no text, one has no token, or `pooling` is neither of the above.
        """
        normalised = pooling is None and self.config.pooling is not None
        pooling = pooling or self.config.pooling or "last"
        one = isinstance(texts, str) or (len(texts) and isinstance(texts[0], (int, np.integer)))
        entries = [self._prompt_ids(text) for text in ([texts] if one else texts)]
        if not entries:
            raise ValueError("there is no text to embed")
        vectors = np.empty((len(entries), self.config.hidden_size), np.float32)
        self._run([self._embedding(ids, vector, pooling) for vector, ids in zip(vectors, entries)])
        if normalised:
            lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(1, keepdims=True))
            vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return vectors

    def perplexity(self, text: str, stride: int | None = None) -> Perplexity:
        """Score a text: BOS first, then every token is predicted from those before it.

        Parameters
        ----------
        text : str
        stride : int, optional
            A text longer than the context is read in windows of the context's length, each of which begins this many
            tokens after the one before, so that every token but the first ones is predicted from at least ``context -
            stride`` others. None is half of the context.

        Returns
        -------
        Perplexity

        Raises
        ------
        ValueError
            If the text is empty, or the stride is not from 1 to the context.
        """
        stride = max(1, self.context // 2) if stride is None else stride
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= self.context:
            raise ValueError(f"stride must be a whole number from 1 to {self.context}, not {stride!r}")
        ids = np.ascontiguousarray(self.tokenizer.encode(text, add_bos=True), np.int32)
        n = len(ids) - 1
        if n < 1:
            raise ValueError("there is nothing to predict in an empty text")
        found: list[float] = []  # added up exactly at the end, so that windows and batches leave no trace
        start = scored = at = 0

        def each(rows: np.ndarray) -> None:
            nonlocal at
            new = rows[max(scored - at, 0) :]
            target = ids[at + len(rows) - len(new) + 1 : at + len(rows) + 1]
            at += len(rows)
            if len(new):
                logits = new.astype(np.float64)
                top = logits.max(1)
                total = top + np.log(np.exp(logits - top[:, None]).sum(1))
                found.extend((total - logits[np.arange(len(target)), target]).tolist())

        while scored < n:
            at = start
            self._score(ids[start : min(start + self.context, n)], each)
            scored = min(start + self.context, n)
            start += stride
        with dispatch.PlainFloats():
            nats = math.fsum(found)
            return Perplexity(
                nats_per_token=nats / n,
                bits_per_byte=nats / math.log(2) / len(text.encode()),
                perplexity=math.exp(nats / n),
                tokens=n,
            )

    def info(self) -> dict[str, Any]:
        """Return what the model is and what it takes: sizes in bytes, types, threads, instruction set.

        ``kept_as``, if it is there, tells what weights became whose type has no form of its own in memory.
        ``skipping`` names the linear layers that read only the weights of inputs that are not zero: under `sparsity`
        those where that is quicker on such a processor. ``warnings`` lists what in the file is
        guessed, contradicts itself, or is known to ruin the text elsewhere.
        """
        d, c = self._decoder, self.config
        return {
            **self._description,
            "family": c.family,
            "vocab_size": c.vocab_size,
            "context_length": c.context_length,
            "layers": c.n_layers,
            "hidden_size": c.hidden_size,
            "tied_embeddings": c.tied_embeddings,
            "weight_bytes": d.graph.weight_bytes,
            "scratch_bytes": d.scratch_bytes,
            "kv_bytes_per_token": d.pool.block_bytes // SPAN,
            "state_bytes": d.pool.state_bytes,
            "threads": d.threads,
            "skipping": d.graph.skipping,
            "isa": dispatch.active(),
            "memory": None if self._plan is None else self._plan.as_dict() | d.cache_stats(),
        }

    def __repr__(self) -> str:
        return f"<lowbit.Model {self._description['path']}>"

    # --- generation ---

    def _ids(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError("a sequence needs at least one token")
        if len(ids) > self.context:
            raise ContextLengthError(f"{len(ids)} tokens do not fit into a context of {self.context}")
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(wrong):
            raise ValueError(f"token {wrong[0]} is not in a vocabulary of {self.config.vocab_size}")
        return ids

    def _prompt_ids(self, prompt: str | Sequence[int]) -> np.ndarray:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and isinstance(prompt, str) and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        return self._ids(ids)

    def _request(
        self, ids: np.ndarray, params: SamplingParams, speculate: bool | None = None,
        record: LogprobRecorder | None = None, salt: bytes = b"", constraint: Constraint | None = None,
        fresh: bool = False,
    ) -> Request:  # fmt: skip
        speculate = self._draft is not None if speculate is None else speculate
        for token in params.logit_bias or ():
            if token >= self.config.vocab_size:
                raise ValueError(f"logit_bias names {token}, which is not in a vocabulary of {self.config.vocab_size}")
        return Request(
            ids, params, lambda: self._sampler(params, ids), self.context, self._tokenizer, self._ends,
            speculate, self._draft is not None, record, salt=salt, load_seconds=self._load_seconds,
            constraint=constraint,
            begins=fresh or self._tokenizer is None or all(i in self._tokenizer.control_ids for i in ids.tolist()),
        )  # fmt: skip

    def _scoring(self, ids: np.ndarray, each: Callable[[np.ndarray], None], want: str) -> Request:
        return Request(ids, SamplingParams(max_tokens=0), None, self.context, each=each, want=want)

    def _embedding(self, ids: np.ndarray, vector: np.ndarray, pooling: str) -> Request:
        if pooling not in ("last", "mean", "first", "none"):
            raise ValueError(f"pooling must be last, mean or first, not {pooling!r}")
        if pooling == "none":
            return self._scoring(ids, Every(vector), "states")
        pool = Mean(vector, len(ids)) if pooling == "mean" else One(vector, pooling == "first")
        return self._scoring(ids, pool, "states")

    def _score(self, ids: np.ndarray, each: Callable[[np.ndarray], None]) -> None:
        self._run([self._scoring(ids, each, "every")])

    def _run(self, requests: list[Request]) -> list[Generation]:
        """Run requests together, all to their ends."""
        streams: list[Stream] = []
        try:
            for request in requests:
                request.collecting = True
                streams.append(self._engine.start(request))
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()

    def _stream(self, request: Request) -> Generator[str, None, Generation]:
        stream = self._engine.start(request)
        try:
            yield from stream
            return stream.result()
        finally:
            stream.cancel()

    def _sampler(self, params: SamplingParams, ids: np.ndarray) -> Sampler:
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        sampler = make_sampler(params, self.config.vocab_size, seed)
        sampler.note(ids.tolist())
        return sampler
