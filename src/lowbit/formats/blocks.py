"""Decoding stored tensor blocks to values, and ternary ones to codes and scales, with NumPy.

A code is a weight plus one: 0, 1, 2 mean -1, 0, +1. Scales are checked here, once, so that nothing behind this file
meets an infinity or a NaN that a file smuggled in. Layout facts: llama.cpp `ggml/src/ggml-common.h`,
`ggml/src/ggml-quants.c`; for I2_S microsoft/BitNet `src/ggml-bitnet-mad.cpp`; for Q8_L2C karpathy/llama2.c `export.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import iquants, kquants
from lowbit.formats.bits import f16, finite, spread
from lowbit.quantize.ggml_types import tensor_nbytes, type_of

# 3**n mod 256 lifts the n-th base-3 digit of a TQ1_0 byte to the top.
_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]


def dequantize(type_name: str, raw: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Decode a tensor to its values.

    Parameters
    ----------
    type_name : str
        Name of a ggml type, one of `lowbit.quantize.ggml_types.DECODABLE`.
    raw : ndarray of uint8, shape (n_bytes,)
        Stored bytes; may be read-only and unaligned.
    shape : sequence of int
        Row-major.

    Returns
    -------
    ndarray of float32, shape `shape`
        For F32, a view of `raw` where its alignment allows.

    Raises
    ------
    FormatError
        If the size does not fit the shape, a scale is not finite, or a ternary code is 3 in a type without it.
    UnsupportedModelError
        If the type cannot be decoded.
    """
    if type_name in iquants.GROUPS or (
        type_name in _WITH_CODE_3 and not is_ternary(type_name, _blocks(type_name, raw, shape))
    ):
        codes, scales = integer_codes(type_name, raw, shape)
        products: np.ndarray = codes.reshape(*scales.shape, -1) * scales[:, :, None]
        return products.reshape(tuple(shape))
    if type_name in TERNARY:
        codes, scales = ternary_codes(type_name, raw, shape)
        rows, n_blocks = scales.shape
        values = codes.astype(np.float32)
        values -= 1
        values.reshape(rows, n_blocks, -1)[:] *= scales[:, :, None]
        return values.reshape(tuple(shape))
    if type_name not in _DECODERS:
        type_of(type_name)
        raise UnsupportedModelError(f"values of type {type_name} cannot be decoded")
    if type_name == "Q8_L2C":
        return _q8_l2c(raw, math.prod(shape)).reshape(tuple(shape))
    return _DECODERS[type_name](_blocks(type_name, raw, shape)).reshape(tuple(shape))


