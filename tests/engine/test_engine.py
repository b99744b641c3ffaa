"""The engine: queues, limits, cancelling, threads, asyncio, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lowbit import ContextLengthError, Engine, LowbitError, MemoryBudgetError, QueueFullError
from lowbit.engine import State, sequence
from lowbit.engine.scheduler import Pace

PROMPT = [1, *range(10, 40)]
OPTIONS = {"max_tokens": 12, "seed": 4}


@pytest.fixture
def engine(model):
    with Engine(model) as engine:
        yield engine


def test_streams_give_the_text_that_generate_gives(model, engine):
    want = model.generate(PROMPT, **OPTIONS)
    assert "".join(engine.submit(PROMPT, **OPTIONS)) == want.text
    assert engine.submit(PROMPT, **OPTIONS).result().tokens == want.tokens


def test_a_text_without_a_bound_ends_with_the_context(model, engine):
    out = engine.submit(PROMPT, max_tokens=2**31 - 1, seed=4, logit_bias={1: -1000, 2: -1000}).result()
    assert out.finish_reason == "context"
    assert out.prompt_tokens + len(out.tokens) == model.context + 1, "the last token needs no place"


def test_asyncio_awaits_whole_texts(model, engine):
    async def both():
        return await asyncio.gather(*(_whole(engine.submit(PROMPT, max_tokens=12, seed=seed)) for seed in range(2)))

    async def _whole(stream):
        return await stream

    wanted = [model.generate(PROMPT, max_tokens=12, seed=seed).tokens for seed in range(2)]
    assert [out.tokens for out in asyncio.run(both())] == wanted
    assert not engine.listeners


def test_asyncio_reads_many_streams_at_once(model, engine):
    async def read(seed):
        return "".join([piece async for piece in engine.submit(PROMPT, max_tokens=12, seed=seed)])

    async def all_of_them():
        return await asyncio.gather(*(read(seed) for seed in range(9)))

    assert asyncio.run(all_of_them()) == [model.generate(PROMPT, max_tokens=12, seed=seed).text for seed in range(9)]
    assert not engine.listeners


def test_callers_in_many_threads_share_a_model(model, load):
    found = {}

    def call(seed):
        found[seed] = model.generate(PROMPT, max_tokens=20, seed=seed).tokens

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = load()
    assert found == {seed: fresh.generate(PROMPT, max_tokens=20, seed=seed).tokens for seed in range(12)}


def test_a_known_prompt_is_not_computed_again(model):
    prompt = [1, *range(3, 203)]
    first = model.generate(prompt, max_tokens=3, seed=1)
    again = model.generate(prompt, max_tokens=3, seed=1)
    longer = model.generate([*prompt[:150], 9, 9, 9], max_tokens=3, seed=1)
    assert (first.timings.reused_tokens, again.timings.reused_tokens) == (0, 200)
    assert longer.timings.reused_tokens == 150, "two full blocks, and a copy of a part of the third"
    assert again.tokens == first.tokens


def test_one_of_several_with_a_new_prefix_goes_first(model):
    engine = Engine(model, thread=False)
    prompt = [1, *range(3, 203)]
    streams = [engine.submit([*prompt, i], max_tokens=2, seed=i) for i in range(5, 9)]
    for stream in streams:
        stream.result()
    stats = engine.stats()
    assert stats["prompt_tokens"] - stats["known_tokens"] < 202 + 3 * 64


def test_branches_of_one_prompt_share_even_a_part_of_a_block(model):
    model.generate(PROMPT, max_tokens=0)
    outs = model.generate([PROMPT] * 4, max_tokens=5, temperature=3.0)
    assert [out.timings.reused_tokens for out in outs] == [len(PROMPT) - 1] * 4


def test_callers_with_another_salt_learn_nothing_of_each_other(model):
    engine = Engine(model, thread=False)
    prompt = [1, *range(3, 203)]
    for salt in ("a", "b", "b"):
        engine.submit(prompt, max_tokens=1, cache_salt=salt).result()
    assert engine.stats()["known_tokens"] == 200


def test_a_cancelled_request_frees_its_blocks_within_a_step(model):
    engine = Engine(model, thread=False)
    streams = [engine.submit([1, *range(3, 203)], max_tokens=100, seed=i) for i in range(3)]
    streams[1].cancel()  # in the queue
    engine._drive()
    streams[0].cancel()  # in its prompt, or after it
    engine._drive()
    assert [s.state for s in streams[:2]] == [State.CANCELLED] * 2
    assert len(model._decoder.pool.sequences) == 1
    with pytest.raises(LowbitError, match="cancelled"):
        streams[0].result()
    assert len(streams[2].result().tokens) > 0
    assert model._decoder.pool.held == 0


def test_a_stream_that_is_dropped_is_cancelled(model):
    engine = Engine(model, thread=False)
    stream = engine.submit(PROMPT, max_tokens=100, logit_bias={1: -1000, 2: -1000})
    next(stream)
    del stream
    gc.collect()
    engine._drive()
    assert engine.stats()["cancelled"] == 1
    assert model._decoder.pool.held == 0


def test_what_cannot_be_is_refused_before_any_work(model):
    engine = Engine(model, thread=False, max_queue=2, max_queue_tokens=400)
    with pytest.raises(ContextLengthError):
        engine.submit(list(range(3, 3 + 250)) * 2)
    for wrong in ({"seed": -1}, {"logit_bias": {999: 1.0}}, {"logit_bias": {3: 1e9}}, {"presence_penalty": 1e3},
                  {"frequency_penalty": "x"}, {"max_tokens": -1}, {"logprobs": 101}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            engine.submit(PROMPT, **wrong)
    with pytest.raises(ValueError, match="vocabulary"):
        engine.submit([1, 5000])
    assert engine.stats()["waiting"] == 0
    streams = [engine.submit(PROMPT, max_tokens=1) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests"):
        engine.submit(PROMPT)
    for stream in streams:
        stream.result()
    assert engine.stats()["steps"] > 0


def test_a_queue_is_bounded_in_tokens(model):
    engine = Engine(model, thread=False, max_queue_tokens=100)
    engine.submit([1] * 90, max_tokens=1)
    with pytest.raises(QueueFullError, match="100 tokens"):
        engine.submit([1] * 20, max_tokens=1)


def test_the_queue_may_change_while_it_is_counted(model):
    engine = Engine(model, thread=False, max_queue_tokens=1000)

    class Leaving:
        """Is taken out of the queue by the engine's thread just when somebody looks at it."""

        @property
        def ids(self):
            engine._waiting.remove(self)
            return []

    engine._waiting.extend([Leaving(), Leaving()])
    assert engine.submit(PROMPT, max_tokens=1).result().tokens


