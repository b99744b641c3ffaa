"""The tables with which kernels unpack i-quants: what indices of grids and of signs stand for.

A word is eight codes of a byte, the first in the lowest: a code is a weight's integer plus 128. Of grids with signs
there are the magnitudes, then for each index of signs a byte of 255 where it negates.
"""

from __future__ import annotations

import functools

import numpy as np

from .grids import VALUES, grid
from .iquants import even_signs


@functools.cache
def table_of(type_name: str) -> np.ndarray:
    """Return the table of a type, uint64; without words where there is none, as for K types."""
    if type_name in ("IQ1_S", "IQ1_M"):  # 1/8 is added or taken away: eighths, less one, to which two are added or none
        return _words(grid("IQ1_S") * np.int8(8) - np.int8(1) ^ np.int8(-128))
    if type_name not in VALUES:
        return np.zeros(0, np.uint64)
    rows = grid(type_name)
    signs = np.arange(256) if type_name.endswith("_S") else even_signs(np.arange(128))
    negated = -(signs[:, None] >> np.arange(8) & 1).astype(np.int8)
    return np.concatenate([_words(np.pad(rows, ((0, 0), (0, 8 - rows.shape[1])))), _words(negated)])


def _words(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, np.int8).view("<u8").reshape(-1).astype(np.uint64)
