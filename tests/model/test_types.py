"""Every tensor type in a whole model, against the oracle on the same stored numbers."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import reference

IDS = np.random.default_rng(1).integers(0, 64, 12).tolist()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_models_follow_the_oracle(isa, write_llama, oracle, kind):
    path = write_llama(kind=kind, hidden=64, wide=80, vocab=64)
    want = reference.forward(*oracle(path), IDS)
    np.testing.assert_allclose(lowbit.load(path).logits(IDS), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "TQ1_0", "TQ2_0"])
def test_integer_models_follow_the_oracle(isa, write_llama, oracle, kind):
    path = write_llama(kind=kind, hidden=256, wide=512, vocab=64)
    want = reference.forward(*oracle(path), IDS)
    got = lowbit.load(path).logits(IDS)
    # A value that rounds to the other side of a border moves a logit by a few thousandths of the largest.
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert np.median(np.abs(got - want)) < 2e-3 * np.abs(want).max()
