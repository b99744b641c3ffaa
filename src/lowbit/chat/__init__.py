"""Conversations: messages -> the token ids that a model was trained to answer, and a session that remembers.

The families' templates are Python functions; a file's own Jinja template runs only when none of them is its like, and
then in a sandbox in a process of its own.
"""

from __future__ import annotations

from .session import ChatSession
from .templates import TEMPLATES, Template, find_template, render
from .tools import Delta, ToolCalls, in_thought

__all__ = [
    "TEMPLATES", "ChatSession", "Delta", "Template", "ToolCalls", "find_template", "in_thought", "render",
]  # fmt: skip
