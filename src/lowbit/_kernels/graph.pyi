from typing import Any

import numpy as np

from .matrix import PackedMatrix
from .paging import PagedMatrix, Pager

class Graph:
    n_layers: int
    hidden: int
    intermediate: int
    vocab: int
    context: int
    sparse_decode: bool
    weight_bytes: int
    state_bytes: int
    pager: Pager | None
    def __init__(
        self,
        config: Any,
        layers: list[dict[str, Any]],
        token_embd: PackedMatrix | PagedMatrix,
        output: PackedMatrix | PagedMatrix,
        output_norm: np.ndarray,
        context: int,
        threads: int,
        pager: Pager | None = None,
    ) -> None: ...
    def sparsify(self, rules: list[dict[str, tuple[int, float]]]) -> None: ...
    @property
    def skipping(self) -> list[str]: ...
    @property
    def bytes_per_token(self) -> int: ...
