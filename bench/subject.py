"""lowbit as the benchmarks drive it: prefill and decode of one or more sequences, timed apart."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lowbit._kernels.sampler import Sampler
from lowbit._kernels.sequence import Sequence as Text
from lowbit.formats.base import ModelFile
from lowbit.loading.load import build

__all__ = ["Subject"]


class Subject:
    """A model with its sequences.

    Parameters
    ----------
    file : ModelFile
    context : int
        Room, in tokens.
    threads : int
        Most threads that will be asked for.
    sequences : int
        Most sequences that will be decoded together.
    """

    def __init__(self, file: ModelFile, context: int, threads: int, sequences: int = 1) -> None:
        self.decoder, self.config = build(file, threads, context)
        self.prompts: list[list[int]] = [[] for _ in range(sequences)]

    @property
    def macs_per_token(self) -> int:
        """Multiply-adds of the linear layers for one token, without the head, which only a last token needs.

        Attention is not counted: it is not done in integers.
        """
        c = self.config
        kv = c.n_kv_heads * c.head_dim
        q = c.n_heads * c.head_dim
        return c.n_layers * c.hidden_size * (2 * q + 2 * kv + 3 * c.intermediate_size)

    @property
    def head_macs(self) -> int:
        """Multiply-adds of the output head, for one token."""
        return self.config.hidden_size * self.config.vocab_size

    def prefill(self, prompt: Sequence[int], threads: int = 1, sequence: int = 0) -> tuple[float, int]:
        """Take a prompt in; return the seconds, and the likeliest next token."""
        self.decoder.threads = threads
        self.prompts[sequence] = list(prompt)
        text = self._text(prompt, len(prompt), reuse=False)
        start = time.perf_counter()
        logits = self.decoder.read(text)
        seconds = time.perf_counter() - start
        text.close()
        return seconds, int(logits.argmax())

    def _text(self, prompt: Sequence[int], most: int, reuse: bool = True) -> Text:
        ids, room = np.array(prompt, np.int32), self.decoder.graph.context
        sampler = Sampler(self.config.vocab_size, 0.0, 0, 1.0, 0.0, 1.0, 0) if most > len(prompt) else None
        return Text(self.decoder.pool, ids, room, sampler=sampler, most=most, reuse=reuse)

    def decode(self, n: int, threads: int = 1, sequences: int = 1) -> tuple[float, list[list[int]]]:
        """Continue each prompt greedily, from its last token on; return the seconds, and n tokens of each."""
        self.decoder.threads = threads
        texts = [self._text(prompt, len(prompt) + n) for prompt in self.prompts[:sequences]]
        for text in texts:  # all is known from before, unless there was no room for it
            self.decoder.read(text, "nothing", text.pending - 1)
        start = time.perf_counter()
        self.decoder.make(texts, n)
        seconds = time.perf_counter() - start
        made = [text.tokens(text.prompt).tolist() for text in texts]
        for text in texts:
            text.close()
        return seconds, made
