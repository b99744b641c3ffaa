"""Linear layers by channel in a file: for which it pays, and how their weights get there.

Under a memory budget a ternary matrix is read in its order, and all of it. Where few enough of its inputs count, it
is written once more, channel by channel, into the spill file: then a token reads only the blocks of channels that
count. Prompts go on reading the other copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ._kernels.matrix import PackedMatrix
from ._kernels.paged_channels import channel_lines
from .config import ModelConfig

__all__ = ["BLOCKS_THAT_PAY", "NO_CHANNELS", "ChannelPlan", "by_channel", "channel_blocks"]

PAGE = 4096
LINE_ROWS = 256
LINE_BYTES = 64
BLOCKS_THAT_PAY = 0.12
"""Share of a layer's blocks that a token may need for channels to be worth reading one by one. A page on its own costs
about as much time as eight times its share of a long read: on the virtual disk where this was measured, 45,000 single
pages against 1.5 GB in a second."""


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


def by_channel(config: ModelConfig, shares: Mapping[str, float]) -> ChannelPlan:
    """Choose the linear layers to read by channel.

    Parameters
    ----------
    config : ModelConfig
    shares : mapping of str to float
        By linear layer: the share of its inputs that do not count.
    """
    heads = config.n_heads * config.head_dim
    rows = {
        "qkv": heads + 2 * config.n_kv_heads * config.head_dim,
        "attn_output": config.hidden_size,
        "gate_up": 2 * config.intermediate_size,
        "ffn_down": config.hidden_size,
    }
    channel = {name: -(-n // LINE_ROWS) * LINE_BYTES for name, n in rows.items()}
    pays = [
        name
        for name, share in shares.items()
        # a block is needed if one of its channels is, and which ones are is as good as random
        if share and 1 - share ** (_pages(channel[name]) // channel[name]) <= BLOCKS_THAT_PAY
    ]
    block = max((_pages(channel[name]) for name in pays), default=PAGE)
    return ChannelPlan({name: block // channel[name] for name in pays}, block)


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
