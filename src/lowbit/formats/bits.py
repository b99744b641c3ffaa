"""Reading the fields of stored blocks: checked float16 scales, and codes of a few bits packed into bytes."""

from __future__ import annotations

import numpy as np

from lowbit.errors import FormatError


def finite(scales: np.ndarray) -> np.ndarray:
    """Return the scales; FormatError if one is infinite or not a number."""
    if not np.isfinite(scales).all():
        raise FormatError("a scale is infinite or not a number")
    return scales


def f16(columns: np.ndarray) -> np.ndarray:
    """Read two byte columns as one finite float16 per block: (n_blocks, 2) -> (n_blocks, 1) float32."""
    return finite(np.ascontiguousarray(columns).view("<f2").astype(np.float32))


def spread(packed: np.ndarray, run: int, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """Take the codes out of bytes, run by run: all codes at the first shift, then all at the second, and so on.

    Parameters
    ----------
    packed : ndarray of uint8, shape (n_blocks, n_bytes), n_bytes a multiple of `run`
    run : int
        Neighbouring bytes whose codes at one shift are neighbours.
    shifts : tuple of int
        Positions of a byte's codes, in bits.
    mask : int
        All bits of one code set.

    Returns
    -------
    ndarray of uint8, shape (n_blocks, n_bytes * len(shifts))
    """
    codes: np.ndarray = packed.reshape(len(packed), -1, 1, run) >> np.array(shifts, np.uint8)[:, None]
    codes &= mask
    return codes.reshape(len(packed), -1)
