"""Linear layers by channel in a file: for which it pays, and how their weights get there.

Under a memory budget a ternary matrix is read in its order, and all of it. Where few enough of its inputs count, it
is written once more, channel by channel, into the spill file: then a token reads only the blocks of channels that
count. Prompts go on reading the other copy.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ._kernels.blockcache import BlockCache
from ._kernels.matrix import PackedMatrix
from ._kernels.paged_channels import channel_lines
from .plan import ModelPlan

__all__ = [
    "BLOCKS_THAT_PAY", "LINE_ROWS", "NO_CHANNELS", "ChannelPlan", "blocks_that_pay", "by_channel", "channel_blocks",
]  # fmt: skip

PAGE = 4096
PIECE = 1 << 20
LINE_ROWS = 256
"""Rows of a line of the channel-major order."""
LINE_BYTES = 64
BLOCKS_THAT_PAY = 0.07
"""Share of a layer's blocks that a token may need for them to be worth reading one by one, where nothing was measured:
a virtual disk gave 45,000 single pages in a second, and ten times the bytes in long reads. Others differ widely."""
GAIN = 0.7
"""Of the time of the long reads, what single ones may take: at 1 nothing would be gained."""
PROBED_BYTES = 64 << 20
"""Files from this length on are measured."""
PROBES = 4
"""Rounds of a measurement, of which the best counts."""


@dataclass(frozen=True)
class ChannelPlan:
    """The linear layers that are read by channel.

    Attributes
    ----------
    per_block : mapping of str to int
        How many channels of a linear layer make a block.
    block_bytes : int
        Of every block: whole pages.
    """

    per_block: Mapping[str, int]
    block_bytes: int = PAGE


NO_CHANNELS = ChannelPlan({})


def blocks_that_pay(path: str) -> float:
    """Measure how a file's disk reads single pages, against long reads.

    Parameters
    ----------
    path : str

    Returns
    -------
    float
        Share of the pages of a stretch that can be read one by one in `GAIN` of the time that all of it takes.
    """
    pieces = os.path.getsize(path) // PIECE
    if pieces * PIECE < PROBED_BYTES:
        return BLOCKS_THAT_PAY
    order = np.random.default_rng(1).permutation(pieces * (PIECE // PAGE))
    single = _seconds(path, order[: PROBES * 256] * PAGE, PAGE, readers=16)
    long = _seconds(path, (pieces // 2 + np.arange(PROBES * 8)) * PIECE, PIECE, readers=4)
    return GAIN * long / (PIECE // PAGE) / single


def _seconds(path: str, offsets: np.ndarray, length: int, readers: int) -> float:
    """How long a read takes where many are under way; the best of several rounds."""
    blocks = np.stack([np.zeros_like(offsets), offsets, np.full_like(offsets, length)], axis=1)
    n = len(offsets) // PROBES
    best = math.inf
    with BlockCache([path], blocks, n * length + (1 << 20), readers=readers) as cache:
        for first in range(0, len(offsets), n):
            start = time.perf_counter()
            cache.prefetch(range(first, first + n))
            for block in range(first, first + n):
                with cache.pinned(block):
                    pass
            best = min(best, time.perf_counter() - start)
    return best / n


def by_channel(plan: ModelPlan, shares: Mapping[str, float], pays: float) -> ChannelPlan:
    """Choose the linear layers to read by channel.

    Parameters
    ----------
    plan : ModelPlan
    shares : mapping of str to float
        By linear layer: the share of its inputs that do not count.
    pays : float
        Share of the blocks of a layer that a token may need, as `blocks_that_pay` has it.
    """
    channel = {linear.name: -(-linear.n_out // LINE_ROWS) * LINE_BYTES for linear in plan.linears(0)}
    chosen = [
        name
        for name, share in shares.items()
        # a block is needed if one of its channels is, and which ones are is as good as random
        if share and 1 - share ** (_pages(channel[name]) // channel[name]) <= pays
    ]
    block = max((_pages(channel[name]) for name in chosen), default=PAGE)
    return ChannelPlan({name: block // channel[name] for name in chosen}, block)


def _pages(n: int) -> int:
    return -(-n // PAGE) * PAGE


def channel_blocks(
    write: Callable[[np.ndarray], None], stripe: Callable[[int], PackedMatrix], rows: int, cols: int, per_block: int,
    block_bytes: int, room: int, threads: int,
) -> None:  # fmt: skip
    """Turn a matrix channel-major and write it: its blocks of channels, then its scales.

    Parameters
    ----------
    write : function of an array
    stripe : function of a row
        Packs the 256 rows from there on, or as many as there are. Called for all rows, once or several times.
    rows, cols : int
    per_block, block_bytes : int
        Channels in a block, and its length.
    room : int
        Bytes of codes that may be in memory: as many channels are turned at a time.
    threads : int
    """
    lines = -(-rows // LINE_ROWS)
    size = lines * LINE_BYTES
    most = max(room // size // per_block, 1) * per_block
    scales = None
    for first in range(0, cols, most):
        n = min(most, cols - first)
        whole, rest = divmod(n, per_block)
        blocks = np.zeros((-(-n // per_block), block_bytes), np.uint8)
        channels = blocks[:, : per_block * size].reshape(len(blocks), per_block, lines, LINE_BYTES)
        for line in range(lines):
            codes, some = channel_lines(stripe(line * LINE_ROWS), threads)
            if scales is None:
                scales = np.zeros((len(some), lines * LINE_ROWS), some.dtype)
            scales[:, line * LINE_ROWS : (line + 1) * LINE_ROWS] = some
            codes = codes[first : first + n]
            channels[:whole, :, line] = codes[: n - rest].reshape(whole, per_block, LINE_BYTES)
            if rest:
                channels[whole, :rest, line] = codes[n - rest :]
        write(blocks)
    assert scales is not None
    write(scales)
