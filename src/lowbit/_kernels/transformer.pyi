from typing import Any

import numpy as np

from ..plan import ModelPlan
from .matrix import PackedMatrix
from .paging import PagedMatrix, Pager
from .sampler import Sampler

KV_TYPES: dict[str, int]

class KVCache:
    capacity: int
    nbytes: int
    length: int
    def __init__(self, model: Transformer, capacity: int) -> None: ...
    def truncate(self, length: int) -> None: ...

class Transformer:
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    context: int
    batch: int
    threads: int
    most_logits: int
    pager: Pager | None
    sparse_decode: bool
    @property
    def skipping(self) -> list[str]: ...
    sparse_prefill: bool
    scratch_bytes: int
    weight_bytes: int
    def __init__(
        self,
        config: ModelPlan,
        layers: list[dict[str, Any]],
        token_embd: PackedMatrix | PagedMatrix,
        output: PackedMatrix | PagedMatrix,
        output_norm: np.ndarray,
        context: int,
        threads: int,
        batch: int = 256,
        kv_type: str = "f32",
        pager: Pager | None = None,
    ) -> None: ...
    @property
    def bytes_per_token(self) -> int: ...
    def prefill(self, cache: KVCache, tokens: np.ndarray, every: bool = False) -> np.ndarray: ...
    def hidden_states(self, cache: KVCache, tokens: np.ndarray) -> np.ndarray: ...
    def decode(
        self,
        caches: list[KVCache],
        samplers: list[Sampler],
        pending: np.ndarray,
        n: int,
        stop: np.ndarray,
        history: np.ndarray | None = None,
    ) -> list[list[int]]: ...
    def cache_stats(self) -> dict[str, float]: ...
    def sparsify(self, rules: list[dict[str, tuple[int, float]]]) -> None: ...
    def observe(self, tokens: np.ndarray, histograms: dict[str, np.ndarray]) -> None: ...
    def last_logits(self) -> np.ndarray: ...
