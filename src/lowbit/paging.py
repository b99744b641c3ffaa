"""Weights that stay in files and are read block by block: where each matrix lies, and the spill file for the rest."""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np

from ._kernels.matrix import BLOCK_TYPES, PackedMatrix
from ._kernels.paged_channels import ChannelPager, PagedChannels
from ._kernels.paging import PagedMatrix, Pager
from .channels import NO_CHANNELS, PAGE, ChannelPlan
from .errors import LowbitError, MemoryBudgetError
from .formats.base import ModelFile, TensorInfo

__all__ = ["Paging"]


class Paging:
    """What a model's weights are read from while it runs.

    Tensors whose bytes a kernel can take as they are stay in the model's file. Anything else (float weights, types
    without a packed form of their own, Hugging Face folders) is packed once, into a temporary file without a name,
    which takes about a quarter of a byte per ternary weight and is gone with the model.

    Parameters
    ----------
    file : ModelFile
    block_bytes : int
        Most bytes that are read at a time, unless 16 rows take more.
    channels : ChannelPlan
        Linear layers that are read by channel, too.
    room : int
        Bytes that may be in memory while one of these is written.

    Attributes
    ----------
    pager : lowbit._kernels.paging.Pager
    """

    def __init__(
        self, file: ModelFile, block_bytes: int, channels: ChannelPlan = NO_CHANNELS, room: int = 1 << 20
    ) -> None:
        self.pager = Pager(block_bytes)
        self.channels, self.room = channels, room
        self._by_channel = ChannelPager(channels.block_bytes)
        self._file = file
        self._sources: list[str | IO[bytes]] = []
        self._spill: IO[bytes] | None = None

    def in_file(self, info: TensorInfo, matrix_type: str) -> bool:
        """Tell whether a tensor can stay where it is."""
        return matrix_type == info.type and info.type in BLOCK_TYPES and hasattr(self._file, "locate")

    def stored(self, info: TensorInfo, pattern: PackedMatrix, tail: PackedMatrix | None, **use: bool) -> PagedMatrix:
        """Page a tensor from the model's file; `use` is ``product``, ``lookup`` and ``streamed`` of `PagedMatrix`."""
        path, offset = self._file.locate(info.name)  # type: ignore[attr-defined]
        return PagedMatrix(
            self.pager, pattern, info.shape[0], info.type, self._source(os.path.abspath(path)), offset, tail, **use
        )

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

    def spilled(self, offset: int, rows: int, pattern: PackedMatrix, tail: PackedMatrix | None, **use: bool) -> Any:
        """Page a matrix whose row groups were written from `offset` on."""
        assert self._spill is not None
        return PagedMatrix(self.pager, pattern, rows, None, self._source(self._spill), offset, tail, **use)

    def spilled_channels(self, offset: int, rows: int, per_block: int, pattern: PackedMatrix) -> PagedChannels:
        """Page a linear layer whose channels were written from `offset` on."""
        assert self._spill is not None
        source = self._source(self._spill)
        return PagedChannels(self.pager, self._by_channel, pattern, rows, per_block, source, offset)

    @property
    def scratch_bytes(self) -> int:
        """Bytes beside the caches."""
        return self.pager.scratch_bytes + (self._by_channel.scratch_bytes if self._by_channel.n_blocks else 0)

    def start(self, budget: int) -> None:
        """Make the caches; MemoryBudgetError if `budget` bytes are too few for them.

        What every token needs comes first; channels, of which it needs some, get the memory that is left, and a
        sixteenth at least: some hundred reads have to be under way.
        """
        channels = self._by_channel
        if not channels.n_blocks:
            self.pager.start(self._sources, budget)
            return
        assert self._spill is not None
        rest = max(budget - self.pager.most_bytes, channels.least_bytes + budget // 16)
        rest = min(rest, channels.most_bytes, max(budget - self.pager.least_bytes, channels.least_bytes))
        try:
            self.pager.start(self._sources, budget - rest)
        except MemoryBudgetError as error:
            smallest = (error.smallest or 0) + channels.least_bytes
            raise MemoryBudgetError(f"these weights need {smallest} bytes", smallest) from None
        channels.start(self._spill, rest)
        self.pager.channels = channels

    def _source(self, source: str | IO[bytes]) -> int:
        if source not in self._sources:
            self._sources.append(source)
        return self._sources.index(source)
