import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, final

import numpy as np

class _Source(Protocol):
    def read_at(self, offset: int, n: int) -> bytes | bytearray | memoryview: ...

READERS: int

@final
class BlockCache:
    n_blocks: int
    closed: bool
    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str] | int | _Source],
        blocks: np.ndarray | Sequence[Sequence[int]],
        budget: int,
        *,
        direct: bool | None = None,
        readers: int = ...,
    ) -> None: ...
    def get(self, block: int) -> bytes: ...
    def pinned(self, block: int) -> AbstractContextManager[memoryview]: ...
    def set_order(self, order: np.ndarray | Sequence[int], lru_bytes: int = 0) -> None: ...
    def prefetch(self, blocks: np.ndarray | Sequence[int]) -> None: ...
    def stats(self) -> dict[str, int | float]: ...
    def close(self) -> None: ...
    def __enter__(self) -> BlockCache: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __len__(self) -> int: ...
