"""RoPE scalings: one divisor per pair of channels, and one factor for all of them."""

from __future__ import annotations

import math

import numpy as np


def yarn_factors(
    rope_dim: int, theta: float, factor: float, original: int, beta_fast: float = 32.0, beta_slow: float = 1.0,
    truncate: bool = True,
) -> tuple[float, ...]:  # fmt: skip
    """Divisors of the rotary frequencies under YaRN.

    Parameters
    ----------
    rope_dim : int
        Rotated channels of a head.
    theta : float
        Base of the frequencies.
    factor : float
        How much longer the context has become.
    original : int
        Context before that, in tokens.
    beta_fast, beta_slow : float
        Turns within the original context: pairs that make more than the first keep their frequency, pairs that make
        fewer than the second are divided by `factor`, and those between by something between.
    truncate : bool
        The bounds of these ranges are rounded outwards to whole pairs.

    Returns
    -------
    tuple of float, length rope_dim / 2

    Notes
    -----
    Source: Peng et al., YaRN (arXiv 2309.00071), and transformers for `truncate`; llama.cpp always rounds.
    """

    def pair_that_turns(times: float) -> float:
        return rope_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    ramp = np.clip((np.arange(rope_dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return tuple(float(f) for f in 1.0 / (ramp / factor + 1.0 - ramp))


def yarn_magnitude(factor: float) -> float:
    """What YaRN multiplies cosines and sines by, for a context that has become `factor` times as long.

    Source: Peng et al., YaRN (arXiv 2309.00071), section 3.4.
    """
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
