"""Without an order the cache is exactly a least-recently-used one: hits, misses and evictions are those of a model."""

from __future__ import annotations

from collections import Counter, OrderedDict

from block_sources import Memory, equal_blocks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowbit.kernels import BlockCache

N = 12
LENGTH = 4096
CONTENT = bytes(i % 251 for i in range(N * LENGTH))


class LruMachine(RuleBasedStateMachine):
    """The cache beside an OrderedDict of the blocks that are resident and unreferenced, oldest release first."""

    @initialize(slots=st.integers(2, 6))
    def start(self, slots):
        table = equal_blocks(N, LENGTH)
        self.source = Memory(CONTENT)
        smallest = BlockCache([self.source], table, 1 << 30, readers=0)
        bookkeeping = smallest.stats()["memory"]
        smallest.close()
        self.cache = BlockCache([self.source], table, bookkeeping + slots * LENGTH, readers=0)
        self.slots = slots
        self.idle = OrderedDict()
        self.pins = []
        self.held = Counter()
        self.hits = self.misses = self.evictions = 0

    def acquire(self, block):
        if block in self.idle or self.held[block]:
            self.hits += 1
            self.idle.pop(block, None)
        else:
            self.misses += 1
            if len(self.idle) + len(+self.held) == self.slots:
                self.idle.popitem(last=False)
                self.evictions += 1
        self.held[block] += 1

    def release(self, block):
        self.held[block] -= 1
        if not self.held[block]:
            self.idle[block] = None

    def has_room(self, block):
        return self.held[block] or len(+self.held) < self.slots

    @rule(block=st.integers(0, N - 1))
    def get(self, block):
        if self.has_room(block):
            assert self.cache.get(block) == CONTENT[block * LENGTH : (block + 1) * LENGTH]
            self.acquire(block)
            self.release(block)

    @rule(block=st.integers(0, N - 1))
    def pin(self, block):
        if self.has_room(block):
            context = self.cache.pinned(block)
            self.pins.append((block, context, context.__enter__()))
            self.acquire(block)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        block, context, view = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        assert view == CONTENT[block * LENGTH : (block + 1) * LENGTH]
        context.__exit__(None, None, None)
        self.release(block)

    @invariant()
    def counts_agree(self):
        stats = self.cache.stats()
        assert (stats["hits"], stats["misses"], stats["evictions"]) == (self.hits, self.misses, self.evictions)
        assert stats["reads"] == len(self.source.offsets) == self.misses
        assert stats["lru_slots"] == self.slots
        assert stats["memory"] <= stats["peak_memory"] <= stats["budget"]

    def teardown(self):
        for _, context, _ in getattr(self, "pins", []):
            context.__exit__(None, None, None)
        if hasattr(self, "cache"):
            self.cache.close()


TestLru = LruMachine.TestCase
TestLru.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
