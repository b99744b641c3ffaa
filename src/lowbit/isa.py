"""Which instruction sets there are, and which one computes.

The environment variable ``LOWBIT_ISA`` forces one when lowbit is first used. An unknown or unsupported name raises
`lowbit.UnsupportedISAError`; lowbit never falls back silently.
"""

from __future__ import annotations

from ._kernels import dispatch

__all__ = ["active", "available", "compiled", "missing", "use"]


def active() -> str:
    """Return the name of the instruction set in use."""
    return dispatch.active()


def available() -> list[str]:
    """Return the instruction sets of this build that can run here, the plainest first."""
    return dispatch.available()


def compiled() -> list[str]:
    """Return the instruction sets of this build, the plainest first."""
    return dispatch.compiled()


def missing() -> dict[str, str]:
    """Return why instruction sets of this build cannot run here, by name.

    The CPU does not have them, or, with ``amx``, the system refuses the registers that a process must ask for.
    """
    return dispatch.missing()


def use(name: str | None = None) -> None:
    """Use an instruction set from now on, in the whole process.

    Results do not depend on it. Must not be called while another thread computes.

    Parameters
    ----------
    name : str, optional
        One of `available`; None takes the best.

    Raises
    ------
    UnsupportedISAError
        If this build does not have it, or it cannot run here (`missing`).
    """
    dispatch.use(name)
