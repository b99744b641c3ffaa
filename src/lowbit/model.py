"""A loaded model, as Python programs use it: generate, stream, score. `lowbit.load` makes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

import numpy as np

from ._kernels import dispatch
from ._kernels.decoder import Decoder
from ._kernels.kvpool import SPAN
from .engine import Engine, Generation, Timings, TokenLogprob
from .engine.constraints import Compiler, Constraint
from .engine.perplexity import Perplexity, measured
from .engine.pooling import normalised, pooled
from .engine.prompts import prompts_of, token_ids
from .engine.sequence import Request, check_shift, make_sampler
from .engine.stream import let_go
from .engine.text import LogprobRecorder
from .errors import ContextLengthError, LowbitError, UnsupportedModelError
from .loading.memory import MemoryPlan
from .plan import ModelPlan
from .sampling import Answered, Asked, Grammar, Sampling, SamplingParams, Settings, new_seed, params_of, seeds_of
from .scalars import plain
from .tokenizers import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Generation", "Model", "Perplexity", "Timings", "TokenLogprob"]

MOST_TEXTS = 1 << 19
"""Texts that one call may have."""
_Part = TypeVar("_Part")


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
        self._own_decoder: Decoder | None = decoder
        self._draft = draft
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
        self._own_engine: Engine | None = Engine(
            self, max_sequences=decoder.batch, max_queue=MOST_TEXTS, thread=False
        )  # fmt: skip

    @property
    def _decoder(self) -> Decoder:
        return self._open(self._own_decoder)

    @property
    def _engine(self) -> Engine:
        return self._open(self._own_engine)

    def _open(self, part: _Part | None) -> _Part:
        if part is None:
            raise LowbitError(f"{self._description['path']}: the model is closed")
        return part

    def close(self) -> None:
        """Cancel what runs and give the memory back, as soon as no stream and no `Engine` of it is left."""
        engine, self._own_decoder, self._own_engine, self._draft = self._own_engine, None, None, None
        if engine is not None:
            engine.close()
            engine.settle()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a model cannot be pickled or copied; load it in each process: {self._description['path']}")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UnsupportedModelError if the file has none."""
        if self._tokenizer is None:
            raise UnsupportedModelError(f"{self._description['path']} has no tokenizer; give token ids instead of text")
        return self._tokenizer

    @overload
    def generate(  # type: ignore[overload-overlap]  # the first that fits counts, so a str is one text
        self, prompt: str | Sequence[int], *, n: None = ..., seed: int | None = ..., **options: Unpack[Asked]
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], *, n: int | None = ...,
        seed: int | Sequence[int] | None = ..., **options: Unpack[Asked],
    ) -> list[Generation]: ...  # fmt: skip
    def generate(
        self, prompt: Any, *, n: int | None = None, seed: int | Sequence[int] | None = None,
        speculate: bool | None = None, logprobs: int | None = None, json_schema: Any = None, regex: str | None = None,
        grammar: str | Grammar | None = None, fresh: bool = False, context_shift: bool = False,
        **sampling: Unpack[Settings],
    ) -> Generation | list[Generation]:  # fmt: skip
        """Continue a text, or several texts at once.

        Parameters
        ----------
        prompt : str, sequence of int, or a list of these
            Text, or token ids that are taken as they are. The texts of a list go through each weight together, and
            each comes out as it would alone with its seed.
        n : int, optional
            Make this many texts of each prompt.
        seed : int or list of int, optional
            Seed of the random numbers, 0 to 2**64 - 1. Of several texts the first has this one, and each later one the
            next number; a list has the seed of each. None takes new ones from the system. `Generation.seed` tells.
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
        context_shift : bool
            Where the context is full, go on behind BOS and the newer half of the tokens after it, which are read anew:
            what follows is what would follow such a prompt, but that seeds and penalties go on. `Generation.left_out`
            tells. Not for recurrent layers, nor with a schema, an expression or a grammar.
        **sampling
            The other fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, stop,
            presence_penalty, frequency_penalty, logit_bias.

        Returns
        -------
        Generation, or a list of them
            For a list of prompts, `n`, or a list of seeds: the texts of the first prompt, then those of the next.

        Raises
        ------
        ContextLengthError
            If a prompt does not fit into the context.
        ValueError
            If a setting is out of range, or an entry of a list is empty.
        TypeError
            If there is no argument of a name, or it is of another type.
        ConstraintError
            If the schema, the expression or the grammar cannot be used; it is a ValueError.
        """
        params = params_of(sampling)
        entries, several = prompts_of(prompt)
        if several and not all(len(entry) for entry in entries):
            raise ValueError("an entry of the batch is empty")
        n = plain(n)
        if n is None and not several and isinstance(seed, (Sequence, np.ndarray)):
            n = len(seed)
        elif n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST_TEXTS):
            raise ValueError(f"n must be a whole number from 1 to {MOST_TEXTS}, not {n!r}")
        prompts = [ids for ids in map(self._prompt_ids, entries) for _ in range(n or 1)]
        record = None if logprobs is None else LogprobRecorder(self._tokenizer, logprobs)
        results = self._run([
            self._request(
                ids, replace(params, seed=one), speculate, record,
                constraint=self._compiler.constraint(json_schema, regex, grammar), fresh=fresh, shifts=context_shift,
            )
            for ids, one in zip(prompts, seeds_of(seed, len(prompts)))
        ])  # fmt: skip
        return results if several or n is not None else results[0]

    def stream(
        self, prompt: str | Sequence[int], *, speculate: bool | None = None, json_schema: Any = None,
        regex: str | None = None, grammar: str | Grammar | None = None, fresh: bool = False,
        context_shift: bool = False, **sampling: Unpack[Sampling],
    ) -> Generator[str, None, Generation]:  # fmt: skip
        """Continue a text, piece by piece.

        Takes what `generate` takes for one text, and gives the same text. Pieces are valid UTF-8; the generator's
        return value is the `Generation`. Settings are checked here, before the first piece is asked for.
        """
        constraint = self._compiler.constraint(json_schema, regex, grammar)
        ids, params = self._prompt_ids(prompt), params_of(sampling)
        return self._stream(self._request(ids, params, speculate, None, b"", constraint, fresh, context_shift))

    @overload
    def chat(
        self, messages: list[dict[str, Any]], *, template: str | None = ..., stream: Literal[False] = ...,
        **options: Unpack[Answered],
    ) -> Generation: ...  # fmt: skip
    @overload
    def chat(
        self, messages: list[dict[str, Any]], *, template: str | None = ..., stream: Literal[True],
        **options: Unpack[Answered],
    ) -> Generator[str, None, Generation]: ...  # fmt: skip
    def chat(
        self, messages: list[dict[str, Any]], *, template: str | None = None, stream: bool = False,
        **options: Unpack[Answered],
    ) -> Any:  # fmt: skip
        """Answer the last message of a conversation.

        Parameters
        ----------
        messages : list of dict
            Each with ``role`` (``system``, ``user``, ``assistant`` or ``tool``) and ``content``; of an assistant also
            ``tool_calls``, of a tool ``tool_call_id``. Names of special tokens in them stay ordinary text.
        template : str, optional
            Name of a built-in chat template; None takes the one that the model's file names.
        stream : bool
            Give the answer piece by piece, as `stream` gives a text.
        **options
            ``tools``, ``tool_choice`` and ``parallel``, as `lowbit.chat.ToolCalls` takes them; what `generate` takes.

        Returns
        -------
        Generation, or with `stream` a generator of str whose return value that is

        Raises
        ------
        ValueError
            If the conversation or a setting is not valid.
        ContextLengthError
            If the conversation does not fit into the context.
        """
        from .chat.session import answer

        return answer(self, messages, template, stream=stream, **options)

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
        self._score(ids, pooled("none", out, len(ids)))
        return out

    def embed(
        self, texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], pooling: str | None = None
    ) -> np.ndarray:
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
        entries = [self._prompt_ids(text) for text in prompts_of(texts, "texts")[0]]
        normal = pooling is None and self.config.pooling is not None
        pooling = pooling or self.config.pooling or "last"
        if not entries:
            raise ValueError("there is no text to embed")
        vectors = np.empty((len(entries), self.config.hidden_size), np.float32)
        self._run([self._embedding(ids, vector, pooling) for vector, ids in zip(vectors, entries)])
        return normalised(vectors) if normal else vectors

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
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {text.__class__.__name__}")
        stride = max(1, self.context // 2) if stride is None else plain(stride)
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= self.context:
            raise ValueError(f"stride must be a whole number from 1 to {self.context}, not {stride!r}")
        ids = np.ascontiguousarray(self.tokenizer.encode(text, add_bos=True), np.int32)
        if len(ids) < 2:
            raise ValueError("there is nothing to predict in an empty text")
        return measured(ids, len(text.encode("utf-8", "surrogatepass")), self.context, stride, self._score)

    def info(self) -> dict[str, Any]:
        """Return what the model is and what it takes: sizes in bytes, types, threads, instruction set.

        ``kept_as``, if it is there, tells what weights became whose type has no form of its own in memory, and
        ``longrope`` which factors a model with LongRoPE took for its context.
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

    def _ids(self, tokens: Sequence[int], what: str = "token_ids must be a list of int") -> np.ndarray:
        ids = token_ids(tokens, what)
        if len(ids) > self.context:
            raise ContextLengthError(f"{len(ids)} tokens do not fit into a context of {self.context}")
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(wrong):
            raise ValueError(f"token {wrong[0]} is not in a vocabulary of {self.config.vocab_size}")
        return np.ascontiguousarray(ids, np.int32)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> np.ndarray:
        if not isinstance(prompt, str):
            return self._ids(prompt, "prompt must be a text (str) or a list of int")
        ids = self.tokenizer.encode(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        return self._ids(ids)

    def _request(
        self, ids: np.ndarray, params: SamplingParams, speculate: bool | None = None,
        record: LogprobRecorder | None = None, salt: bytes = b"", constraint: Constraint | None = None,
        fresh: bool = False, shifts: bool = False,
    ) -> Request:  # fmt: skip
        if shifts:
            check_shift(self._decoder.graph.context, bool(self._decoder.pool.state_bytes), constraint)
        if params.seed is None:
            params = replace(params, seed=new_seed())
        speculate = self._draft is not None if speculate is None else speculate
        for token in params.logit_bias or ():
            if token >= self.config.vocab_size:
                raise ValueError(f"logit_bias names {token}, which is not in a vocabulary of {self.config.vocab_size}")
        return Request(
            ids, params, lambda: make_sampler(params, self.config.vocab_size, params.seed or 0, ids.tolist()),
            self.context, self._tokenizer, self._ends, speculate, self._draft is not None, record, salt=salt,
            load_seconds=self._load_seconds, constraint=constraint, shifts=shifts,
            begins=fresh or self._tokenizer is None or all(i in self._tokenizer.control_ids for i in ids.tolist()),
        )  # fmt: skip

    def _scoring(self, ids: np.ndarray, each: Callable[[np.ndarray], None], want: str) -> Request:
        return Request(ids, SamplingParams(max_tokens=0), None, self.context, each=each, want=want)

    def _embedding(self, ids: np.ndarray, vector: np.ndarray, pooling: str) -> Request:
        return self._scoring(ids, pooled(pooling, vector, len(ids)), "states")

    def _score(self, ids: np.ndarray, each: Callable[[np.ndarray], None]) -> None:
        self._run([self._scoring(ids, each, "every")])

    def _run(self, requests: list[Request]) -> list[Generation]:
        """Run requests together, all to their ends."""
        engine = self._engine
        try:
            for request in requests:
                request.collecting = True
            return [stream.result() for stream in [engine.start(request) for request in requests]]
        finally:
            let_go(engine, requests)

    def _stream(self, request: Request) -> Generator[str, None, Generation]:
        engine = self._engine
        try:
            yield from (stream := engine.start(request))
            return stream.result()
        finally:
            let_go(engine, [request])
