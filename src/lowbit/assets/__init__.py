"""The model that comes with lowbit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["embedded_model"]

NAME = "lowbit-tiny.gguf"


@contextmanager
def embedded_model() -> Iterator[str]:
    """Give the path of the embedded model for as long as the context lasts."""
    here = os.path.join(os.path.dirname(__file__), NAME)
    if os.path.exists(here):
        yield here
        return
    from .demo import write_demo_model  # until a trained model is packaged, a random one is made

    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = os.path.join(folder, "random-demo.gguf")
        write_demo_model(path)
        yield path
