"""Weights that stay in files and are read block by block: where each matrix lies, and the spill file for the rest."""

from __future__ import annotations

import functools
import math
import os
from typing import IO, Any

import numpy as np

from .._kernels.matrix import BLOCK_TYPES, PackedMatrix
from .._kernels.paging import PagedMatrix, Pager
from .._kernels.stored import STORED_TYPES, Stored
from ..errors import LowbitError
from ..formats.base import ModelFile, TensorInfo
from ..formats.iquants import GROUPS
from ..formats.unpacked import table_of

PAGE = 4096
"""Where matrices begin in the spill file, so that they can be read around the page cache."""


@functools.cache
def stored_of(kind: str) -> Stored:
    """How tensors of a type are unpacked."""
    return Stored(kind, table_of(kind))


class Paging:
    """What a model's weights are read from while it runs.

    Tensors whose bytes a kernel can take as they are, or unpack at each use, stay in the model's file. Anything else
    (float weights, other types without a packed form of their own, Hugging Face folders) is packed once, into a
    temporary file without a name, which takes about a quarter of a byte per ternary weight and is gone with the model.

    Parameters
    ----------
    file : ModelFile
    block_bytes : int
        Most bytes that are read at a time, unless 16 rows take more.
    threads : int
        That compute.
    tight : bool
        Whether not even the file would fit into memory. Then K types stay in the file too: unpacking them at each use
        takes less time than reading them, and the temporary file would be as long as the model's.

    Attributes
    ----------
    pager : lowbit._kernels.paging.Pager
    unpacked : set of str
        Types of tensors that stay as they are in the file, and are unpacked at each use.
    """

    def __init__(self, file: ModelFile, block_bytes: int, threads: int, tight: bool) -> None:
        experts = sorted(info.nbytes // info.shape[0] for info in file.tensors.values() if len(info.shape) == 3)
        usual = experts[len(experts) // 2] if experts else block_bytes
        self.pager = Pager(block_bytes, min(block_bytes, usual), threads)
        self.unpacked: set[str] = set()
        self._tight = tight
        self._file = file
        self._sources: list[str | IO[bytes]] = []
        self._spill: IO[bytes] | None = None

    def in_file(self, info: TensorInfo, matrix_type: str) -> bool:
        """Tell whether a tensor can stay where it is."""
        if info.type in STORED_TYPES:
            stored = self._tight or info.type in GROUPS
        else:
            stored = info.type in BLOCK_TYPES
        return matrix_type == info.type and stored and hasattr(self._file, "locate")

    def stored(self, info: TensorInfo, pattern: PackedMatrix, tail: PackedMatrix | None, **use: Any) -> PagedMatrix:
        """Page a tensor from the model's file; `use` is ``product``, ``lookup`` and ``parts`` of `PagedMatrix`."""
        path, offset = self._file.locate(info.name)  # type: ignore[attr-defined]
        rows = math.prod(info.shape[:-1])
        kind = stored_of(info.type) if info.type in STORED_TYPES else info.type
        if info.type in STORED_TYPES:
            self.unpacked.add(info.type)
        return PagedMatrix(self.pager, pattern, rows, kind, self._source(os.path.abspath(path)), offset, tail, **use)

    def begin_spill(self) -> int:
        """Return where the next packed matrix begins in the spill file, which is made if need be."""
        if self._spill is None:
            import tempfile

            self._spill = tempfile.TemporaryFile(prefix="lowbit-")
        end = self._spill.seek(0, os.SEEK_END)
        return self._spill.seek(-(-end // PAGE) * PAGE)

    def spill(self, groups: np.ndarray) -> None:
        """Append packed weights to the spill file.

        Raises
        ------
        LowbitError
            If the disk has no room for them.
        """
        import tempfile

        assert self._spill is not None
        try:
            self._spill.write(groups.data)
            self._spill.flush()
        except OSError as error:
            raise LowbitError(
                f"cannot write packed weights to {tempfile.gettempdir()} ({error.strerror}); "
                "TMPDIR may name another folder, and a file made by `lowbit convert` needs none"
            ) from None

    def spilled(self, offset: int, rows: int, pattern: PackedMatrix, tail: PackedMatrix | None, **use: Any) -> Any:
        """Page a matrix whose row groups were written from `offset` on."""
        assert self._spill is not None
        return PagedMatrix(self.pager, pattern, rows, None, self._source(self._spill), offset, tail, **use)

    def start(self, budget: int) -> None:
        """Make the cache; MemoryBudgetError if `budget` bytes are too few for it."""
        self.pager.start(self._sources, budget)

    def _source(self, source: str | IO[bytes]) -> int:
        if source not in self._sources:
            self._sources.append(source)
        return self._sources.index(source)
