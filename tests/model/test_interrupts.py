"""Ctrl-C ends a pass between two layers, and what comes after it is what a fresh model would give."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

import lowbit
from lowbit._kernels.decoder import Batch
from lowbit._kernels.sampler import Sampler
from lowbit._kernels.sequence import Sequence

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")

LONG = 6000
PROMPT = np.arange(LONG, dtype=np.int32) % 300


@pytest.fixture
def path(write_llama):
    """A model for which `LONG` tokens take very many times as long as one pass."""
    return write_llama(vocab=300, hidden=64, wide=128, keys={"context_length": LONG + 100})


def interrupted(length, work):
    """Press Ctrl-C as soon as `work` has lengthened a sequence, of which much is to come then."""
    main = threading.get_ident()
    done = threading.Event()

    def press():
        while not length() and not done.wait(0.001):
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


@pytest.mark.parametrize("name", ["last", "every", "states", "decode"])
def test_ctrl_c_ends_a_pass_and_the_next_one_is_as_ever(path, name):
    model = lowbit.load(path, threads=2)
    decoder = model._decoder
    if name == "decode":
        sampler = Sampler(300, 0.0, 0, 1.0, 0.0, 1.0, 1)
        sequence = Sequence(decoder.pool, PROMPT[:1], LONG, sampler=sampler, most=LONG)
        interrupted(lambda: sequence.length, lambda: decoder.make([sequence], LONG))
    else:
        sequence = Sequence(decoder.pool, PROMPT, LONG, reuse=False)
        interrupted(lambda: sequence.length, lambda: decoder.read(sequence, name))
    assert 0 < sequence.length < LONG - 1
    sequence.close()
    assert outcome(model) == outcome(lowbit.load(path, threads=1))


def test_a_step_that_is_given_up_makes_no_pass_and_the_next_one_is_as_ever(path):
    model = lowbit.load(path, threads=2)
    sequence, batch = Sequence(model._decoder.pool, PROMPT, LONG, reuse=False), Batch(model._decoder)
    batch.add(sequence, 100)
    batch.give_up()
    assert model._decoder.step(batch) == 0
    assert sequence.length == 0
    sequence.close()
    assert outcome(model) == outcome(lowbit.load(path, threads=1))


@pytest.mark.parametrize("use", ["generate", "stream", "logits", "batch", "embed"])
def test_a_text_after_an_interrupted_one_is_as_ever(path, use):
    model, prompt = lowbit.load(path, threads=1), PROMPT.tolist()
    want = outcome(model)
    calls = {
        "generate": lambda: model.generate(prompt, max_tokens=40),
        "stream": lambda: list(model.stream(prompt, max_tokens=40)),
        "logits": lambda: model.logits(prompt),
        "batch": lambda: model.generate([prompt, prompt[1:]], max_tokens=9),
        "embed": lambda: model.embed([prompt, prompt[1:]]),
    }
    interrupted(lambda: sum(s.length for s in model._decoder.pool.sequences), calls[use])
    assert outcome(model) == want
    assert model._decoder.pool.held == 0
    again = model.generate(prompt[:300], max_tokens=9, seed=1).tokens
    assert again == lowbit.load(path, threads=1).generate(prompt[:300], max_tokens=9, seed=1).tokens
