"""lowbit on the machines of a Ray cluster (extra ``ray``).

Each machine has one process with the whole model, and keeps its own engine full; they share nothing but the work. So a
machine that fails costs what it was doing, and what a line or a request gets does not depend on which one had it.
"""

from __future__ import annotations

from .cluster import Cluster
from .data import Answers
from .worker import Task

__all__ = ["Answers", "Cluster", "Task"]