def ternary_codes(type_name: str, raw: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a ternary tensor to codes and scales; the weights are (codes - 1) * scale.

    Parameters
    ----------
    type_name : str
        Key of `TERNARY`.
    raw : ndarray of uint8, shape (n_bytes,)
    shape : sequence of int
        Row-major; all dimensions but the last count as rows.

    Returns
    -------
    codes : ndarray of uint8, shape (rows, cols)
        0, 1 or 2.
    scales : ndarray of float32, shape (rows, n_blocks)
        Scale of each run of cols / n_blocks codes; `n_blocks` is 1 for I2_S, and cols divided by the values in a
        block else.

    Raises
    ------
    FormatError
        If the size does not fit the shape, a scale is not finite, or a code is 3.
    UnsupportedModelError
        If the type is not ternary.
    """
    if type_name not in TERNARY:
        type_of(type_name)
        raise UnsupportedModelError(f"type {type_name} is not ternary")
    rows, cols = math.prod(shape[:-1]), shape[-1]
    codes, scales = TERNARY[type_name](_blocks(type_name, raw, shape))
    codes = codes.reshape(rows, cols)
    if scales.size == 1:
        return codes, np.full((rows, 1), scales.item(), np.float32)
    return codes, scales.reshape(rows, -1)


def is_ternary(type_name: str, raw: np.ndarray) -> bool:
    """Tell whether a tensor of a key of `TERNARY` has ternary weights: Q2_0 and PQ2_0 can hold +2, as the code 3."""
    if type_name not in _WITH_CODE_3:
        return True
    packed = raw.reshape(-1, type_of(type_name).block_bytes)[:, 2:]
    return not (packed & (packed >> 1) & 0x55).any()


def integer_codes(type_name: str, raw: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a tensor to small integers and scales, whose products are the weights, exactly.

    Parameters
    ----------
    type_name : str
        Key of `lowbit.formats.iquants.GROUPS`; or Q2_0 or PQ2_0, whose code 3 is +2.
    raw : ndarray of uint8, shape (n_bytes,)
    shape : sequence of int
        Row-major; all dimensions but the last count as rows.

    Returns
    -------
    codes : ndarray of int8, shape (rows, cols)
    scales : ndarray of float32, shape (rows, n_groups)
        Scale of each run of cols / n_groups weights.

    Raises
    ------
    FormatError
        If the size does not fit the shape, or a scale is not finite.
    """
    blocks, rows = _blocks(type_name, raw, shape), math.prod(shape[:-1])
    if type_name in _WITH_CODE_3:
        codes, scales = spread(blocks[:, 2:], 1, (0, 2, 4, 6), 3).view(np.int8) - np.int8(1), f16(blocks[:, :2])
    else:
        codes, scales = iquants.DECODERS[type_name](blocks)
    return codes.reshape(rows, -1), scales.reshape(rows, -1)


def _blocks(type_name: str, raw: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Check the size and cut the bytes into (n_blocks, block_bytes); a tail comes along as (1, n_bytes)."""
    expected = tensor_nbytes(type_name, shape)
    raw = np.asarray(raw).reshape(-1).view(np.uint8)
    if raw.nbytes != expected:
        raise FormatError(f"{type_name} tensor of shape {tuple(shape)} has {raw.nbytes} bytes, expected {expected}")
    kind = type_of(type_name)
    return raw.reshape(1, -1) if kind.tail_bytes else raw.reshape(-1, kind.block_bytes)


def _crumbs(packed: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Spread each run of 32 bytes to 4 runs of 32 two-bit codes, one run per shift: (n, 32) -> (n, 4, 32)."""
    # A code is 3 where a bit and its upper neighbour are both set.
    if (packed & (packed >> 1) & 0x55).any():
        raise FormatError("a ternary code is 3")
    codes: np.ndarray = packed[:, None, :] >> np.array(shifts, np.uint8)[:, None]
    codes &= 3
    return codes


def _tq1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # 48 + 4 bytes of base-3 digits, then the float16 scale.
    return _trits((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)), f16(blocks[:, 52:])


def _trits(*parts: tuple[np.ndarray, int]) -> np.ndarray:
    """Base-3 digits, most significant first, that are stored as ceil(q * 256 / 243): parts of bytes, digits in each.

    In a part, digit n of byte m is element m + n * (bytes of the part).
    """
    digits = [(part[:, None, :] * _POWERS_OF_3[:n_digits]).reshape(len(part), -1) for part, n_digits in parts]
    codes: np.ndarray = ((np.concatenate(digits, axis=1).astype(np.uint16) * 3) >> 8).astype(np.uint8)
    return codes


def _tq2_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Two runs of 32 bytes; a byte's lowest two bits belong to the first of its run's four sub-runs of 32 elements.
    return _crumbs(blocks[:, :64].reshape(-1, 32), (0, 2, 4, 6)), f16(blocks[:, 64:])


def _i2_s(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Like TQ2_0 with the highest bits first, over the flat tensor; one float32 scale behind the codes, then 28 bytes
    # whose content nobody defines.
    packed, tail = tensor[0, :-32], tensor[0, -32:]
    scale = finite(tail[:4].copy().view("<f4"))
    return _crumbs(packed.reshape(-1, 32), (6, 4, 2, 0)), scale


def _ptq1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # As TQ1_0, with 24 + 2 bytes of digits.
    return _trits((blocks[:, :16], 5), (blocks[:, 16:24], 5), (blocks[:, 24:26], 4)), f16(blocks[:, 26:])


def _stq1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # qs[32], sign[8], f16 d. Groups of four weights of which one is 0: its place is the upper half of a nibble; of the
    # others the first is +, bits 0 and 1 negate the second and the third, and the group's bit of `sign` negates all.
    # Place p of group g is element 64 * (g / 16) + 16 * p + g % 16.
    slots = spread(blocks[:, :32], 1, (0, 4), 15)
    negative = spread(blocks[:, 32:40], 1, tuple(range(8)), 1)[:, :, None]
    codes = 1 + _STQ1_0_SLOTS[slots] * (1 - 2 * negative.astype(np.int8))
    return codes.astype(np.uint8).reshape(-1, 4, 16, 4).swapaxes(2, 3), f16(blocks[:, 40:])


def _stq1_0_slots() -> np.ndarray:
    rows = []
    for slot in range(16):
        row = [1, 1 - 2 * (slot & 1), 1 - (slot & 2)]
        row.insert(slot >> 2, 0)
        rows.append(row)
    return np.array(rows, np.int8)


_STQ1_0_SLOTS = _stq1_0_slots()


def _q1_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The float16 scale, then a bit for each weight: -1 or +1.
    return spread(blocks[:, 2:], 1, tuple(range(8)), 1) << 1, f16(blocks[:, :2])


def _q2_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The float16 scale comes first; four neighbouring codes to a byte, the first in the lowest bits. Code 3 is +2,
    # which is not ternary.
    packed = blocks[:, 2:]
    if (packed & (packed >> 1) & 0x55).any():
        raise FormatError("a ternary code is 3")
    return spread(packed, 1, (0, 2, 4, 6), 3), f16(blocks[:, :2])


TERNARY: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "I2_S": _i2_s,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "PQ2_0": _q2_0,
    "PTQ1_0": _ptq1_0,
    "STQ1_0": _stq1_0,
}
"""Decoders of the ternary types, by type name."""
_WITH_CODE_3 = ("Q2_0", "PQ2_0")


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= f16(blocks[:, :2])
    return values


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    # The low nibbles are elements 0..15, the high ones 16..31.
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    values = nibbles.astype(np.float32)
    values -= 8
    values *= f16(blocks[:, :2])
    return values


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    # float16 scale, float16 minimum, then nibbles as in Q4_0.
    return _affine(blocks, spread(blocks[:, 4:], 16, (0, 4), 15))


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    # float16 scale, the fifth bits of the 32 values in their order, then nibbles as in Q4_0.
    values = (spread(blocks[:, 6:], 16, (0, 4), 15) | _fifth_bits(blocks[:, 2:6])).astype(np.float32)
    values -= 16
    values *= f16(blocks[:, :2])
    return values


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    # As Q5_0, with a float16 minimum behind the scale.
    return _affine(blocks, spread(blocks[:, 8:], 16, (0, 4), 15) | _fifth_bits(blocks[:, 4:8]))


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    return spread(packed, 1, tuple(range(8)), 1) << 4


def _affine(blocks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """code * scale + minimum, where the block begins with both."""
    values = codes.astype(np.float32)
    values *= f16(blocks[:, :2])
    values += f16(blocks[:, 2:4])
    return values


def _q8_l2c(raw: np.ndarray, n_elements: int) -> np.ndarray:
    raw = np.asarray(raw).reshape(-1).view(np.uint8)
    n_groups, odd = divmod(raw.nbytes - n_elements, 4)
    if odd or n_groups < 1 or n_elements % n_groups:
        raise FormatError(f"Q8_L2C tensor of {n_elements} values cannot have {raw.nbytes} bytes")
    scales = finite(raw[n_elements:].copy().view("<f4"))
    values = raw[:n_elements].view(np.int8).astype(np.float32).reshape(n_groups, -1)
    values *= scales[:, None]
    return values


_DECODERS: dict[str, Callable[..., np.ndarray]] = {
    "F32": lambda blocks: blocks.view("<f4").astype(np.float32, copy=False),
    "F16": lambda blocks: blocks.view("<f2").astype(np.float32),
    "BF16": lambda blocks: (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": kquants.q2_k,
    "Q3_K": kquants.q3_k,
    "Q4_K": kquants.q4_k,
    "Q5_K": kquants.q5_k,
    "Q6_K": kquants.q6_k,
    "Q8_L2C": _q8_l2c,
}
