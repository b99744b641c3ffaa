"""Memory: how much this process uses, and how a model is fitted into a budget."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._kernels.decoder import Decoder
from .._kernels.kvpool import SPAN
from .._kernels.lookup import EarlierTexts
from .._kernels.paging import trim_heap
from .._kernels.suffixes import BYTES_PER_TOKEN
from ..errors import MemoryBudgetError
from ..scalars import plain
from .paging import Paging

UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEAST_CONTEXT = 128
"""Tokens that there is room for in the smallest plan, unless the caller asks for another number."""
LEAST_BATCH = 16
"""Rows of a pass in the smallest plan: a prompt reads all weights once per this many tokens."""
MOST_LOGIT_ROWS = 16
"""Positions whose logits are held at a time under a budget, if that is a small part of it."""


def parse_size(size: str | int, name: str = "max_ram") -> int:
    """Return a size in bytes; `name` is that of the setting, for messages.

    Parameters
    ----------
    size : str or int
        Bytes, or a number with a unit: ``"64MB"``, ``"1.5 GB"``, ``"300k"``. A unit is a power of 1024.

    Raises
    ------
    ValueError
        If that is no size, or not above 0.
    """
    if isinstance(size, str):
        found = re.fullmatch(
            r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE | re.ASCII
        )
        value = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    else:
        value = plain(size)
        value = 0 if isinstance(value, bool) or not isinstance(value, int) else value
    if not 0 < value < 1 << 62:
        raise ValueError(f"{name} must be a size above 0, such as '64MB' or a number of bytes, not {size!r}")
    return value


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is divided, in bytes."""

    budget: int
    resident: int
    """In use before the cache is made: tokenizer, norms, RoPE tables, single row groups."""
    kv: int
    """Keys and values of the whole context."""
    scratch: int
    """Activations of a batch, logits, one block that is being packed, and what `speculate` knows of a text."""
    logit_rows: int
    """Positions whose logits may be held at a time: sequences decoded together, or positions scored."""

    @property
    def margin(self) -> int:
        """What is set aside for the allocator and the threads."""
        return (1 << 20) + self.budget // 64

    @property
    def cache(self) -> int:
        """What is left for blocks of weights; negative if there is nothing."""
        return self.budget - self.resident - self.kv - self.scratch - self.margin

    def as_dict(self) -> dict[str, Any]:
        """For `Model.info`."""
        names = ("budget", "resident", "kv", "scratch", "cache", "margin")
        return {f"{name}_bytes": getattr(self, name) for name in names}


