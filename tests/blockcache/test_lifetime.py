"""Dropped and collected in any order, interrupted, re-entered: memory in use stays, and nothing waits for ever."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from block_sources import Memory, equal_blocks

from lowbit.errors import LowbitError
from lowbit.kernels import BlockCache

BLOCKS = equal_blocks(100, 10_000)
BUDGET = 250_000
DEADLINE = 600
"""Seconds after which a wait is one for ever."""

CYCLES = """
import contextlib, gc, itertools, sys
from lowbit.kernels import BlockCache

def build():
    cache = BlockCache([sys.argv[1]], [(0, 4096 * i, 4096) for i in range(100)], 250_000)
    stack = contextlib.ExitStack()
    pin = cache.pinned(3)
    view = stack.enter_context(pin)
    return {"cache": cache, "stack": stack, "pin": pin, "view": view, "part": view[5:], "array": memoryview(view)}

names = list(build())
gc.disable()
for n in (1, 2, 3):
    for chosen in itertools.permutations(names, n):
        all = build()
        if sys.argv[2] == "kept":
            kept = all["cache"]
        if sys.argv[3] == "forgotten":
            all["stack"]._exit_callbacks.clear()
        cycle = [all[name] for name in chosen]
        cycle.append(cycle)
        del all, cycle
        gc.collect()
        if sys.argv[2] == "kept":
            assert not kept.closed
            kept.set_order(range(100))      # fails while a block is referenced
            kept.close()
print("sound")
"""


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "sound\n", "")


@pytest.mark.parametrize("cache", ["kept", "dropped"])
@pytest.mark.parametrize("pin", ["forgotten", "entered"])
def test_cycles_of_pins_views_and_caches_are_collected(path, cache, pin):
    run(CYCLES, path, cache, pin)


def test_a_pin_that_is_dropped_without_its_end_releases_its_block(path):
    with BlockCache([path], BLOCKS, BUDGET) as cache:
        for _ in range(100):
            cache.pinned(7).__enter__()
        cache.set_order(range(100))


def test_an_array_keeps_the_memory_of_a_cache_that_was_dropped(path, content):
    cache = BlockCache([path], BLOCKS, BUDGET)
    with cache.pinned(7) as view:
        array = np.frombuffer(view, np.uint8)
    cycle = [cache]
    cycle.append(cycle)
    del cache, view, cycle
    gc.collect()
    assert array.tobytes() == content[70_000:80_000]


IN_A_READ = """
import gc, sys, threading
from lowbit.kernels import BlockCache

class Source:
    def read_at(self, offset, n):
        if holder:
            holder.clear()      # the last reference, in a thread that the cache would wait for
            gc.collect()
            done.set()
        return bytes(n)

done = threading.Event()
for readers in (0, 1, 4):
    for cyclic in (False, True):
        done.clear()
        source = Source()
        cache = BlockCache([source], [(0, 4096 * i, 4096) for i in range(100)], 250_000, readers=readers)
        holder = [cache]
        if cyclic:
            source.cycle = [cache, source]
            del source
        if readers:
            cache.prefetch([0, 1, 2])
            del cache
        else:
            holder.append(cache.get)
            del cache
            holder[1](0)
        assert done.wait(20)
        gc.collect()
for thread in threading.enumerate():
    if thread.name.startswith("Thread-"):
        thread.join()
print("sound")
"""


def test_the_last_reference_may_go_in_the_middle_of_a_read():
    run(IN_A_READ)


OWN_CALLS = {
    "get": lambda cache: cache.get(1),
    "the same block": lambda cache: cache.get(0),
    "pinned": lambda cache: cache.pinned(1).__enter__(),
    "set_order": lambda cache: cache.set_order(range(100)),
    "close": lambda cache: cache.close(),
}


@pytest.mark.parametrize("readers", [0, 2])
@pytest.mark.parametrize("call", OWN_CALLS)
def test_a_source_that_asks_its_own_cache_is_told_so(content, readers, call):
    class Source(Memory):
        def read_at(self, offset, n):
            OWN_CALLS[call](caches[0])
            return super().read_at(offset, n)

    caches = [BlockCache([Source(content)], BLOCKS, BUDGET, readers=readers)]
    caught = []

    def use():
        try:
            caches[0].get(0)
        except LowbitError as error:
            caught.append(str(error))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert len(caught) == 1
    assert "its own cache" in caught[0]
    caches[0].close()


def test_a_source_may_use_what_its_own_cache_holds_already(content):
    class Source(Memory):
        def read_at(self, offset, n):
            return super().read_at(offset, n) if offset else bytes(reversed(cache.get(1)))

    with BlockCache([Source(content)], BLOCKS, BUDGET, readers=0) as cache:
        cache.get(1)
        assert cache.get(0) == content[10_000:20_000][::-1]


class Held(Memory):
    """Reads of other threads than the main one wait until they are let go."""

    def __init__(self, content):
        super().__init__(content)
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), False

    def read_at(self, offset, n):
        if threading.current_thread() is not threading.main_thread():
            self.begun.set()
            self.let_go.wait(DEADLINE)
            self.ended = True
        return super().read_at(offset, n)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("call", ["get", "set_order", "close"])
def test_ctrl_c_ends_the_wait_for_a_read_of_another_thread(content, call):
    source = Held(content)
    cache = BlockCache([source], BLOCKS, BUDGET, readers=1)
    cache.prefetch([5])
    assert source.begun.wait(DEADLINE)
    wait = {"get": lambda: cache.get(5), "set_order": lambda: cache.set_order(range(100)), "close": cache.close}[call]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not source.ended
    source.let_go.set()
    if call != "close":
        assert cache.get(5) == content[50_000:60_000]
        cache.set_order(range(100))
    cache.close()
    assert cache.closed


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("wait", ["get", "set_order"])
def test_a_signal_handler_may_use_the_cache_that_is_waited_for(content, wait):
    source = Held(content)
    cache = BlockCache([source], BLOCKS, BUDGET, readers=1)
    cache.prefetch([5])
    assert source.begun.wait(DEADLINE)
    seen = []

    def handler(*_):
        try:
            seen.append(cache.get(7))
        except LowbitError as error:
            seen.append(str(error))
        source.let_go.set()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        cache.get(5) if wait == "get" else cache.set_order(range(100))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) == 1
    assert seen[0] == content[70_000:80_000] or "would wait for this very thread" in seen[0]
    cache.close()


def test_a_cache_that_lives_to_the_end_of_the_interpreter_ends_in_silence(tmp_path):
    """What is reachable from a class of another module is taken apart last, when other modules are gone."""
    script = """
import sys
import lowbit.errors
from lowbit.kernels import BlockCache
cache = BlockCache([sys.argv[1]], [(0, 4096 * i, 4096) for i in range(20)], 250_000)
lowbit.errors.LowbitError.keeper = lambda: cache
cache.get(3)
"""
    path = tmp_path / "blocks"
    path.write_bytes(bytes(20 * 4096))
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=1200)
    assert (done.returncode, done.stderr) == (0, "")
