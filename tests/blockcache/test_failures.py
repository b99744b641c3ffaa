"""Broken disks, files that change, bad arguments: a clear error, and a cache that goes on or says why it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from block_sources import SIZE, Memory, equal_blocks

from lowbit.errors import FormatError, LowbitError, MemoryBudgetError
from lowbit.kernels import BlockCache

BLOCKS = equal_blocks(100, 10_000)
BUDGET = 250_000


@pytest.mark.parametrize("order", [[], list(range(100))])
@pytest.mark.parametrize("readers", [0, 4])
def test_a_read_error_is_raised_and_the_next_try_works(memory, content, order, readers):
    with BlockCache([memory], BLOCKS, BUDGET, readers=readers) as cache:
        memory.failing = {30_000, 990_000}
        cache.set_order(order)
        for i in range(100):
            if i in (3, 99):
                for _ in range(3):
                    with pytest.raises(OSError, match="memory") as caught:
                        cache.get(i)
                    assert caught.value.errno == errno.EIO
            else:
                assert cache.get(i) == content[10_000 * i : 10_000 * (i + 1)]
        memory.failing = set()
        for i in (3, 99, *range(100)):
            assert cache.get(i) == content[10_000 * i : 10_000 * (i + 1)]
        assert cache.stats()["errors"] >= 6


@pytest.mark.parametrize("code", [0, -5, 1 << 40, "5", None])
def test_an_error_number_that_is_none_becomes_eio(content, code):
    class Odd:
        def read_at(self, offset, n):
            error = OSError("odd")
            error.errno = code
            raise error

    with BlockCache([Odd()], BLOCKS, BUDGET) as cache, pytest.raises(OSError, match="Odd") as caught:
        cache.get(0)
    assert caught.value.errno == errno.EIO


def test_ctrl_c_while_an_object_is_asked_stays_what_it_is(content):
    class Interrupted:
        def read_at(self, offset, n):
            raise KeyboardInterrupt

    with BlockCache([Interrupted()], BLOCKS, BUDGET, readers=0) as cache, pytest.raises(KeyboardInterrupt):
        cache.get(0)


def test_any_exception_of_a_source_becomes_a_read_error_that_names_it(content):
    class Broken:
        def read_at(self, offset, n):
            if offset:
                return content[: n + 1]
            raise KeyError("who knows")

    with BlockCache([Broken()], BLOCKS, BUDGET, readers=0) as cache:
        with pytest.raises(OSError, match="Broken") as caught:
            cache.get(0)
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(OSError, match="Broken") as caught:
            cache.get(1)
        assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("end", [0, 4096, 500_000, 505_000, 509_999])
def test_a_file_truncated_while_open_is_an_error_for_the_blocks_beyond_its_end(path, content, direct, end):
    with BlockCache([path], BLOCKS, BUDGET, direct=direct) as cache:
        os.truncate(path, end)
        with pytest.raises(FormatError, match=r"blocks\.bin.*block 50 .*cut off"):
            cache.get(50)
        for i in range(end // 10_000):
            assert cache.get(i) == content[10_000 * i : 10_000 * (i + 1)]
        path.write_bytes(content)
        assert cache.get(50) == content[500_000:510_000]


def test_a_source_that_ends_early_is_truncated(content):
    with BlockCache([Memory(content[:5000])], BLOCKS, BUDGET) as cache:
        with pytest.raises(FormatError, match="cut off"):
            cache.get(0)
        with pytest.raises(FormatError, match="cut off"):
            cache.get(99)


def test_short_reads_are_continued(content):
    class Slow(Memory):
        def read_at(self, offset, n):
            return super().read_at(offset, min(n, 777))

    with BlockCache([Slow(content)], BLOCKS, BUDGET) as cache:
        cache.set_order(range(100))
        for i in range(100):
            assert cache.get(i) == content[10_000 * i : 10_000 * (i + 1)]


def test_a_closed_cache_says_so(path):
    cache = BlockCache([path], BLOCKS, BUDGET)
    with cache.pinned(1):
        for call in (cache.close, lambda: cache.set_order(range(100))):
            with pytest.raises(LowbitError, match="pinned"):
                call()
    cache.close()
    cache.close()
    assert cache.closed
    for call in (lambda: cache.get(0), lambda: cache.pinned(0).__enter__(), lambda: cache.set_order([1])):
        with pytest.raises(LowbitError, match="closed"):
            call()
    assert cache.stats()["misses"] == 1
    assert "closed" in repr(cache)


def test_closing_ends_the_waits_of_other_threads(content):
    slow = Memory(content, delay=0.2)
    cache = BlockCache([slow], BLOCKS, BUDGET, readers=1)
    caught = []

    def use(block):
        try:
            cache.get(block)
        except LowbitError as error:
            caught.append(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    cache.close()
    for thread in threads:
        thread.join()
    assert caught
    assert all("closed" in str(error) for error in caught)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_is_told_that_the_cache_is_its_parents(path, content):
    with BlockCache([path], BLOCKS, BUDGET) as cache:
        cache.set_order(range(100))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                cache.get(0)
            except LowbitError as error:
                code = 0 if "parent" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.get(0) == content[:10_000]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_signal_ends_the_wait_for_a_slot(path):
    def interrupt(*_):
        raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with BlockCache([path], BLOCKS, 1, readers=0) as cache:
            pass
    except MemoryBudgetError as error:
        smallest = int(str(error).split()[-1])
    try:
        with (
            BlockCache([path], BLOCKS, smallest, readers=0) as cache,
            cache.pinned(0),
            cache.pinned(1),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(InterruptedError, match="enough"):
                cache.get(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([], "0 blocks"),
        ([(0, 0, 0)], "block 0, 0 bytes at 0, lies outside"),
        ([(0, 0, 1), (0, -1, 5)], "block 1, 5 bytes at -1, lies outside"),
        ([(0, SIZE, 1)], "lies outside"),
        ([(0, SIZE - 5, 6)], "lies outside"),
        ([(1, 0, 1)], "source 1: block 0"),
        ([(-1, 0, 1)], "source -1: block 0"),
        ([(0, 2**63 - 1, 2**63 - 1)], "lies outside"),
        ([(0, 0, -(2**63))], "lies outside"),
        ([(0, 1)], "integers"),
        ([0, 1, 2], "integers"),
        ([(0.0, 1.0, 2.0)], "integers"),
        ([("a", "b", "c")], "integers"),
    ],
)
def test_a_table_that_does_not_fit_the_sources_is_refused(path, blocks, reason):
    with pytest.raises(FormatError, match=reason):
        BlockCache([path], blocks, BUDGET)


@pytest.mark.parametrize("budget", [-1, 0, 1, 4096, 20_000, -(2**80)])
def test_too_small_a_budget_names_the_smallest_that_works(path, budget):
    with pytest.raises(MemoryBudgetError, match="too small") as caught:
        BlockCache([path], BLOCKS, budget)
    smallest = int(str(caught.value).split()[-1])
    with pytest.raises(MemoryBudgetError, match=f" {smallest}$"):
        BlockCache([path], BLOCKS, smallest - 1)
    with BlockCache([path], BLOCKS, smallest) as cache:
        cache.set_order(range(100))
        cache.get(5)
        with pytest.raises(MemoryBudgetError) as caught:
            cache.set_order(range(50))
    smallest = int(str(caught.value).split()[-2])
    with BlockCache([path], BLOCKS, smallest) as cache:
        cache.set_order(range(50))
        for i in range(100):
            cache.get(i)
        assert cache.stats()["peak_memory"] <= smallest


def test_other_bad_arguments_are_refused(path, memory, tmp_path):
    with pytest.raises(FormatError, match="number of bytes"):
        BlockCache([path], BLOCKS, "64MB")
    with pytest.raises(FormatError, match="readers"):
        BlockCache([path], BLOCKS, BUDGET, readers=-1)
    with pytest.raises(FormatError, match="sequence"):
        BlockCache(path, BLOCKS, BUDGET)
    with pytest.raises(FormatError, match="direct"):
        BlockCache([memory], BLOCKS, BUDGET, direct=True)
    with pytest.raises(FileNotFoundError):
        BlockCache([tmp_path / "nothing"], BLOCKS, BUDGET)
    with pytest.raises(OSError, match=r"descriptor|handle"):
        BlockCache([9999], BLOCKS, BUDGET)
    with pytest.raises(TypeError):
        BlockCache([None], BLOCKS, BUDGET)
    with BlockCache([path], BLOCKS, BUDGET) as cache:
        for block in (-1, 100):
            with pytest.raises(IndexError, match="100"):
                cache.get(block)
            with pytest.raises(IndexError, match="100"):
                cache.pinned(block)
        for order in ([0, 0], [100], [-1], [1.5], [[1]]):
            with pytest.raises(FormatError):
                cache.set_order(order)
        with pytest.raises(FormatError, match="numbered"):
            cache.prefetch([100])
        with pytest.raises(LowbitError, match="once"):
            cache.__init__([path], BLOCKS, BUDGET)
        assert len(cache.get(0)) == 10_000
    with pytest.raises(LowbitError, match="never made"):
        BlockCache.__new__(BlockCache).get(0)


def test_descriptors_are_closed_whether_or_not_the_cache_was_made(path):
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("no /proc to count descriptors in")
    before = len(os.listdir(folder))
    for budget in (1, BUDGET):
        for blocks in (BLOCKS, [(0, SIZE, 1)]):
            with contextlib.suppress(LowbitError):
                BlockCache([path, path], blocks, budget).get(0)
    assert len(os.listdir(folder)) == before


MEASURE = """
import sys
import numpy as np
from lowbit.kernels import BlockCache

def rss():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) << 10

path, budget = sys.argv[1], int(sys.argv[2])
n, length = 600, 100_000
table = np.stack([np.zeros(n, np.int64), np.arange(n) * length, np.full(n, length)], 1)
BlockCache([path], table[:2], 1 << 20).set_order([1, 0])
before, most = rss(), 0
with BlockCache([path], table, budget) as cache:
    for order in ([], range(n)):
        cache.set_order(order)
        for i in range(2 * n):
            with cache.pinned(i % n) as view:
                assert view[0] == i % n % 251
            if i % 50 == 0:
                most = max(most, rss())
print(most - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc to read the memory of a process from")
@pytest.mark.parametrize("budget", [8 << 20, 32 << 20])
def test_the_memory_of_the_process_grows_by_no_more_than_the_budget(tmp_path, budget):
    file = tmp_path / "large.bin"
    with file.open("wb") as out:
        for i in range(600):
            out.write(np.full(100_000, i % 251, np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file), str(budget)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= budget * 1.05