def test_a_text_that_never_fits_into_the_pool_is_refused(model):
    engine = Engine(model, thread=False, kv_ram=3 * model._decoder.pool.block_bytes)
    with pytest.raises(MemoryBudgetError, match="keys and values"):
        engine.submit(PROMPT, max_tokens=200)
    assert len(engine.submit(PROMPT, max_tokens=100, temperature=5.0).result().tokens) > 0
    with pytest.raises(MemoryBudgetError, match=r"kv_ram: .* block .* not 100$"):
        Engine(model, kv_ram=100)


@pytest.mark.parametrize(
    "setting", [{"max_sequences": 0}, {"max_queue": True}, {"step_ms": 0}, {"step_ms": 1e9}, {"batch": 0}]
)
def test_settings_out_of_range_are_refused(model, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Engine(model, **setting)


def test_a_closed_engine_ends_what_it_has_and_takes_nothing_more(model):
    engine = Engine(model)
    streams = [engine.submit(PROMPT, max_tokens=250, seed=i) for i in range(30)]
    engine.close()
    engine.close()
    assert {stream.state for stream in streams} <= {State.CANCELLED, State.FINISHED}
    with pytest.raises(LowbitError, match="closed"):
        engine.submit(PROMPT)
    assert model._decoder.pool.held == 0
    assert len(model.generate(PROMPT, max_tokens=2).tokens) <= 2, "the model itself lives on"


def test_a_fault_ends_the_requests_of_its_batch_and_not_the_engine(model, monkeypatch):
    engine = Engine(model, thread=False)
    want = model.generate(PROMPT, **OPTIONS).tokens
    real, failed = type(engine)._step, []

    class Failing:
        def __init__(self, decoder):
            self._decoder = decoder

        def __getattr__(self, name):
            return getattr(self._decoder, name)

        def step(self, *args):
            if not failed:
                failed.append(True)
                raise OSError("the disk is gone")
            return self._decoder.step(*args)

    engine._decoder = Failing(engine._decoder)
    assert real is type(engine)._step
    with pytest.raises(OSError, match="the disk is gone"):
        engine.submit(PROMPT, **OPTIONS).result()
    assert engine.submit(PROMPT, **OPTIONS).result().tokens == want
    assert engine.stats()["failed"] == 1
    assert model._decoder.pool.held == 0


def test_when_the_engine_itself_dies_everybody_is_told(model, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    engine = Engine(model)
    monkeypatch.setattr(engine, "_admit", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.submit(PROMPT).result()
    with pytest.raises(LowbitError, match="closed division by zero"):
        engine.submit(PROMPT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_model_but_no_engine(model):
    want = model.generate(PROMPT, **OPTIONS).tokens
    engine = Engine(model)
    engine.submit(PROMPT, max_tokens=2).result()
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(LowbitError, match="child process"):
                engine.submit(PROMPT)
            os._exit(0 if model.generate(PROMPT, **OPTIONS).tokens == want else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.close()


def test_a_signal_handler_cannot_call_the_engine_that_it_interrupts(model):
    engine = Engine(model, thread=False)
    with engine._turn as mine:
        assert mine
        with pytest.raises(LowbitError, match="own steps"):
            engine.submit(PROMPT).result()


def test_a_slow_reader_is_not_run_ahead_of(load):
    model = load()
    engine = Engine(model, thread=False)
    slow = engine.submit(PROMPT, max_tokens=280, temperature=5.0, seed=3, logit_bias={1: -1000.0, 2: -1000.0})
    next(slow)
    request = slow._request
    before = sequence.MOST_UNREAD
    sequence.MOST_UNREAD = 8
    try:
        for _ in range(40):
            engine._drive()
        assert request.made < 200, "far from its end"
        rest = "".join(slow)
    finally:
        sequence.MOST_UNREAD = before
    want = load().generate(PROMPT, max_tokens=280, temperature=5.0, seed=3, logit_bias={1: -1000.0, 2: -1000.0}).text
    assert want.endswith(rest)


def test_a_text_that_is_set_aside_goes_on_to_the_same_end(load, monkeypatch):
    """Memory for one whole context: whoever does not read gives it up, and computes anew when it is read on."""
    monkeypatch.setattr(sequence, "MOST_UNREAD", 1)
    model, options = load(), {"max_tokens": 280, "temperature": 3.0, "logit_bias": {1: -1000.0, 2: -1000.0}}
    model._decoder.pool.resize(5, 5)
    engine = Engine(model, thread=False)
    slow = engine.submit(PROMPT, seed=1, **options)
    start = next(slow)
    other = engine.submit([1, 7, 8], seed=2, **options).result()
    assert slow.state is State.QUEUED
    assert start + "".join(slow) == load().generate(PROMPT, seed=1, **options).text
    assert other.tokens == load().generate([1, 7, 8], seed=2, **options).tokens
    assert model._decoder.pool.held == 0


def test_engines_that_share_a_pool_wait_for_each_other(load):
    """Memory for one whole context, and two engines of a model that each want it: nobody's blocks are given away."""
    model, options = load(), {"max_tokens": 200, "temperature": 3.0, "logit_bias": {1: -1000.0, 2: -1000.0}}
    prompts = [[1, 7 + n] for n in range(6)]
    want = [load().generate(prompt, seed=n, **options).tokens for n, prompt in enumerate(prompts)]
    model._decoder.pool.resize(5, 5)
    with Engine(model) as threaded:
        streams = [threaded.submit(prompt, seed=n, **options) for n, prompt in enumerate(prompts)]
        with ThreadPoolExecutor(3) as pool:
            mine = pool.map(lambda n: model.generate(prompts[n], seed=n, **options).tokens, range(6))
            assert list(mine) == want
        assert [stream.result().tokens for stream in streams] == want
    assert model._decoder.pool.held == 0


def test_a_text_that_nobody_reads_gives_its_memory_to_another_engine(load):
    model, options = load(), {"max_tokens": 280, "temperature": 3.0, "logit_bias": {1: -1000.0, 2: -1000.0}}
    model._decoder.pool.resize(5, 5)
    left = model.stream(PROMPT, seed=1, **options)
    start = next(left)
    with Engine(model) as engine:
        assert engine.submit([1, 7, 8], seed=2, **options).result().tokens
        assert start + "".join(left) == load().generate(PROMPT, seed=1, **options).text
    assert model._decoder.pool.held == 0


def test_memory_of_many_requests_is_flat(model):
    engine = Engine(model, thread=False)
    pool, blocks = model._decoder.pool, []
    rng = np.random.default_rng(0)
    for i in range(400):
        stream = engine.submit(rng.integers(3, 280, 1 + i % 150).tolist(), max_tokens=3, seed=i)
        if i % 7 == 0:
            stream.cancel()
        else:
            stream.result()
        blocks.append(pool.allocated)
    engine.settle()
    assert pool.held == 0
    assert max(blocks[200:]) <= max(blocks[:200])
    assert max(blocks) <= 5 + 3 + 1, "one context is remembered, one text runs"


def test_prompts_beside_running_texts_get_a_share_of_rows_and_more_once_their_cost_is_known():
    pace = Pace(50, 256)
    assert pace.rows() == 16
    pace.learn(0.010, 0, 1)
    pace.learn(0.010 + 16 * 0.001, 16, 1)
    assert pace.rows() == 40  # 0.8 of 50 ms at 1 ms each
    for _ in range(9):
        pace.learn(0.010 + 40 * 0.004, 40, 1)
    assert pace.rows() == 10
    pace.learn(10.0, 1, 1)
    assert pace.rows() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
def test_ctrl_c_while_waiting_for_a_threaded_engine_leaves_it_running(model):
    import signal

    with Engine(model) as engine:
        main = threading.get_ident()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                [engine.submit(PROMPT, max_tokens=200, temperature=5.0, seed=i).result() for i in itertools.count()]
        finally:
            timer.join()
            signal.signal(signal.SIGINT, before)
        assert engine.submit(PROMPT, **OPTIONS).result().tokens == model.generate(PROMPT, **OPTIONS).tokens
