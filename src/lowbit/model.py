"""Models as Python programs use them: load a file, then generate, stream, score."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from . import assets
from ._kernels import dispatch
from ._kernels.sampler import Sampler
from ._kernels.transformer import KVCache, Transformer
from .config import ModelConfig
from .errors import ContextLengthError, FormatError, LowbitError, UnsupportedModelError
from .families import find_family
from .formats import open_model
from .formats.base import ModelFile
from .sampling import SamplingParams
from .tokenizers import StopBuffer, Tokenizer, from_gguf_metadata, load_tokenizer
from .weights import read_weights

__all__ = ["Generation", "Model", "Perplexity", "Timings", "load"]

DEFAULT_CONTEXT = 8192
"""Most tokens that a model gets room for unless the caller asks for more."""
DECODE_BURST = 32
"""Tokens made between two looks at the stop strings, when nobody is waiting for each of them."""
SCORE_ROWS = 64
"""Positions whose logits are held at a time while scoring."""


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    load_seconds: float
    prompt_tokens: int
    prompt_seconds: float
    decode_tokens: int
    decode_seconds: float
    first_token_seconds: float
    """From the call to the first token."""

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

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


@dataclass(frozen=True)
class Perplexity:
    """How well the model predicts a text."""

    nats_per_token: float
    bits_per_byte: float
    """Per byte of the UTF-8 text."""
    perplexity: float
    tokens: int
    """Predicted tokens: all but the first."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    max_ram: str | int | None = None,
    sparsity: float = 0.0,
    context: int | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : path, optional
        A GGUF file or a llama2.c checkpoint; None is the model that comes with lowbit.
    threads : int, optional
        Threads to compute with; None takes the cores that this process may use.
    max_ram : str or int, optional
        Not supported yet.
    sparsity : float
        Not supported yet.
    context : int, optional
        Room for this many tokens; None takes the model's own context, but at most 8192.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        If the file is missing, damaged, or not a model file.
    UnsupportedModelError
        If the file is sound, but lowbit does not know its architecture, tensor types or tokenizer.
    ValueError
        If a setting is out of range.
    """
    if max_ram is not None or sparsity != 0.0:
        raise LowbitError("max_ram and sparsity are not supported by this version")
    threads = check_threads(threads)
    start = time.perf_counter()
    if path is None:
        with assets.embedded_model() as embedded, open_model(embedded) as file:
            return _from_file(file, threads, context, start)
    with open_model(path) as file:
        return _from_file(file, threads, context, start)


def check_threads(threads: int | None) -> int:
    """Return the number of threads to use; ValueError if it is out of range."""
    if threads is None:
        return min(int(dispatch.cores()), int(dispatch.MAX_THREADS))
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= dispatch.MAX_THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {dispatch.MAX_THREADS}, not {threads!r}")
    return threads


def _from_file(file: ModelFile, threads: int, context: int | None, start: float) -> Model:
    """Read a model, and name the file in every complaint."""
    try:
        transformer, config = build(file, threads, context)
        tokenizer = _tokenizer_of(file)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise FormatError(f"{tokenizer.vocab_size} token texts for a vocabulary of {config.vocab_size}")
    except (FormatError, UnsupportedModelError) as error:
        if str(error).startswith(str(file.path)):
            raise
        raise type(error)(f"{file.path}: {error}") from None
    return Model(transformer, config, tokenizer, describe(file), time.perf_counter() - start)


def build(
    file: ModelFile, threads: int, context: int | None, batch: int = 256
) -> tuple[Transformer, ModelConfig]:
    """Pack a file's weights into a transformer."""
    family = find_family(file.architecture)
    config = family.config(file.metadata, file.architecture, tied="output.weight" not in file.tensors)
    if context is None:
        context = min(config.context_length, DEFAULT_CONTEXT)
    elif isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= config.context_length:
        raise ValueError(f"context must be a whole number from 1 to {config.context_length}, not {context!r}")
    weights = read_weights(file, config, family, threads)
    if weights.rope_factors:
        config = replace(config, rope_factors=weights.rope_factors)
    transformer = Transformer(
        config, weights.layers, weights.token_embd, weights.output, weights.output_norm, context, threads,
        min(batch, context),
    )  # fmt: skip
    return transformer, config