class Budget:
    """A hard limit on what a model adds to the memory of this process, from the moment when this is made.

    Parameters
    ----------
    limit : int
        Bytes.

    Attributes
    ----------
    block_bytes : int
        Size of the blocks to page in: large enough for the disk, small against the limit.
    plan : MemoryPlan or None
        How the limit is divided, once a model was fitted into it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.before = self._in_use()
        self.block_bytes = min(max(limit // 256, 64 << 10), 1 << 20)
        self.plan: MemoryPlan | None = None
        self.left = 0
        """Bytes that were left to another model."""

    def leave_to(self, decoder: Decoder) -> None:
        """Leave what a model that is all in memory takes, and up to a 32nd for its keys and values.

        Raises
        ------
        MemoryBudgetError
            If nothing remains.
        """
        pool = decoder.pool
        blocks = min(blocks_of(decoder), max(1, self.limit // 32 // pool.block_bytes))
        pool.resize(blocks, blocks)
        logits = min(MOST_LOGIT_ROWS, decoder.batch) * 4 * decoder.graph.vocab
        took = decoder.graph.weight_bytes + decoder.scratch_bytes + logits
        self.left = max(took, self._in_use() - self.before) + blocks * pool.block_bytes
        if self.left >= self.limit:
            raise MemoryBudgetError(f"{shown(self.limit)} of memory are too little for a draft of {shown(self.left)}")
        self.limit -= self.left
        self.before = self._in_use()

    def fit(
        self,
        make: Callable[[int, int], Decoder],
        paging: Paging | None,
        context: int | None,
        most_context: int,
        batch: int,
    ) -> Decoder:
        """Make a decoder that fits, and start its block cache with the memory that is left.

        Keys and values get up to an eighth of the limit and the activations of a batch a sixteenth; if that leaves too
        little for weights, as little as a model can do with.

        Parameters
        ----------
        make : function of a context and a batch, both in tokens
        paging : Paging, optional
            Knows all matrices; None if they are in memory.
        context : int, optional
            Tokens to make room for, if the caller said so.
        most_context, batch : int
            What would be taken without a limit.

        Raises
        ------
        MemoryBudgetError
            If nothing fits; it names the smallest limit that would do.
        """
        least = make(context or min(LEAST_CONTEXT, most_context), LEAST_BATCH)
        row = max(1, least.scratch_bytes // least.batch)
        blocks = self.limit // 8 // least.pool.block_bytes
        blocks -= least.pool.need(0)
        good_context = context or min(most_context, max(least.graph.context, blocks * SPAN))
        good_batch = min(batch, max(least.batch, self.limit // 16 // row))
        for decoder in (make(good_context, good_batch), least):
            plan = self._plan(decoder, paging)
            try:
                self._start(paging, plan)
            except MemoryBudgetError as error:
                smallest = self.limit - plan.cache + (error.smallest or 0)
            else:
                self.plan = plan
                decoder.most_logits = plan.logit_rows
                decoder.pool.resize(blocks_of(decoder), blocks_of(decoder))
                decoder.texts = EarlierTexts(0)
                return decoder
        # what is set aside for the allocator grows with the limit
        megabytes = -(-(smallest * 64 // 63 + self.left) // (1 << 20)) + 1
        raise MemoryBudgetError(
            f"{shown(self.limit + self.left)} of memory are too little for this model: it needs at least {megabytes}MB",
            megabytes << 20,
        )

    @staticmethod
    def _in_use() -> int:
        """Memory of this process without what was freed, so that the same model needs the same each time."""
        trim_heap()
        return resident_bytes()

    def holds(self, weight_bytes: int) -> bool:
        """Tell whether a model with these weights can be in memory as a whole, also while it is loaded."""
        return weight_bytes * 4 // 3 + self.limit // 4 <= self.limit

    def exceeded_by(self, stored_bytes: int) -> bool:
        """Tell whether tensors would not even fit as they lie in their file."""
        return stored_bytes > self.limit

    @staticmethod
    def _start(paging: Paging | None, plan: MemoryPlan) -> None:
        if paging is not None:
            paging.start(plan.cache)
        elif plan.cache < 0:
            raise MemoryBudgetError(smallest=0)

    def _plan(self, decoder: Decoder, paging: Paging | None) -> MemoryPlan:
        logits = 5 * 4 * decoder.graph.vocab  # scoring holds them as float32, and twice as float64
        rows = min(MOST_LOGIT_ROWS, decoder.batch, max(1, self.limit // 32 // logits))
        lookups = BYTES_PER_TOKEN * (decoder.graph.context + 1)  # of the texts whose keys and values there is room for
        return MemoryPlan(
            budget=self.limit,
            resident=max(0, self._in_use() - self.before),
            kv=blocks_of(decoder) * decoder.pool.block_bytes,
            scratch=decoder.scratch_bytes + rows * logits + lookups + (paging.pager.scratch_bytes if paging else 0),
            logit_rows=rows,
        )


def blocks_of(decoder: Decoder) -> int:
    """Return how many blocks of keys and values one whole context takes, with the recurrent states beside them."""
    return int(decoder.pool.need(decoder.graph.context))


def shown(n: int) -> str:
    """Return a number of bytes for people."""
    return f"{n / (1 << 20):.4g}MB" if n >= 1 << 20 else f"{n} bytes"


def resident_bytes() -> int:
    """Return the memory of this process that is really in use, in bytes."""
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # Windows
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            _fields_ = [("cb", wintypes.DWORD), ("faults", wintypes.DWORD)] + [
                (f"size{i}", ctypes.c_size_t) for i in range(8)
            ]

        counters = Counters()
        windll: Any = getattr(ctypes, "windll")  # noqa: B009 - exists on Windows only
        windll.psapi.GetProcessMemoryInfo(
            windll.kernel32.GetCurrentProcess(), ctypes.byref(counters), ctypes.sizeof(counters)
        )
        return int(counters.size1)
    if sys.platform == "darwin":
        return _resident_bytes_of_macos()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # the peak: there is nothing better


def _resident_bytes_of_macos() -> int:
    """`struct rusage_info_v0` of <sys/resource.h>: sixteen bytes, then ten numbers, of which the seventh is it."""
    import ctypes

    class Usage(ctypes.Structure):
        _fields_ = [("uuid", ctypes.c_uint8 * 16), ("numbers", ctypes.c_uint64 * 10)]

    usage = Usage()
    if ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, ctypes.byref(usage)):
        raise OSError("this process cannot see how much memory it uses")
    return int(usage.numbers[6])
