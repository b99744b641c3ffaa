"""lowbit as the benchmarks drive it: prefill and decode of one or more sequences, timed apart."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lowbit._kernels.sampler import Sampler
from lowbit._kernels.transformer import KVCache
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
        self.transformer, self.config = build(file, threads, context)
        self.caches = [KVCache(self.transformer, context) for _ in range(sequences)]
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
        self.transformer.threads = threads
        self.prompts[sequence] = list(prompt)
        ids = np.array(prompt, np.int32)
        self.caches[sequence].truncate(0)
        start = time.perf_counter()
        self.transformer.prefill(self.caches[sequence], ids)
        seconds = time.perf_counter() - start
        return seconds, int(self.transformer.last_logits().argmax())

    def decode(self, n: int, threads: int = 1, sequences: int = 1) -> tuple[float, list[list[int]]]:
        """Feed the last token of each prompt once more and continue greedily; return the seconds, and n tokens of each.

        The caches go back to the ends of the prompts, so that the next call does the same again.
        """
        self.transformer.threads = threads
        samplers = [Sampler(self.config.vocab_size, 0.0, 0, 1.0, 0.0, 1.0, 0) for _ in range(sequences)]
        pending = np.array([prompt[-1] for prompt in self.prompts[:sequences]], np.int32)
        lengths = [cache.length for cache in self.caches[:sequences]]
        never = np.empty(0, np.int32)
        start = time.perf_counter()
        ids = self.transformer.decode(self.caches[:sequences], samplers, pending, n, never)
        seconds = time.perf_counter() - start
        for cache, length in zip(self.caches, lengths):
            cache.truncate(length)
        return seconds, ids
