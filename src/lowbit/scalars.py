"""Numbers that callers give: those of NumPy and of other libraries are as good as Python's own."""

from __future__ import annotations

import numbers
import operator
from typing import Any


def plain(value: Any) -> Any:
    """Return the int or float that a number of another type is; anything else, bool too, as it is."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    try:
        return operator.index(value)
    except TypeError:
        return float(value) if isinstance(value, numbers.Real) else value
