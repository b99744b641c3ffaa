"""lowbit: run ternary (1.58-bit) language models on an ordinary CPU.

Importing this package does no I/O and loads nothing heavy; names are resolved when first used.
"""

from __future__ import annotations

import importlib

from .errors import (
    ConstraintError,
    ContextLengthError,
    FormatError,
    LowbitError,
    MemoryBudgetError,
    MissingFileError,
    QueueFullError,
    RemoteError,
    UnsupportedISAError,
    UnsupportedModelError,
)

TYPE_CHECKING = False  # of `typing`, whose import takes longer than all else here; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from . import isa, kernels
    from .engine import Engine, Generation, Stream, Timings, TokenLogprob
    from .loading.load import load
    from .model import Model, Perplexity
    from .plan import ModelPlan
    from .sampling import SamplingParams
    from .tokenizers import load_tokenizer

__version__ = "0.2.0"

_LAZY = {
    "load": "loading.load",
    "Model": "model",
    "Engine": "engine",
    "Generation": "engine",
    "Stream": "engine",
    "Perplexity": "model",
    "Timings": "engine",
    "TokenLogprob": "engine",
    "ModelPlan": "plan",
    "SamplingParams": "sampling",
    "load_tokenizer": "tokenizers",
    "isa": None,
    "kernels": None,
}

__all__ = [
    "ConstraintError",
    "ContextLengthError",
    "Engine",
    "FormatError",
    "Generation",
    "LowbitError",
    "MemoryBudgetError",
    "MissingFileError",
    "Model",
    "ModelPlan",
    "Perplexity",
    "QueueFullError",
    "RemoteError",
    "SamplingParams",
    "Stream",
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
    importlib.import_module("._kernels", __name__)  # it asks the CPU, which numpy does not
    if home is None:
        return importlib.import_module(f".{name}", __name__)
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
