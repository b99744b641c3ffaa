"""lowbit: run ternary (1.58-bit) language models on an ordinary CPU.

Importing this package does no I/O and loads nothing heavy; names are resolved when first used.
"""

from __future__ import annotations

import importlib

from .errors import (
    ContextLengthError,
    FormatError,
    LowbitError,
    MemoryBudgetError,
    UnsupportedISAError,
    UnsupportedModelError,
)

TYPE_CHECKING = False  # of `typing`, whose import takes longer than all else here; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from . import isa, kernels
    from .config import ModelConfig
    from .generation import Generation, Timings, TokenLogprob
    from .loading import load
    from .model import Model, Perplexity
    from .sampling import SamplingParams
    from .tokenizers import load_tokenizer

__version__ = "0.1.0"

_LAZY = {
    "load": "loading",
    "Model": "model",
    "Generation": "generation",
    "Perplexity": "model",
    "Timings": "generation",
    "TokenLogprob": "generation",
    "ModelConfig": "config",
    "SamplingParams": "sampling",
    "load_tokenizer": "tokenizers",
    "isa": None,
    "kernels": None,
}

__all__ = [
    "ContextLengthError",
    "FormatError",
    "Generation",
    "LowbitError",
    "MemoryBudgetError",
    "Model",
    "ModelConfig",
    "Perplexity",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "UnsupportedISAError",
    "UnsupportedModelError",
    "__version__",
    "isa",
    "kernels",
    "load",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    home = _LAZY[name]
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
