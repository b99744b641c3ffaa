"""lowbit as the benchmarks drive it: prefill and decode of one sequence, timed apart."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lowbit._kernels.sampler import Sampler
from lowbit._kernels.transformer import KVCache
from lowbit.formats.base import ModelFile
from lowbit.model import build

__all__ = ["Subject"]


class Subject:
    """A model with one sequence.

    Parameters
    ----------
    file : ModelFile
    context : int
        Room, in tokens.
    threads : int
        Most threads that will be asked for.
    """

    def __init__(self, file: ModelFile, context: int, threads: int) -> None:
        self.transformer, self.config = build(file, threads, context)
        self.cache = KVCache(self.transformer, context)
        self.prompt: list[int] = []

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

    def prefill(self, prompt: Sequence[int], threads: int = 1) -> tuple[float, int]:
        """Take a prompt in; return the seconds, and the likeliest next token."""
        self.transformer.threads = threads
        self.prompt = list(prompt)
        ids = np.array(prompt, np.int32)
        self.cache.truncate(0)
        start = time.perf_counter()
        self.transformer.prefill(self.cache, ids)
        seconds = time.perf_counter() - start
        return seconds, int(self.transformer.last_logits().argmax())

    def decode(self, n: int, threads: int = 1) -> tuple[float, list[int]]:
        """Feed the prompt's last token once more and continue greedily; return the seconds, and the n tokens.

        The cache goes back to the end of the prompt, so that the next call does the same again.
        """
        self.transformer.threads = threads
        sampler = Sampler(self.config.vocab_size, 0.0, 0, 1.0, 0.0, 1.0, 0)
        never = np.empty(0, np.int32)
        start = time.perf_counter()
        ids = self.transformer.decode(self.cache, sampler, self.prompt[-1], n, never)
        seconds = time.perf_counter() - start
        self.cache.truncate(len(self.prompt))
        return seconds, ids
