"""A loaded model, as Python programs use it: generate, stream, score. `lowbit.load` makes it."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from ._kernels import dispatch
from ._kernels.sampler import Sampler
from ._kernels.transformer import KVCache, Transformer
from .config import ModelConfig
from .errors import ContextLengthError, MemoryBudgetError, UnsupportedModelError
from .generation import Clock, GeneratedText, Generation, LogprobRecorder, Timings, TokenLogprob
from .memory import MemoryPlan
from .sampling import SamplingParams
from .tokenizers import Tokenizer

__all__ = ["Generation", "Model", "Perplexity", "Timings", "TokenLogprob"]

DECODE_BURST = 32
"""Tokens made between two looks at the stop strings, when nobody is waiting for each of them."""
SPECULATION_BURST = 9
"""The same for a stream that speculates: as many tokens as one pass can bring."""
SCORE_ROWS = 64
"""Positions whose logits, or hidden states, are held at a time while scoring and embedding."""


@dataclass(frozen=True)
class Perplexity:
    """How well the model predicts a text."""

    nats_per_token: float
    bits_per_byte: float
    """Per byte of the UTF-8 text."""
    perplexity: float
    tokens: int
    """Predicted tokens: all but the first."""


@dataclass
class _Sequence:
    """A KV cache and the tokens it was filled with; the cache may lack the last of them."""

    cache: KVCache
    tokens: np.ndarray

    def shared_prefix(self, ids: np.ndarray) -> int:
        """How many of the tokens `ids` need not be computed again; the last one does, for its logits."""
        known = self.tokens[: min(len(ids) - 1, self.cache.length)]
        different = np.flatnonzero(known != ids[: len(known)])
        return int(different[0]) if len(different) else len(known)


class Model:
    """A loaded model. Calls from several threads are served one after the other.

    Attributes
    ----------
    config : ModelConfig
    tokenizer : Tokenizer
    context : int
        Longest sequence, in tokens.
    """

    def __init__(
        self,
        transformer: Transformer,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        description: dict[str, Any],
        load_seconds: float,
        plan: MemoryPlan | None = None,
    ) -> None:
        self._transformer = transformer
        self._tokenizer = tokenizer
        self._description = description
        self._load_seconds = load_seconds
        self._plan = plan
        self._caches: weakref.WeakSet[KVCache] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._kept: _Sequence | None = None  # of the last call, for a next one that begins alike
        # Story models begin the next text with BOS, so that ends a text too.
        self._ends: frozenset[int] = frozenset()
        if tokenizer is not None:
            self._ends = tokenizer.eos_ids if tokenizer.bos_id is None else tokenizer.eos_ids | {tokenizer.bos_id}
        self.config = config
        self.context: int = transformer.context

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UnsupportedModelError if the file has none."""
        if self._tokenizer is None:
            raise UnsupportedModelError(f"{self._description['path']} has no tokenizer; give token ids instead of text")
        return self._tokenizer

    @overload
    def generate(
        self, prompt: str, *, speculate: bool = ..., logprobs: int | None = ..., **sampling: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[int], *, speculate: bool = ..., logprobs: int | None = ..., **sampling: Any
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[str], *, speculate: bool = ..., logprobs: int | None = ..., **sampling: Any
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompt: Sequence[Sequence[int]], *, speculate: bool = ..., logprobs: int | None = ..., **sampling: Any
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Any, *, speculate: bool = False, logprobs: int | None = None, **sampling: Any
    ) -> Generation | list[Generation]:
        """Continue a text, or several texts at once.

        Parameters
        ----------
        prompt : str, sequence of int, or a list of these
            Text, or token ids that are taken as they are. The texts of a list go through each weight together, and
            each comes out as it would alone.
        speculate : bool
            Propose tokens that followed the same words earlier in the text, and check several in one pass. The text
            is the same; repetitive text comes sooner.
        logprobs : int, optional
            Also report, for each generated token, its log-probability and this many of the likeliest tokens in its
            place, 0 to 100. These are natural logarithms of what the model itself predicts, before temperature, cuts
            and penalties. The text is the same, but is made one token and one prompt at a time: `speculate` and the
            sharing of a list do not speed it up.
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
        """
        params = SamplingParams(**sampling)
        several = isinstance(prompt, (list, tuple)) and (not prompt or not isinstance(prompt[0], (int, np.integer)))
        if logprobs is not None:
            record = LogprobRecorder(self._tokenizer, logprobs)
            if not several:
                return self._with_logprobs(self._prompt_ids(prompt), params, record)
            return [self._with_logprobs(ids, params, record) for ids in self._entries(prompt)]
        if several:
            return self._generate_batch(prompt, params)
        return _last(self._generate(self._prompt_ids(prompt), params, DECODE_BURST, speculate))

    def stream(
        self, prompt: str | Sequence[int], *, speculate: bool = False, **sampling: Any
    ) -> Generator[str, None, Generation]:
        """Continue a text, piece by piece.

        Takes what `generate` takes for one text, and gives the same text. Pieces are valid UTF-8; the generator's
        return value is the `Generation`. Settings are checked here, before the first piece is asked for.
        """
        burst = SPECULATION_BURST if speculate else 1
        return self._generate(self._prompt_ids(prompt), SamplingParams(**sampling), burst, speculate)

    def chat(self, messages: list[dict[str, str]], *, template: str | None = None, **sampling: Any) -> Generation:
        """Answer the last message of a conversation.

        Parameters
        ----------
        messages : list of dict
            Each with ``role`` (``system``, ``user`` or ``assistant``) and ``content``. Names of special tokens in the
            contents stay ordinary text.
        template : str, optional
            Name of a built-in chat template; None takes the one that the model's file names.
        **sampling
            Fields of `SamplingParams`.

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

        return answer(self, messages, template, **sampling)

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
        with self._lock:
            out: np.ndarray = self._transformer.prefill(self._new_cache(len(ids)), ids, True)
            return out

    @overload
    def embed(self, texts: str, pooling: str = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[int], pooling: str = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[str], pooling: str = ...) -> np.ndarray: ...
    @overload
    def embed(self, texts: Sequence[Sequence[int]], pooling: str = ...) -> np.ndarray: ...
    def embed(self, texts: Any, pooling: str = "last") -> np.ndarray:
        """Turn texts into vectors: what the output head reads, after the last RMSNorm.

        Parameters
        ----------
        texts : str, sequence of int, or a list of these
            Texts are encoded as for `generate`, with BOS where the model wants it; token ids are taken as they are.
        pooling : str
            ``last`` takes the vector of the last token, which has seen the whole text; ``mean`` the mean over all
            tokens, BOS among them.

        Returns
        -------
        ndarray of float32, shape (n_texts, hidden_size)
            Not normalised. One text is a list of one.

        Raises
        ------
        ContextLengthError
            If a text does not fit into the context.
        ValueError
            If there is no text, one has no token, or `pooling` is neither of the above.
        """
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling must be last or mean, not {pooling!r}")
        one = isinstance(texts, str) or (len(texts) and isinstance(texts[0], (int, np.integer)))
        entries = [self._prompt_ids(text) for text in ([texts] if one else texts)]
        if not entries:
            raise ValueError("there is no text to embed")
        vectors = np.empty((len(entries), self.config.hidden_size), np.float32)
        rows = SCORE_ROWS if self._plan is None else self._plan.logit_rows
        for vector, ids in zip(vectors, entries):
            total = np.zeros(self.config.hidden_size)
            with self._lock:
                cache = self._new_cache(len(ids))
                for start in range(0, len(ids), rows):
                    states = self._transformer.hidden_states(cache, ids[start : start + rows])
                    total += states.sum(axis=0, dtype=np.float64)
            vector[:] = states[-1] if pooling == "last" else total / len(ids)
        return vectors

    def perplexity(self, text: str) -> Perplexity:
        """Score a text: BOS first, then every token is predicted from those before it.

        Parameters
        ----------
        text : str
            At most the context long, in tokens.

        Returns
        -------
        Perplexity

        Raises
        ------
        ContextLengthError
            If the text does not fit into the context.
        ValueError
            If the text is empty.
        """
        ids = self._ids(self.tokenizer.encode(text, add_bos=True))
        if len(ids) < 2:
            raise ValueError("there is nothing to predict in an empty text")
        nats = 0.0
        with self._lock, dispatch.PlainFloats():
            cache = self._new_cache(len(ids))
            rows = SCORE_ROWS if self._plan is None else self._plan.logit_rows
            for start in range(0, len(ids) - 1, rows):
                piece = ids[start : start + rows]
                target = ids[start + 1 : start + 1 + rows]
                logits = self._transformer.prefill(cache, piece, True)[: len(target)].astype(np.float64)
                top = logits.max(1)
                total = top + np.log(np.exp(logits - top[:, None]).sum(1))
                nats += float((total - logits[np.arange(len(target)), target]).sum())
            n = len(ids) - 1
            return Perplexity(
                nats_per_token=nats / n,
                bits_per_byte=nats / math.log(2) / len(text.encode()),
                perplexity=math.exp(nats / n),
                tokens=n,
            )

    def info(self) -> dict[str, Any]:
        """Return what the model is and what it takes: sizes in bytes, types, threads, instruction set.

        ``skipping`` names the linear layers that read only the weights of inputs that are not zero: under `sparsity`
        those where that was quicker on this machine when the model was loaded. ``warnings`` lists what in the file is
        guessed, contradicts itself, or is known to ruin the text elsewhere.
        """
        t, c = self._transformer, self.config
        kv_bytes = KVCache(t, t.context).nbytes // (-(-t.context // 16) * 16)  # reserved in blocks of 16 positions
        return {
            **self._description,
            "family": c.family,
            "vocab_size": c.vocab_size,
            "context_length": c.context_length,
            "layers": c.n_layers,
            "hidden_size": c.hidden_size,
            "tied_embeddings": c.tied_embeddings,
            "weight_bytes": t.weight_bytes,
            "scratch_bytes": t.scratch_bytes,
            "kv_bytes_per_token": kv_bytes,
            "threads": t.threads,
            "skipping": t.skipping,
            "isa": dispatch.active(),
            "memory": None if self._plan is None else self._plan.as_dict() | t.cache_stats(),
        }

    def __repr__(self) -> str:
        return f"<lowbit.Model {self._description['path']}>"

    # --- generation ---

    def _new_cache(self, capacity: int) -> KVCache:
        """Memory for a sequence. Under a plan there is room for one whole context, all sequences together."""
        cache = KVCache(self._transformer, capacity)
        if self._plan is not None:
            if self._kept is not None:
                self._caches.discard(self._kept.cache)
                self._kept = None
            if sum(other.nbytes for other in self._caches) + cache.nbytes > self._plan.kv:
                raise MemoryBudgetError("another stream holds the memory for keys and values: end it first")
            self._caches.add(cache)
        return cache

    def _ids(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        if ids.ndim != 1 or len(ids) == 0:
            raise ValueError("a sequence needs at least one token")
        if len(ids) > self.context:
            raise ContextLengthError(f"{len(ids)} tokens do not fit into a context of {self.context}")
        return ids

    def _prompt_ids(self, prompt: str | Sequence[int]) -> np.ndarray:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and isinstance(prompt, str) and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        return self._ids(ids)

    def _generate(
        self, ids: np.ndarray, params: SamplingParams, burst: int, speculate: bool,
        look: Callable[[int], None] | None = None,
    ) -> Generator[str, None, Generation]:  # fmt: skip
        text = GeneratedText(self._tokenizer, params.stop, self._ends)
        clock = Clock()
        sampler = self._sampler(params, ids)
        with self._lock:  # held only while computing: a stream may wait for its reader for long
            sequence, self._kept = self._kept or _Sequence(self._new_cache(self.context), ids[:0]), None
        reused = sequence.shared_prefix(ids)
        try:
            made = self._tokens(sequence, ids, reused, sampler, params.max_tokens, burst, speculate, clock, look)
            for token in made:
                piece = text.push(token)
                if piece:
                    yield piece
                if text.stopped:
                    break
            piece = text.finish()
            if piece:
                yield piece
        finally:
            if self._transformer.sparse_decode and not self._transformer.sparse_prefill:
                sequence.tokens = sequence.tokens[: len(ids)]  # a prompt is computed anew from what was decoded on
            self._kept = sequence  # last: from here on another call may take it
        return text.result(len(ids), clock.timings(self._load_seconds, len(ids), reused, len(text.tokens)))

    def _tokens(
        self, sequence: _Sequence, ids: np.ndarray, reused: int, sampler: Sampler, n: int, burst: int,
        speculate: bool, clock: Clock, look: Callable[[int], None] | None,
    ) -> Iterator[int]:  # fmt: skip
        """Make up to n tokens after `ids`, in bursts of which the first has one token, so that it comes at once.

        `look` is called after each burst of one, while the logits that the token was chosen from are still there.
        """
        stop = np.array(sorted(self._ends), np.int32)
        size, pending, made = 1, np.array([-1], np.int32), [-1]
        while made:
            with self._lock:
                if pending[0] < 0:
                    sequence.tokens = ids[:0]  # nothing is known until the pass is through
                    sequence.cache.truncate(reused)
                    self._transformer.prefill(sequence.cache, ids[reused:])
                    sequence.tokens = ids
                    clock.prompt_done()
                history = sequence.tokens if speculate else None
                with clock.decoding():
                    [made] = self._transformer.decode([sequence.cache], [sampler], pending, min(n, size), stop, history)
                if look is not None and made:
                    look(made[0])
                sequence.tokens = np.concatenate([sequence.tokens, np.array(made, np.int32)])
            yield from made
            n -= len(made)
            if n <= 0 or len(made) < size or made[-1] in self._ends:
                return
            pending, size = sequence.tokens[-1:], burst

    def _with_logprobs(self, ids: np.ndarray, params: SamplingParams, record: LogprobRecorder) -> Generation:
        found: list[TokenLogprob] = []

        def look(token: int) -> None:
            with dispatch.PlainFloats():
                found.append(record(token, self._transformer.last_logits()))

        out = _last(self._generate(ids, params, 1, False, look))
        return replace(out, logprobs=found[: len(out.tokens)])  # without the token that ended the text

    def _entries(self, prompts: Sequence[Any]) -> list[np.ndarray]:
        """Token ids of each entry of a batch."""
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("an entry of the batch is empty")
        return [self._prompt_ids(prompt) for prompt in prompts]

    def _generate_batch(self, prompts: Sequence[Any], params: SamplingParams) -> list[Generation]:
        entries = self._entries(prompts)
        results: list[Generation] = []
        with self._lock:
            while len(results) < len(entries):
                group = self._group(entries[len(results) :], params.max_tokens)
                results += self._batch(group, params)
        return results

    def _group(self, entries: list[np.ndarray], max_tokens: int) -> list[np.ndarray]:
        """As many of the entries as can be decoded together: by the batch, or by the memory of a plan."""
        if self._plan is None:
            return entries[: self._transformer.batch]
        room, count = self.context, 0
        while count < min(len(entries), self._plan.logit_rows):
            room -= min(self.context, len(entries[count]) + max_tokens + 15) // 16 * 16  # as caches are laid out
            if room < 0 and count:
                break
            count += 1
        return entries[:count]

    def _batch(self, entries: list[np.ndarray], params: SamplingParams) -> list[Generation]:
        stop = np.array(sorted(self._ends), np.int32)
        texts = [GeneratedText(self._tokenizer, params.stop, self._ends) for _ in entries]
        samplers = [self._sampler(params, ids) for ids in entries]
        clock = Clock()
        caches, last = [], []
        for ids, sampler, text in zip(entries, samplers, texts):
            cache = self._new_cache(min(self.context, len(ids) + params.max_tokens))
            self._transformer.prefill(cache, ids)
            first = np.array([-1], np.int32)
            [made] = self._transformer.decode([cache], [sampler], first, min(1, params.max_tokens), stop)
            for token in made:
                text.push(token)
            caches.append(cache)
            last.append(made[-1] if made else -1)
        clock.prompt_done()
        running = [i for i, text in enumerate(texts) if last[i] >= 0 and not text.stopped]
        left = params.max_tokens - 1
        while running and left > 0:
            size = min(left, DECODE_BURST)
            with clock.decoding():
                made_by = self._transformer.decode(
                    [caches[i] for i in running], [samplers[i] for i in running],
                    np.array([last[i] for i in running], np.int32), size, stop,
                )  # fmt: skip
            for i, made in zip(running, made_by):
                for token in made:
                    if not texts[i].stopped:
                        texts[i].push(token)
                last[i] = made[-1] if len(made) == size else -1
            running = [i for i in running if last[i] >= 0 and not texts[i].stopped]
            left -= size
        for text in texts:
            text.finish()
        return [
            text.result(len(ids), clock.timings(self._load_seconds, len(ids), 0, len(text.tokens)))
            for ids, text in zip(entries, texts)
        ]

    def _sampler(self, params: SamplingParams, ids: np.ndarray) -> Sampler:
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        sampler = Sampler(
            self.config.vocab_size, params.temperature, params.top_k, params.top_p, params.min_p,
            params.repeat_penalty, seed,
        )  # fmt: skip
        sampler.note(ids.tolist())
        return sampler


def _last(run: Generator[str, None, Generation]) -> Generation:
    """Run a generation to its end."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            result: Generation = end.value
            return result
