"""Encoding float weights as stored tensor blocks: one file per method, one row per type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.quantize.floats import encode_bf16, encode_f16, encode_f32
from lowbit.quantize.ggml_types import tensor_nbytes, type_of
from lowbit.quantize.int4 import encode_q4_0, encode_q4_1
from lowbit.quantize.int5 import encode_q5_0, encode_q5_1
from lowbit.quantize.int6 import encode_q6_k
from lowbit.quantize.int8 import encode_q8_0
from lowbit.quantize.iq4 import encode_iq4_nl
from lowbit.quantize.kquants import encode_q4_k, encode_q5_k
from lowbit.quantize.ternary import absmean, encode_i2_s, encode_tq1_0, encode_tq2_0, pack_codes

__all__ = ["QUANTIZERS", "absmean", "pack_codes", "quantize"]

QUANTIZERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": encode_f32,
    "F16": encode_f16,
    "BF16": encode_bf16,
    "Q8_0": encode_q8_0,
    "Q4_0": encode_q4_0,
    "Q4_1": encode_q4_1,
    "Q5_0": encode_q5_0,
    "Q5_1": encode_q5_1,
    "Q4_K": encode_q4_k,
    "Q5_K": encode_q5_k,
    "Q6_K": encode_q6_k,
    "IQ4_NL": encode_iq4_nl,
    "TQ1_0": encode_tq1_0,
    "TQ2_0": encode_tq2_0,
    "I2_S": encode_i2_s,
}
"""Encoders by type name: float32 (rows, cols) -> uint8, any shape."""


def quantize(type_name: str, array: np.ndarray) -> np.ndarray:
    """Encode a tensor.

    The ternary types round to the blocks' largest magnitude and so lose weights that are not ternary yet: use
    `absmean` first for a model that was trained in float with ternary forward weights.

    Parameters
    ----------
    type_name : str
        Key of `QUANTIZERS`.
    array : ndarray of float, shape (..., cols)

    Returns
    -------
    ndarray of uint8, shape (n_bytes,)
        As `ggml` encodes it, byte for byte, but for codes under a scale of 0, and for weights whose fourth powers
        float32 does not hold.

    Raises
    ------
    FormatError
        If rows do not hold whole blocks, values are not finite, or exceed what the type's scale can hold.
    UnsupportedModelError
        If there is no encoder for the type.
    """
    encode = QUANTIZERS.get(type_name)
    if encode is None:
        type_of(type_name)
        raise UnsupportedModelError(f"there is no encoder for type {type_name}")
    array = np.asarray(array, np.float32)
    expected = tensor_nbytes(type_name, array.shape)
    if not np.isfinite(array).all():
        raise FormatError("weights are infinite or not a number")
    raw = np.ascontiguousarray(encode(np.ascontiguousarray(array).reshape(-1, array.shape[-1]))).reshape(-1)
    raw = raw.view(np.uint8)
    assert raw.nbytes == expected
    return raw
