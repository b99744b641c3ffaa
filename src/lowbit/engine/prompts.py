"""What callers give as prompts: a text, its tokens, or several of these; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import one_line

ONE = "a text (str) or token ids (a list of int)"


def prompts_of(prompt: Any, name: str = "prompt") -> tuple[list[str | Sequence[int]], bool]:
    """Return the entries of an argument that is one prompt or a list of them, and whether it is a list.

    Raises
    ------
    TypeError
        If it is something else; the message names the argument.
    """
    if isinstance(prompt, str):
        return [prompt], False
    if isinstance(prompt, np.ndarray):
        prompt = prompt.tolist() if prompt.ndim else None
    if isinstance(prompt, (bytes, bytearray, Mapping)) or not isinstance(prompt, Iterable):
        raise TypeError(f"{name} must be {ONE}, or a list of these, not {_shown(prompt)}")
    entries = list(prompt)
    if entries and isinstance(entries[0], (int, np.integer)):
        return [entries], False
    for entry in entries:
        if isinstance(entry, Mapping) and "content" in entry:
            raise TypeError(f"{name} must be {ONE}, or a list of these; a list of messages is for Model.chat")
        if not isinstance(entry, (str, Sequence, np.ndarray)) or isinstance(entry, (bytes, bytearray)):
            raise TypeError(f"{name} is a list, whose entries must be {ONE}, not {_shown(entry)}")
    return entries, True


def token_ids(tokens: Any, what: str) -> np.ndarray:
    """Return tokens as an array of whole numbers, shape (n,); `what` says what the argument must be, by its name.

    Raises
    ------
    TypeError
        If they are something else.
    ValueError
        If there is none.
    """
    if isinstance(tokens, (str, bytes, bytearray, Mapping)) or not isinstance(tokens, Iterable):
        raise TypeError(f"{what}, not {_shown(tokens)}")
    try:
        ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
    except ValueError:  # lists of different lengths
        ids = np.zeros((0, 0))
    if ids.ndim == 1 and not len(ids):
        raise ValueError("a sequence needs at least one token")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"{what}, not {_shown(tokens)}")
    return ids


def _shown(value: Any) -> str:
    return value.__class__.__name__ if value is not None and len(repr(value)) > 40 else one_line(repr(value))
