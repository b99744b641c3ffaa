from collections.abc import Sequence
from typing import Any

import numpy as np

from .stored import Stored

FORMATS: dict[str, tuple[int, int, int]]
BLOCK_TYPES: dict[str, tuple[str, int]]
UNPACKED_TYPES: dict[str, tuple[str, dict[str, Any]]]
FLOAT_TYPES: dict[str, str]
MAX_COLS: int

class PackedMatrix:
    nbytes: int
    source_type: str
    def __init__(
        self,
        format: str,
        n_rows: int,
        n_cols: int,
        group_cols: int | None = None,
        scales_f16: bool = False,
        block_cols: int | None = None,
        scales_super: bool = False,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def format(self) -> str: ...
    @property
    def group_cols(self) -> int: ...
    def fill_blocks(
        self,
        type: str,
        raw: np.ndarray,
        rows: int,
        scale: float | None = None,
        first_row: int = 0,
        threads: int = 1,
    ) -> None: ...
    def fill_codes(self, codes: np.ndarray, first_row: int = 0, threads: int = 1) -> None: ...
    def fill_dense(self, rows: PackedMatrix, first_row: int = 0, threads: int = 1) -> None: ...
    def fill_scales(self, scales: np.ndarray, first_row: int = 0, minima: np.ndarray | None = None) -> None: ...
    def fill_floats(self, raw: np.ndarray, rows: int, first_row: int = 0, threads: int = 1) -> None: ...
    def fill_rounded(self, type: str, raw: np.ndarray, rows: int, first_row: int = 0, threads: int = 1) -> None: ...
    def fill_stored(self, stored: Stored, raw: np.ndarray, rows: int, first_row: int = 0, threads: int = 1) -> None: ...
    @property
    def n_groups(self) -> int: ...
    def groups(self) -> np.ndarray: ...
    def rows(self, indices: Sequence[int]) -> np.ndarray: ...
