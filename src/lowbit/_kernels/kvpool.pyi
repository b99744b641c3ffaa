from hashlib import blake2b as blake2b
from typing import Any

from .sequence import Sequence

KV_TYPES: dict[str, int]
SPAN: int

class KVPool:
    block_bytes: int
    kv_type: int
    limit: int | None
    kept: int | None
    allocated: int
    hits: int
    evictions: int
    state_bytes: int
    border: int
    disk: Any
    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        kv_type: str,
        state_bytes: int = ...,
        value_dim: int | None = ...,
    ) -> None: ...
    def need(self, positions: int) -> int: ...
    def resize(self, limit: int | None, kept: int | None) -> None: ...
    def fit(self, n_bytes: int) -> None: ...
    @property
    def held(self) -> int: ...
    @property
    def known(self) -> int: ...
    @property
    def free(self) -> int | None: ...
    @property
    def sequences(self) -> tuple[Sequence, ...]: ...
    def clear(self) -> None: ...
    def match(self, tokens: bytes, salt: bytes) -> tuple[list[Any], bytes, tuple[Any, int] | None]: ...
    def stats(self) -> dict[str, Any]: ...
