"""What may come at any moment: a signal between two lines of the engine, the garbage collector or a fork in a step."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import sys
import threading
import traceback

import pytest

from lowbit import Engine, LowbitError
from lowbit.engine import engine as engine_module
from lowbit.engine import sequence

PREFIX = [1, *range(10, 150)]
PROMPTS = [[*PREFIX, 5], [*PREFIX, 6], [1, 7]]
OPTIONS = {"max_tokens": 2, "seed": 1}
BOOKKEEPING = ("_admit", "_begin", "_set_aside", "_settle", "_forget", "begin", "set_aside")


def interrupted_at(k, work):
    """Raise KeyboardInterrupt before the k-th line of the engine's bookkeeping; whether there are so many."""
    left = k

    def line(frame, event, argument):
        nonlocal left
        left -= event == "line"
        if left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return line

    def call(frame, event, argument):
        ours = frame.f_code.co_filename in (engine_module.__file__, sequence.__file__)
        return line if ours and frame.f_code.co_name in BOOKKEEPING else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_signal_at_any_line_loses_no_request_and_computes_none_twice(model, monkeypatch, at_once):
    """One waits for the other's beginning, one is not read, one is cancelled; then the caller presses Ctrl-C."""
    monkeypatch.setattr(sequence, "MOST_UNREAD", 1)
    pool, want = model._decoder.pool, [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]
    for k in itertools.count(1):
        pool.clear()
        engine = Engine(model, max_sequences=at_once, thread=False)
        unread = engine.submit([1, 8], max_tokens=30, seed=3, logit_bias={1: -1000.0, 2: -1000.0})
        next(unread)
        cancelled, *streams = [engine.submit(prompt, **OPTIONS) for prompt in (PROMPTS[0], *PROMPTS)]
        cancelled._request.cancelled = True
        more = interrupted_at(k, streams[-1].result)
        assert [stream.result().tokens for stream in streams] == want, k
        assert len(unread.result().tokens) == 30, k
        assert (engine._running, list(engine._waiting), pool.held, pool.sequences) == ([], [], 0, ()), k
        if not more:
            break
    assert k > 100


def test_a_stream_that_is_collected_amid_a_step_of_another_engine_gives_its_memory_back(model, monkeypatch):
    """A generator that was read for a part is in a circle, which the collector finds where it likes."""
    circle = [model.stream([1, 5], max_tokens=100, logit_bias={1: -1000.0, 2: -1000.0})]
    circle.append(circle)
    next(circle[0])
    assert model._decoder.pool.held
    with Engine(model) as engine:
        admit, found = engine._admit, threading.Event()

        def admit_and_collect():
            gc.collect()
            found.set()
            admit()

        monkeypatch.setattr(engine, "_admit", admit_and_collect)
        gc.disable()
        try:
            del circle
            stream = engine.submit([1, 6], max_tokens=1)
            assert found.wait(30)
        finally:
            gc.enable()
        ended = threading.Thread(target=stream.result, daemon=True)  # without the lock nobody would come back
        ended.start()
        ended.join(30)
        assert not ended.is_alive(), "the engine waits for itself"
    assert model._decoder.pool.held == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_amid_a_step_has_all_of_the_memory_and_none_of_the_streams(model):
    model._decoder.pool.resize(5, 5)  # one whole context
    want = model.generate([1, 6], **OPTIONS).tokens
    read = model.stream([1, 5], max_tokens=200, logit_bias={1: -1000.0, 2: -1000.0})
    next(read)
    waiting = model._engine.submit([1, 7], max_tokens=1)
    stepping, over = threading.Event(), threading.Event()

    def step():
        with model._engine._turn, model._decoder.lock:
            stepping.set()
            over.wait(60)

    thread = threading.Thread(target=step)
    thread.start()
    assert stepping.wait(30)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)  # whoever waits for a thread of the parent's waits for ever
            with Engine(model) as engine:
                assert engine.submit([1, 6], **OPTIONS).result().tokens == want
            with pytest.raises(LowbitError, match="parent process"):
                asyncio.run(waiting._finish())  # which is what `await` does
            with pytest.raises(LowbitError, match="parent process"):
                waiting.result()
            with pytest.raises(LowbitError, match="parent process"):
                list(read)
            os._exit(0 if model.generate([1, 6], **OPTIONS).tokens == want else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        thread.join()
    assert "".join(read)
