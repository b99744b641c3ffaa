"""Where uses are counted, what is used often stays, however long ago that was; and it goes in the end."""

from __future__ import annotations

import numpy as np
from block_sources import Memory, equal_blocks

from lowbit.kernels import BlockCache

N, LENGTH = 40, 4096


def cache_of(slots, count=True):
    source = Memory(bytes(i % 251 for i in range(N * LENGTH)))
    table = equal_blocks(N, LENGTH)
    with BlockCache([source], table, 1 << 30, readers=0) as whole:
        bookkeeping = whole.stats()["memory"]
    cache = BlockCache([source], table, bookkeeping + slots * LENGTH, readers=0)
    assert cache.stats()["lru_slots"] == slots
    if count:
        cache.count_uses()
    return cache, source


def reads_of(cache, blocks):
    before = cache.stats()["reads"]
    for block in blocks:
        assert cache.get(block) == bytes((block * LENGTH + i) % 251 for i in range(LENGTH))
    return cache.stats()["reads"] - before


def test_a_block_that_is_used_often_outlives_a_scan():
    for count, expected in ((False, 2), (True, 0)):
        cache, _ = cache_of(10, count)
        reads_of(cache, [0, 1] * 4)
        reads_of(cache, range(5, 17))  # more than there are slots, each once
        assert reads_of(cache, [0, 1]) == expected
        cache.close()


def test_a_block_that_is_used_no_more_goes_in_the_end():
    cache, _ = cache_of(6)
    reads_of(cache, [0] * 12)
    for _ in range(40):
        reads_of(cache, range(10, 17))
    assert reads_of(cache, [0]) == 1
    cache.close()


def test_blocks_used_as_often_go_in_the_order_of_their_last_use():
    cache, _ = cache_of(4)
    reads_of(cache, [0, 1, 2, 3, 4])
    assert reads_of(cache, [1, 2, 3, 4]) == 0
    cache.close()


def test_a_block_that_was_used_just_now_stays_though_others_are_used_more():
    cache, _ = cache_of(4)
    reads_of(cache, [0, 1, 2, 3] * 3)
    assert reads_of(cache, [10, 11, 10, 11]) == 2  # 11 takes the place of 1, not of 10
    assert reads_of(cache, [2, 3]) == 0
    cache.close()


def test_counting_changes_what_is_read_and_never_what_comes():
    rng = np.random.default_rng(0)
    odds = np.arange(1, N + 1) ** -1.0
    blocks = rng.choice(N, 3000, p=odds / odds.sum()).tolist()
    reads = []
    for count in (False, True):
        cache, source = cache_of(8, count)
        reads.append(reads_of(cache, blocks))
        assert reads[-1] == len(source.offsets) == cache.stats()["misses"]
        cache.close()
    assert reads[1] < reads[0]
