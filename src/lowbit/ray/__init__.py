"""lowbit on the machines of a Ray cluster (extra ``ray``).

Each machine has one process with the whole model, and keeps its own engine full; they share nothing but the work. So a
machine that fails costs what it was doing, and what a line or a request gets does not depend on which one had it.
"""

from __future__ import annotations

from typing import Any

from .cluster import Cluster
from .data import Answers
from .worker import Task

__all__ = ["Answers", "Cluster", "Task", "deployment"]


def __getattr__(name: str) -> Any:
    if name == "deployment":  # whoever has a batch needs no Ray Serve
        from .serving import deployment

        return deployment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
