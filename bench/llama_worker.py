"""Worker: llama.cpp through llama-cpp-python, with its defaults (mapped file, flash attention, float16 cache).

Only calls of `llama_decode` are timed: choosing the token from the logits is not.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as lib
import numpy as np
from worker import memory, repeat, serve


@lib.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Errors come back as answers; the rest is not needed."""


lib.llama_log_set(_quiet, ctypes.c_void_p(0))
lib.llama_backend_init()


class Llama:
    """A model with one sequence."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_ubatch = min(context, 512)
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp gives no context of {context} tokens")
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.prompt: list[int] = []

    def forward(self, tokens: list[int]) -> float:
        """Append tokens, with the logits of the last; return the seconds."""
        array = (lib.llama_token * len(tokens))(*tokens)
        batch = lib.llama_batch_get_one(array, len(tokens))
        start = time.perf_counter()
        code = lib.llama_decode(self.context, batch)
        seconds = time.perf_counter() - start
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        return seconds

    def likeliest(self) -> int:
        """The greedy choice."""
        return int(np.ctypeslib.as_array(lib.llama_get_logits(self.context), (self.n_vocab,)).argmax())

    def prefill(self, prompt: list[int], threads: int) -> tuple[float, int]:
        """As `subject.Subject.prefill`."""
        lib.llama_set_n_threads(self.context, threads, threads)
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.prompt = prompt
        seconds = self.forward(prompt)
        return seconds, self.likeliest()

    def decode(self, n: int, threads: int) -> tuple[float, list[int]]:
        """As `subject.Subject.decode`."""
        lib.llama_set_n_threads(self.context, threads, threads)
        seconds, ids, token = 0.0, [], self.prompt[-1]
        for _ in range(n):
            seconds += self.forward([token])
            token = self.likeliest()
            ids.append(token)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, len(self.prompt), -1)
        return seconds, ids


llama: Llama


def version() -> dict[str, Any]:
    """Name the engine."""
    return {"version": lib.__version__, "features": lib.llama_print_system_info().decode().strip(" |")}


def load(path: str, context: int, threads: int) -> dict[str, Any]:
    """Load a model for `prefill` and `decode`."""
    global llama
    llama = Llama(path, context, threads)
    return {}


def prefill(prompt: list[int], threads: int, least_seconds: float) -> dict[str, Any]:
    """Time taking a prompt in."""
    seconds, token = repeat(lambda: llama.prefill(prompt, threads), least_seconds)
    return {"seconds": seconds, "ids": [token]}


def decode(prompt: list[int], n: int, threads: int, least_seconds: float) -> dict[str, Any]:
    """Time n tokens after a prompt, which is taken in first unless it is there already."""
    if llama.prompt != prompt:
        llama.prefill(prompt, threads)
    seconds, ids = repeat(lambda: llama.decode(n, threads), least_seconds)
    return {"seconds": seconds, "ids": ids}


def load_as_users_do(path: str, threads: int, prompt: list[int]) -> dict[str, Any]:
    """Load, and go on to the first token."""
    before = memory()
    start = time.perf_counter()
    model = Llama(path, 512, threads)
    loaded = time.perf_counter()
    after = memory()
    ids = [model.prefill(prompt, threads)[1]]
    first = time.perf_counter()
    return {
        "load_seconds": loaded - start, "first_token_seconds": first - start, "ids": ids,
        "before": before, "after": after, "then": memory(),
    }  # fmt: skip


if __name__ == "__main__":
    serve({
        "version": version, "load": load, "prefill": prefill, "decode": decode, "load_as_users_do": load_as_users_do,
    })  # fmt: skip
