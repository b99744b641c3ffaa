"""Ctrl-C ends a pass between two layers, and what comes after it is what a fresh model would give."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

import lowbit
from lowbit._kernels.sampler import Sampler
from lowbit._kernels.transformer import KVCache

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")

LONG = 6000
NONE = np.zeros(0, np.int32)
PROMPT = np.arange(LONG, dtype=np.int32) % 300


@pytest.fixture
def path(write_llama):
    """A model for which `LONG` tokens take very many times as long as one pass."""
    return write_llama(vocab=300, hidden=64, wide=128, keys={"context_length": LONG + 100})


def interrupted(cache, work):
    """Press Ctrl-C as soon as `work` has lengthened the sequence, of which much is to come then."""
    main = threading.get_ident()
    done = threading.Event()
    start = cache.length

    def press():
        while cache.length <= start and not done.wait(0.001):
            pass
        if not done.is_set():
            signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def outcome(model):
    return model.logits([1, 2, 3]).tobytes(), model.generate([1, 2, 3], max_tokens=9, seed=1).tokens


@pytest.mark.parametrize("name", ["prompt", "logits", "vectors", "decode"])
def test_ctrl_c_ends_a_pass_and_the_next_one_is_as_ever(path, name):
    model = lowbit.load(path, threads=2)
    transformer = model._transformer
    cache = KVCache(transformer, LONG)
    if name == "decode":
        transformer.prefill(cache, PROMPT[:1])
        cache.truncate(0)
        sampler = Sampler(300, 0.0, 0, 1.0, 0.0, 1.0, 1)
        interrupted(cache, lambda: transformer.decode([cache], [sampler], PROMPT[1:2], LONG - 1, NONE))
    elif name == "vectors":
        interrupted(cache, lambda: transformer.hidden_states(cache, PROMPT))
    else:
        interrupted(cache, lambda: transformer.prefill(cache, PROMPT, name == "logits"))
    assert 0 < cache.length < LONG - 1
    assert outcome(model) == outcome(lowbit.load(path, threads=1))


def test_a_text_after_an_interrupted_one_is_as_ever(path):
    model = lowbit.load(path, threads=1)
    want = model.generate([1, 2, 3], max_tokens=9, seed=1).tokens
    interrupted(model._kept.cache, lambda: model.generate(PROMPT.tolist(), max_tokens=40))
    assert model.generate([1, 2, 3], max_tokens=9, seed=1).tokens == want
    assert model.generate([*PROMPT[:300].tolist()], max_tokens=9, seed=1).tokens == (
        lowbit.load(path, threads=1).generate([*PROMPT[:300].tolist()], max_tokens=9, seed=1).tokens
    )
