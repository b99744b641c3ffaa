"""Decoding ggml's i-quants, IQ4_NL, IQ4_XS and MXFP4: small integers with a scale for 16 or 32 of them.

Each decoder takes blocks (n_blocks, block_bytes) and gives integers (n_blocks, n_groups, size) and float32 scales
(n_blocks, n_groups, 1), or raises FormatError if a scale is not finite. A weight is their product, which float32 holds
exactly, so there is no rounding anywhere. Most integers are rows of a grid (`grids`) with signs. Layout facts:
llama.cpp `ggml/src/ggml-common.h`, `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats.bits import f16, spread
from lowbit.formats.grids import grid
from lowbit.quantize.iq4 import VALUES

Integers = tuple[np.ndarray, np.ndarray]

NIBBLES = VALUES.astype(np.int8)
"""What the nibbles of IQ4_NL and IQ4_XS stand for."""
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice what the nibbles of MXFP4 stand for: floats of a sign, two bits of exponent and one of fraction."""
_MXFP4_TOP = 252
"""The largest exponent with which all 16 values are finite in float32."""


def _u16(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(columns).view("<u2")


def _u32(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(columns).view("<u4")


def even_signs(indices: np.ndarray) -> np.ndarray:
    """Complete seven signs to a byte in which an even number of bits is set."""
    byte = indices.astype(np.uint8)
    parity = byte ^ byte >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    complete: np.ndarray = byte | (parity & 1) << 7
    return complete


def _signed(rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Negate elements of runs of eight where the bit of their run's byte is set: (..., 8), (...) -> (..., 8)."""
    negative = (signs[..., None] >> np.arange(8, dtype=np.uint8) & 1).astype(np.int8)
    signed: np.ndarray = (rows ^ -negative) + negative
    return signed


def _iq2_xxs(blocks: np.ndarray) -> Integers:
    # f16 d; for each 32 values four grid indices of a byte, then a u32: four times seven signs, and a 4-bit scale.
    parts = blocks[:, 2:].reshape(len(blocks), 8, 8)
    packed = _u32(parts[:, :, 4:])
    signs = even_signs(packed >> np.arange(0, 28, 7, dtype=np.uint32) & 127)
    codes = _signed(grid("IQ2_XXS")[parts[:, :, :4]], signs)
    return codes.reshape(-1, 8, 32), _eighths(blocks, packed >> 28)


def _iq2_xs(blocks: np.ndarray) -> Integers:
    # f16 d; u16 qs[32] of 9 bits of index and 7 signs; 4-bit scales of 16 values.
    packed = _u16(blocks[:, 2:66])
    codes = _signed(grid("IQ2_XS")[packed & 511], even_signs(packed >> 9))
    return codes.reshape(-1, 16, 16), _eighths(blocks, _pairs(blocks[:, 66:]))


def _iq2_s(blocks: np.ndarray) -> Integers:
    # f16 d; qs[32]; signs[32]; qh[8] with the upper two bits of four indices each; 4-bit scales of 16 values.
    high = spread(blocks[:, 66:74], 1, (0, 2, 4, 6), 3).astype(np.uint16)
    codes = _signed(grid("IQ2_S")[blocks[:, 2:34] | high << 8], blocks[:, 34:66])
    return codes.reshape(-1, 16, 16), _eighths(blocks, _pairs(blocks[:, 74:]))


def _iq3_xxs(blocks: np.ndarray) -> Integers:
    # f16 d; 64 indices of rows of four; eight u32: four times seven signs, and a 4-bit scale of 32 values.
    packed = _u32(blocks[:, 66:])
    signs = even_signs(packed[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127)
    rows = grid("IQ3_XXS")[blocks[:, 2:66]].reshape(-1, 8, 4, 8)
    scales = f16(blocks[:, :2]) * ((packed >> 28) * 2 + 1).astype(np.float32) / 4
    return _signed(rows, signs).reshape(-1, 8, 32), scales[:, :, None]


def _iq3_s(blocks: np.ndarray) -> Integers:
    # f16 d; qs[64]; qh[8] with the ninth bits of eight indices each; signs[32]; 4-bit scales of 32 values.
    high = spread(blocks[:, 66:74], 1, tuple(range(8)), 1).astype(np.uint16)
    rows = grid("IQ3_S")[blocks[:, 2:66] | high << 8].reshape(-1, 32, 8)
    scales = f16(blocks[:, :2]) * (_pairs(blocks[:, 106:]) * 2 + 1).astype(np.float32)
    return _signed(rows, blocks[:, 74:106]).reshape(-1, 8, 32), scales[:, :, None]


def _iq1_s(blocks: np.ndarray) -> Integers:
    # f16 d; qs[32]; u16 qh[8]: the upper three bits of four indices, a 3-bit scale, and which way 1/8 is added.
    qh = _u16(blocks[:, 34:50])
    high = (qh[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 32)
    rows = grid("IQ1_S")[blocks[:, 2:34] | high << 8].reshape(-1, 8, 32)
    codes = rows * np.int8(8) + _shift(qh >> 15)[:, :, None]
    scales = f16(blocks[:, :2]) * ((qh >> 12 & 7) * 2 + 1).astype(np.float32) / 8
    return codes, scales[:, :, None]


def _iq1_m(blocks: np.ndarray) -> Integers:
    # qs[32]; qh[16] of nibbles: the upper three bits of an index, and which way 1/8 is added to its eight values;
    # scales[8] as u16[4]: 3-bit scales of 16 values, and in the upper four bits a nibble of the float16 d each.
    packed = _u16(blocks[:, 48:56])
    nibbles = packed >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    d = f16(np.bitwise_or.reduce(nibbles, axis=1).astype("<u2")[:, None].view(np.uint8))
    small = (packed[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 16)
    nibble = spread(blocks[:, 32:48], 1, (0, 4), 15)
    rows = grid("IQ1_S")[blocks[:, :32] | (nibble & 7).astype(np.uint16) << 8]
    codes = rows * np.int8(8) + _shift(nibble >> 3)[:, :, None]
    return codes.reshape(-1, 16, 16), (d * (small * 2 + 1).astype(np.float32) / 8)[:, :, None]


def _iq4_nl(blocks: np.ndarray) -> Integers:
    # f16 d; the low nibbles are elements 0..15, the high ones 16..31.
    return NIBBLES[spread(blocks[:, 2:], 16, (0, 4), 15)][:, None, :], f16(blocks[:, :2])[:, :, None]


def _iq4_xs(blocks: np.ndarray) -> Integers:
    # f16 d; the upper two bits of eight 6-bit scales as u16; their lower four bits; nibbles of 32 values as in IQ4_NL.
    high = _u16(blocks[:, 2:4]) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (_pairs(blocks[:, 4:8]) | high << 4).astype(np.float32) - 32
    codes = NIBBLES[spread(blocks[:, 8:], 16, (0, 4), 15)].reshape(-1, 8, 32)
    return codes, (f16(blocks[:, :2]) * scales)[:, :, None]


def _mxfp4(blocks: np.ndarray) -> Integers:
    # A power of two, and nibbles as in IQ4_NL.
    exponents = blocks[:, :1].astype(np.int32)
    if (exponents > _MXFP4_TOP).any():
        raise FormatError("a scale is infinite or not a number")
    return FP4[spread(blocks[:, 1:], 16, (0, 4), 15)][:, None, :], np.ldexp(np.float32(1), exponents - 128)[:, :, None]


def _pairs(packed: np.ndarray) -> np.ndarray:
    """Two nibbles of each byte, the low one first."""
    return spread(packed, 1, (0, 4), 15)


def _eighths(blocks: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Scales d * (0.5 + small) / 4 where the block begins with d: (n, groups) or (n, groups, 1) -> (n, groups, 1)."""
    scales: np.ndarray = f16(blocks[:, :2]) * (small.reshape(len(blocks), -1) * 2 + 1).astype(np.float32) / 8
    return scales[:, :, None]


def _shift(down: np.ndarray) -> np.ndarray:
    shift: np.ndarray = np.int8(1) - 2 * down.astype(np.int8)
    return shift


DECODERS: dict[str, Callable[[np.ndarray], Integers]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}

GROUPS = {name: 16 if name in ("IQ2_XS", "IQ2_S", "IQ1_M") else 32 for name in DECODERS}
"""Weights that share a scale, by type."""
