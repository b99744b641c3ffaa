"""Files of requests in OpenAI's batch format, answered at the full width of the engine, whatever interrupts it.

What a line gets depends on the line, the model and the settings alone, so that a run which is killed and begun again
leaves the answers that it would have left in one go.
"""

from __future__ import annotations

from .answering import Answer, Answerer, failure
from .dispatch import Dispatcher
from .journal import Journal
from .lines import Lines
from .progress import Progress
from .running import Outcome, lines_left, run

__all__ = [
    "Answer",
    "Answerer",
    "Dispatcher",
    "Journal",
    "Lines",
    "Outcome",
    "Progress",
    "failure",
    "lines_left",
    "run",
]