def _tokenizer_of(file: ModelFile) -> Tokenizer | None:
    """The tokenizer in the file, or llama2.c's beside it."""
    if "tokenizer.ggml.model" in file.metadata:
        return from_gguf_metadata(file.metadata, file.path)
    if file.format == "llama2c":
        folder = os.path.dirname(os.path.abspath(file.path))
        size = file.metadata["llama.vocab_size"]
        for name in (f"tok{size}.bin", "tokenizer.bin"):
            beside = os.path.join(folder, name)
            if os.path.exists(beside):
                return load_tokenizer(beside, vocab_size=size)
    return None


def describe(file: ModelFile) -> dict[str, Any]:
    """What a file says about itself, for `Model.info`."""
    types: dict[str, int] = {}
    for info in file.tensors.values():
        types[info.type] = types.get(info.type, 0) + 1
    return {
        "path": str(file.path),
        "format": file.format,
        "name": file.metadata.get("general.name"),
        "parameters": sum(int(np.prod(info.shape, dtype=np.int64)) for info in file.tensors.values()),
        "types": types,
        "file_bytes": sum(info.nbytes for info in file.tensors.values()),
    }


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
    ) -> None:
        self._transformer = transformer
        self._tokenizer = tokenizer
        self._description = description
        self._load_seconds = load_seconds
        self._lock = threading.Lock()
        self.config = config
        self.context: int = transformer.context

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; UnsupportedModelError if the file has none."""
        if self._tokenizer is None:
            raise UnsupportedModelError(f"{self._description['path']} has no tokenizer; give token ids instead of text")
        return self._tokenizer

    def generate(self, prompt: str | Sequence[int], **sampling: Any) -> Generation:
        """Continue a text.

        Parameters
        ----------
        prompt : str or sequence of int
            Text, or token ids that are taken as they are.
        **sampling
            Fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, seed, stop.

        Returns
        -------
        Generation

        Raises
        ------
        ContextLengthError
            If the prompt does not fit into the context.
        ValueError
            If a setting is out of range.
        """
        run = self._run(prompt, SamplingParams(**sampling), DECODE_BURST)
        while True:
            try:
                next(run)
            except StopIteration as end:
                result: Generation = end.value
                return result

    def stream(self, prompt: str | Sequence[int], **sampling: Any) -> Generator[str, None, Generation]:
        """Continue a text, piece by piece.

        Takes what `generate` takes, and gives the same text. Pieces are valid UTF-8; the generator's return value is
        the `Generation`. Settings are checked here, before the first piece is asked for.
        """
        return self._run(prompt, SamplingParams(**sampling), 1)

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
            out: np.ndarray = self._transformer.prefill(KVCache(self._transformer, len(ids)), ids, True)
            return out

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
        with self._lock:
            cache = KVCache(self._transformer, len(ids))
            for start in range(0, len(ids) - 1, SCORE_ROWS):
                piece = ids[start : start + SCORE_ROWS]
                target = ids[start + 1 : start + 1 + SCORE_ROWS]
                logits = self._transformer.prefill(cache, piece, True)[: len(target)].astype(np.float64)
                top = logits.max(1)
                total = top + np.log(np.exp(logits - top[:, None]).sum(1))
                nats += float((total - logits[np.arange(len(target)), target]).sum())
        n = len(ids) - 1
        return Perplexity(
            nats_per_token=nats / n,
            bits_per_byte=nats / np.log(2) / len(text.encode()),
            perplexity=float(np.exp(nats / n)),
            tokens=n,
        )

    def info(self) -> dict[str, Any]:
        """Return what the model is and what it takes: sizes in bytes, types, threads, instruction set."""
        t, c = self._transformer, self.config
        kv_bytes = KVCache(t, 16).nbytes // 16
        return {
            **self._description,
            "family": c.family,
            "vocab_size": c.vocab_size,
            "context_length": c.context_length,
            "layers": c.n_layers,
            "hidden_size": c.hidden_size,
            "weight_bytes": t.weight_bytes,
            "scratch_bytes": t.scratch_bytes,
            "kv_bytes_per_token": kv_bytes,
            "threads": t.threads,
            "isa": dispatch.active(),
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
        return ids

    def _run(
        self, prompt: str | Sequence[int], params: SamplingParams, burst: int
    ) -> Generator[str, None, Generation]:
        """Check the prompt now, and return the generator that does the rest."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and self._tokenizer is not None and self._tokenizer.bos_id is not None:
            ids = [self._tokenizer.bos_id]
        return self._generate(self._ids(ids), params, burst)

    def _generate(self, ids: np.ndarray, params: SamplingParams, burst: int) -> Generator[str, None, Generation]:
        text: list[str] = []
        tokens: list[int] = []
        reason: Literal["stop", "length"] = "length"
        decoder = self._tokenizer.stream_decoder() if self._tokenizer is not None else None
        stops = StopBuffer(params.stop)
        ends = self._end_tokens()
        clock = _Clock()
        with self._lock:
            sampler = self._sampler(params)
            sampler.note(ids.tolist())
            cache = KVCache(self._transformer, min(self.context, len(ids) + params.max_tokens))
            self._transformer.prefill(cache, ids)
            clock.prompt_done()
            for token in self._tokens(cache, sampler, params.max_tokens, ends, burst, clock):
                if token in ends:
                    reason = "stop"
                    break
                tokens.append(token)
                if decoder is None:
                    continue
                piece, stopped = stops.push(decoder.push(token))
                if piece:
                    text.append(piece)
                    yield piece
                if stopped:
                    reason = "stop"
                    break
            else:
                stopped = False
            if decoder is not None and not stopped:
                piece, _ = stops.push(decoder.flush())
                piece += stops.flush()
                if piece:
                    text.append(piece)
                    yield piece
        timings = clock.timings(self._load_seconds, len(ids), len(tokens))
        return Generation("".join(text), tokens, len(ids), reason, timings)

    def _tokens(
        self, cache: KVCache, sampler: Sampler, n: int, ends: frozenset[int], burst: int, clock: _Clock
    ) -> Iterator[int]:
        """Make up to n tokens, in bursts of which the first has one token, so that it comes at once."""
        stop = np.array(sorted(ends), np.int32)
        pending, size = -1, 1
        while n > 0:
            made = self._transformer.decode(cache, sampler, pending, min(n, size), stop)
            clock.tokens_done()
            yield from made
            if len(made) < min(n, size) or made[-1] in ends:
                return
            n -= len(made)
            pending, size = made[-1], burst

    def _sampler(self, params: SamplingParams) -> Sampler:
        seed = secrets.randbits(64) if params.seed is None else params.seed
        return Sampler(
            self.config.vocab_size, params.temperature, params.top_k, params.top_p, params.min_p,
            params.repeat_penalty, seed,
        )  # fmt: skip

    def _end_tokens(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's, and BOS, with which story models begin the next text."""
        if self._tokenizer is None:
            return frozenset()
        bos = self._tokenizer.bos_id
        return self._tokenizer.eos_ids | (frozenset() if bos is None else frozenset((bos,)))


class _Clock:
    """Times of one generation; waiting for the reader of a stream does not count."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.prompt = self.first = self.last = self.start

    def prompt_done(self) -> None:
        self.prompt = self.first = self.last = time.perf_counter()

    def tokens_done(self) -> None:
        self.last = time.perf_counter()
        if self.first == self.prompt:
            self.first = self.last

    def timings(self, load_seconds: float, prompt_tokens: int, decode_tokens: int) -> Timings:
        return Timings(
            load_seconds=load_seconds,
            prompt_tokens=prompt_tokens,
            prompt_seconds=self.prompt - self.start,
            decode_tokens=decode_tokens,
            decode_seconds=self.last - self.prompt,
            first_token_seconds=self.first - self.start,
        )
