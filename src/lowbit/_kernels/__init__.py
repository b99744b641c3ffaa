"""The compiled modules. Importing this package picks the instruction set: `LOWBIT_ISA`, or the best this CPU has."""

import os

from ..errors import UnsupportedISAError
from .requirements import wanting

if wanting():  # asked before any other module runs: its first instruction could be one that this CPU does not have
    raise UnsupportedISAError(wanting())

from . import dispatch, ternary  # ternary brings the portable ternary kernel with it

dispatch.use(os.environ.get("LOWBIT_ISA") or None)

__all__ = ["dispatch", "ternary"]
