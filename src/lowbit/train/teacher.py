"""A model, run by lowbit itself, whose predictions are learned besides the text (knowledge distillation)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormatError
from ..tokenizers import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ..model import Model


class Teacher:
    """Any model that lowbit runs, over the vocabulary of the model that learns.

    Parameters
    ----------
    path : model file
    tokenizer : of the model that learns
    length : longest text it is asked about, in tokens

    Raises
    ------
    LowbitError
        If the file cannot be read, or has another vocabulary or a shorter context.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer, length: int) -> None:
        theirs = load_tokenizer(path)
        if theirs.vocab_size != tokenizer.vocab_size or any(
            theirs.piece(i) != tokenizer.piece(i) for i in range(theirs.vocab_size)
        ):
            raise FormatError(f"{path}: a teacher needs the same vocabulary; train with --vocabulary {path}")
        self.path, self.vocab_size, self.length = path, tokenizer.vocab_size, length
        self._model: Model | None = None
        self._process = 0
        self._load()

    def __call__(self, tokens: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Return log-probabilities of the next token, float32 (rows, length, vocab), for rows as in `Batch`."""
        model = self._load()
        told = np.full((*tokens.shape, self.vocab_size), -np.log(self.vocab_size), np.float32)
        for row, starts in enumerate(first):
            for start in np.flatnonzero(starts == np.arange(len(starts))):
                end = start + int((starts[start:] == start).sum())
                if end - start == 1 and start and tokens[row, start] == 0:
                    continue  # what fills the row
                logits = model.logits(tokens[row, start:end].tolist())
                largest = logits.max(-1, keepdims=True)
                told[row, start:end] = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
        return told

    def _load(self) -> Model:
        """Return the model, loaded by the process that runs it: threads do not survive the copying of a process."""
        if self._model is None or self._process != os.getpid():
            from ..loading.load import load

            self._model, self._process = load(self.path, threads=1), os.getpid()
            if self._model.context < self.length:
                raise FormatError(f"{self.path}: a teacher with a context of {self.length} tokens is needed")
        return self._model
