"""What comes out of the cache is what is in the file, in whatever order, kind of read and division of memory."""

from __future__ import annotations

import os
import random
import threading
import zlib

import numpy as np
import pytest
from block_sources import SIZE, equal_blocks

from lowbit.errors import LowbitError
from lowbit.kernels import BlockCache

LENGTHS = [1, 2, 511, 512, 4095, 4096, 4097, 8192, 10007, 65536, 100_000]


def scattered(n, seed=0):
    """Return n blocks of all kinds of lengths at all kinds of places, those at the edges of the file among them."""
    rng = random.Random(seed)
    blocks = [(0, 0, 1), (0, SIZE - 1, 1), (0, 0, 4096), (0, SIZE - 4097, 4097)]
    while len(blocks) < n:
        length = rng.choice(LENGTHS)
        blocks.append((0, rng.randrange(SIZE - length + 1), length))
    return blocks


def expected(content, block):
    _, offset, length = block
    return content[offset : offset + length]


@pytest.fixture(params=["auto", "direct", "buffered", "descriptor", "object"])
def make(request, path, memory):
    """Make a cache with each kind of source; the function takes the blocks and what else BlockCache takes."""
    kind = request.param
    source = memory if kind == "object" else os.open(path, os.O_RDONLY) if kind == "descriptor" else path
    direct = {"direct": True, "buffered": False}.get(kind)

    def made(blocks, budget, **options):
        try:
            return BlockCache([source], blocks, budget, direct=direct, **options)
        except OSError as error:
            if kind != "direct":
                raise
            pytest.skip(f"the file system of temporary files has no direct reads: {error}")

    yield made
    if kind == "descriptor":
        os.close(source)


@pytest.mark.parametrize("budget", [600_000, 1_500_000, 1 << 40])
@pytest.mark.parametrize("readers", [0, 1, 4])
def test_blocks_equal_the_file(make, content, budget, readers):
    blocks = scattered(60)
    rng = random.Random(2)
    with make(blocks, budget, readers=readers) as cache:
        for order in ([], range(60), rng.sample(range(60), 40)):
            cache.set_order(order)
            for i in [*range(60), *(rng.choices(range(60), k=60)), *order, *order]:
                assert cache.get(i) == expected(content, blocks[i])
            assert cache.stats()["peak_memory"] <= budget


def test_blocks_of_several_sources(path, memory, content):
    blocks = [(i % 2, 5000 * i, 3000) for i in range(100)]
    with BlockCache([path, memory], blocks, 200_000) as cache:
        cache.set_order(range(100))
        for _ in range(3):
            for i, block in enumerate(blocks):
                assert cache.get(i) == expected(content, block)


def test_a_pinned_block_is_the_memory_of_the_cache_and_read_only(make, content):
    with make(equal_blocks(10, 1000), 300_000) as cache:
        with cache.pinned(3) as first, cache.pinned(3) as second:
            assert first == second == content[3000:4000]
            assert first.readonly
            assert np.frombuffer(first, np.uint8).ctypes.data == np.frombuffer(second, np.uint8).ctypes.data
        with pytest.raises(ValueError, match="released"):
            first[0]


def test_a_pinned_block_survives_reads_of_all_others(make, content):
    with make(equal_blocks(100, 10_000), 200_000) as cache, cache.pinned(7) as view:
        for i in range(100):
            cache.get(i)
        assert view == content[70_000:80_000]


def test_an_array_of_a_block_keeps_it_in_place_after_the_context(path, content):
    cache = BlockCache([path], equal_blocks(100, 10_000), 200_000)
    with cache.pinned(7) as view:
        array = np.frombuffer(view, np.uint8)
    for i in range(100):
        cache.get(i)
    assert array.tobytes() == content[70_000:80_000]
    with pytest.raises(LowbitError, match="pinned"):
        cache.close()
    del array, view
    cache.close()


def test_a_cache_that_is_collected_ends_its_threads(path):
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
    if before is None:
        pytest.skip("no /proc to count threads in")
    for _ in range(20):
        BlockCache([path], equal_blocks(10, 1000), 300_000).get(3)
    assert len(os.listdir("/proc/self/task")) <= before


def test_concurrent_readers_get_what_is_in_the_file(make, content):
    blocks = scattered(120)
    sums = [zlib.crc32(expected(content, block)) for block in blocks]
    wrong, seen = [], []

    def use(cache, seed):
        rng = random.Random(seed)
        for _ in range(150):
            i = rng.randrange(len(blocks))
            with cache.pinned(i) as view:
                if zlib.crc32(view) != sums[i]:
                    wrong.append(i)
                seen.append(i)

    for order in ([], range(120)):
        with make(blocks, 700_000) as cache:
            cache.set_order(order)
            threads = [threading.Thread(target=use, args=(cache, seed)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stats = cache.stats()
            assert stats["hits"] + stats["misses"] == 8 * 150
            assert stats["peak_memory"] <= 700_000
    assert len(seen) == 2 * 8 * 150
    assert not wrong


def test_hints_are_read_ahead_of_their_use(memory, content):
    with BlockCache([memory], equal_blocks(100, 5000), 400_000) as cache:
        cache.prefetch([50, 51, 52])
        for _ in range(500):
            if cache.stats()["prefetched"] == 3:
                break
            threading.Event().wait(0.01)
        for i in (50, 51, 52):
            assert cache.get(i) == content[5000 * i : 5000 * (i + 1)]
        stats = cache.stats()
        assert (stats["hits"], stats["misses"], stats["prefetched"]) == (3, 0, 3)
