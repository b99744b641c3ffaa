"""In a cyclic scan the cache reads hardly more than the best policy there can be, where plain LRU reads everything."""

from __future__ import annotations

import bisect
import time

import numpy as np
import pytest
from block_sources import Memory, equal_blocks

from lowbit.kernels import BlockCache

N = 1500
LENGTH = 65536
TABLE = equal_blocks(N, LENGTH)
CYCLES = 4


def belady(trace, capacity):
    """Count the misses of the policy that evicts what is used again last (Belady 1966)."""
    uses = {}
    for t, block in enumerate(trace):
        uses.setdefault(block, []).append(t)

    def next_use(block, t):
        later = bisect.bisect_right(uses[block], t)
        return uses[block][later] if later < len(uses[block]) else len(trace)

    resident, misses = {}, 0
    for t, block in enumerate(trace):
        if block not in resident:
            misses += 1
            if len(resident) == capacity:
                del resident[max(resident, key=resident.get)]
        resident[block] = next_use(block, t)
    return misses


@pytest.fixture(scope="module")
def source():
    return Memory(bytes(range(256)) * 512, period=LENGTH)


def reads_after_warm_up(cache, source, order):
    """Return the reads of some cycles that follow a first one."""
    for cycle in range(CYCLES + 1):
        if cycle == 1:
            before = len(source.offsets)
        for i in order:
            with cache.pinned(i):
                pass
    return len(source.offsets) - before


def test_belady_of_a_cycle_is_the_known_formula():
    assert belady(list(range(20)) * 40, 8) == pytest.approx(20 * 40 * (1 - 7 / 19), rel=0.03)


@pytest.mark.parametrize("percent", [5, 10, 25, 40, 50, 60, 75, 90])
def test_a_cycle_reads_within_5_percent_of_belady_and_less_than_lru(source, percent):
    budget = N * LENGTH * percent // 100
    order = np.random.default_rng(percent).permutation(N).tolist()
    with BlockCache([source], TABLE, budget) as cache:
        lru = reads_after_warm_up(cache, source, order)
        cache.set_order(order)
        ours = reads_after_warm_up(cache, source, order)
        stats = cache.stats()
    trace = order * (CYCLES + 1)
    best = belady(trace, budget // LENGTH) - belady(order, budget // LENGTH)
    assert lru == CYCLES * N
    assert ours < lru
    assert ours <= best * 1.05
    assert stats["peak_memory"] <= budget


def test_a_cache_that_holds_everything_reads_every_block_once(source):
    with BlockCache([source], TABLE, (N + 5) * LENGTH) as cache:
        before = len(source.offsets)
        cache.set_order(range(N))
        assert reads_after_warm_up(cache, source, range(N)) == 0
        assert len(source.offsets) - before == N
        stats = cache.stats()
        assert (stats["pinned_blocks"], stats["ring_slots"]) == (N, 0)


@pytest.mark.parametrize("percent", [20, 50, 80])
def test_resident_blocks_are_spread_evenly_over_the_order(source, percent):
    order = list(range(0, N, 2)) + list(range(1, N, 2))
    with BlockCache([source], TABLE, N * LENGTH * percent // 100) as cache:
        cache.set_order(order)
        for i in order * 2:
            cache.get(i)
        start = len(source.offsets)
        for i in order:
            cache.get(i)
        read = {offset // LENGTH for offset in source.offsets[start:]}
        share = 1 - cache.stats()["pinned_blocks"] / N
    # The last few may have been read ahead for the next cycle; those of this cycle's beginning were.
    for piece in range(1, 9):
        part = order[piece * 100 : (piece + 1) * 100]
        assert sum(i in read for i in part) == pytest.approx(100 * share, abs=3)


def test_blocks_of_several_sizes_share_the_budget_by_bytes(source):
    lengths = np.random.default_rng(0).choice([4096, 30_000, 65_536, 65_000], N)
    table = np.stack([np.zeros(N, np.int64), np.arange(N) * LENGTH, lengths], 1)
    total = int((-(-lengths // 4096) * 4096).sum())
    with BlockCache([source], table, total // 2, readers=0) as cache:  # nothing is read before it is asked for
        cache.set_order(range(N))
        stats = cache.stats()
        ring = stats["ring_slots"] * stats["ring_slot_bytes"]
        assert stats["memory"] + stats["pinned_bytes"] + ring <= total // 2
        assert stats["memory"] + stats["pinned_bytes"] + ring > total // 2 - 2 * LENGTH
        for i in [*range(N)] * 2:
            assert len(cache.get(i)) == lengths[i]
        assert cache.stats()["peak_memory"] <= total // 2


def test_blocks_are_read_while_those_before_them_are_in_use():
    source = Memory(bytes(LENGTH), period=LENGTH)
    with BlockCache([source], TABLE[:60], 20 * LENGTH) as cache:

        def reads(block):
            return source.offsets.count(int(TABLE[block][1]))

        cache.set_order(range(60))
        for i in [*range(60)] * 2:
            cache.get(i)
        streamed = [i for i in range(60) if reads(i) > 1]  # the others stay in memory
        before = cache.stats()
        for i in range(60):
            with cache.pinned(i):
                for following in [j for j in streamed if j > i][:1]:
                    while reads(following) < 3:  # for ever, if it is read only when it is asked for
                        time.sleep(0.001)
        after = cache.stats()
    asked_for = after["misses"] - after["late"] - before["misses"] + before["late"]
    assert len(streamed) >= 40
    assert asked_for <= 1, "only the first may come as a surprise"


def test_jumps_and_repeats_still_give_every_block(source):
    rng = np.random.default_rng(3)
    with BlockCache([source], TABLE, N * LENGTH // 4) as cache:
        cache.set_order(range(N))
        place = 0
        for _ in range(40):
            for i in range(place, place + int(rng.integers(1, 60))):
                assert len(cache.get(i % N)) == LENGTH
            place = int(rng.integers(0, N)) if rng.random() < 0.5 else place - 5
        assert cache.stats()["peak_memory"] <= N * LENGTH // 4


def test_blocks_outside_the_order_do_not_disturb_it(source):
    order = list(range(0, N, 2))
    outside = list(range(1, N, 2))
    with BlockCache([source], TABLE, N * LENGTH // 4) as cache:
        cache.set_order(order)
        alone = reads_after_warm_up(cache, source, order)
        cache.set_order(order, lru_bytes=4 * LENGTH)
        for i in order:
            cache.get(i)
        start = len(source.offsets)
        for cycle in range(CYCLES):
            for n, i in enumerate(order):
                cache.get(i)
                if n % 10 == 0:
                    cache.get(outside[(n + cycle) % len(outside)])
        read = np.array(source.offsets[start:]) // LENGTH
        assert cache.stats()["lru_slots"] == 4
    assert np.isin(read, outside).sum() == CYCLES * len(order) // 10
    assert np.isin(read, order).sum() <= alone * 1.02 + 4
