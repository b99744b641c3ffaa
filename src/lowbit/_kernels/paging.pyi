from collections.abc import Sequence
from typing import IO

import numpy as np

from .blockcache import BlockCache
from .matrix import PackedMatrix
from .stored import Stored

def trim_heap() -> None: ...

class Pager:
    cache: BlockCache | None
    table: list[tuple[int, int, int]]
    order: list[int]
    scratch_bytes: int
    def __init__(self, block_bytes: int, part_bytes: int, threads: int) -> None: ...
    def record(self, n: int) -> None: ...
    def recorded(self) -> np.ndarray: ...
    def start(self, sources: Sequence[str | IO[bytes]], budget: int) -> None: ...

class PagedMatrix:
    nbytes: int
    stored_bytes: int
    def __init__(
        self,
        pager: Pager,
        pattern: PackedMatrix,
        n_rows: int,
        stored: str | Stored | None,
        source: int,
        offset: int,
        tail: PackedMatrix | None = None,
        product: bool = True,
        lookup: bool = False,
        parts: int = 1,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
