"""Documents to windows of token ids, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer

__all__ = ["Windows", "encode"]


def encode(documents: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Encode each document to uint16 token ids, the beginning-of-text token first."""
    return [np.array(tokenizer.encode(document, add_bos=True), np.uint16) for document in documents]


class Windows:
    """The endless training stream, cut into windows; window n is a function of the seed and n alone.

    Each epoch lays the documents end to end in a new order. A window holds `length` inputs and, one to the right,
    their targets, so neighbouring windows share one token.

    Parameters
    ----------
    documents : token ids of each document
    length : inputs per window, in tokens
    seed : of the order

    Raises
    ------
    FormatError
        If all documents together do not fill one window.
    """

    def __init__(self, documents: list[np.ndarray], length: int, seed: int) -> None:
        self.documents, self.length, self.seed = documents, length, seed
        self.tokens = sum(len(ids) for ids in documents)
        self.per_epoch = (self.tokens - 1) // length
        if self.per_epoch < 1:
            raise FormatError(f"the corpus is too short: {self.tokens} tokens, and one window is {length + 1}")
        self._epoch, self._stream = -1, np.empty(0, np.uint16)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return window `index` (any whole number from 0 on), int64, `length` + 1 tokens."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))
            self._stream, self._epoch = np.concatenate([self.documents[i] for i in order]), epoch
        start = place * self.length
        return self._stream[start : start + self.length + 1].astype(np.int64)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Return windows `first` to `first + count - 1`, int64 (count, length + 1)."""
        return np.stack([self[first + i] for i in range(count)])
