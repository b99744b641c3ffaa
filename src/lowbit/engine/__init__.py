"""Many texts at once on one model: requests join and leave a running batch, and none depends on the others."""

from __future__ import annotations

from .engine import Engine
from .sequence import State
from .stream import Stream
from .text import Generation, Timings, TokenLogprob

__all__ = ["Engine", "Generation", "State", "Stream", "Timings", "TokenLogprob"]
