from typing import Any

import numpy as np

from .matrix import PackedMatrix
from .paging import PagedMatrix

class ExpertLayer:
    n: int
    top_k: int
    size: int
    hidden: int
    groups: int
    top_groups: int
    nbytes: int
    used_bytes: int
    asked: int
    found: int
    def __init__(
        self,
        plan: Any,
        hidden: int,
        activation: int,
        gate_up: list[PackedMatrix] | list[PagedMatrix],
        down: PackedMatrix | PagedMatrix,
        bias: np.ndarray | None = None,
        logit_bias: np.ndarray | None = None,
        gate_up_bias: np.ndarray | None = None,
        down_bias: np.ndarray | None = None,
    ) -> None: ...

class ExpertScratch:
    nbytes: int
    def __init__(self, layers: list[ExpertLayer], rows: int) -> None: ...
