from typing import IO

import numpy as np

from .blockcache import BlockCache
from .matrix import PackedMatrix
from .paging import Pager

def channel_lines(w: PackedMatrix, threads: int = 1) -> tuple[np.ndarray, np.ndarray]: ...

class ChannelPager:
    cache: BlockCache | None
    block_bytes: int
    n_blocks: int
    scratch_bytes: int
    own_bytes: int
    least_bytes: int
    most_bytes: int
    def __init__(self, block_bytes: int) -> None: ...
    def start(self, source: IO[bytes], budget: int) -> None: ...
    def recent_uses(self) -> np.ndarray: ...
    def check(self) -> None: ...

class PagedChannels:
    def __init__(
        self,
        pager: Pager,
        channels: ChannelPager,
        pattern: PackedMatrix,
        n_rows: int,
        per_block: int,
        source: int,
        offset: int,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
