"""The model that comes with lowbit: MODEL_CARD.md says what it is made of."""

from __future__ import annotations

import os

__all__ = ["EMBEDDED_MODEL"]

EMBEDDED_MODEL = os.path.join(os.path.dirname(__file__), "lowbit-tiny.gguf")
"""Path of the model file."""
