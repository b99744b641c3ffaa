"""The compiled modules. Importing this package picks the instruction set: `LOWBIT_ISA`, or the best this CPU has."""

import os

from . import dispatch, ternary  # ternary brings the portable ternary kernel with it

dispatch.use(os.environ.get("LOWBIT_ISA") or None)

__all__ = ["dispatch", "ternary"]
