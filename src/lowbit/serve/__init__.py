"""An HTTP server on the engine, with the APIs of OpenAI, Anthropic and llama.cpp's server.

What a request gets does not depend on who else asks.
"""

from __future__ import annotations

from .app import App
from .service import Service
from .settings import Settings

__all__ = ["App", "Service", "Settings"]
