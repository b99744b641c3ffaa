"""What an engine needs of a model; nothing here knows how models are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .._kernels.decoder import Decoder
from ..sampling import SamplingParams
from ..tokenizers import Tokenizer
from .constraints import Compiler, Constraint
from .sequence import Request
from .text import LogprobRecorder


class Host(Protocol):
    """What an engine needs of a model, such as `lowbit.Model`."""

    _draft: Decoder | None
    _tokenizer: Tokenizer | None
    _compiler: Compiler

    @property
    def _decoder(self) -> Decoder: ...

    def _prompt_ids(self, prompt: str | Sequence[int]) -> np.ndarray: ...

    def _request(
        self, ids: np.ndarray, params: SamplingParams, speculate: bool | None, record: LogprobRecorder | None,
        salt: bytes, constraint: Constraint | None, fresh: bool,
    ) -> Request: ...  # fmt: skip
