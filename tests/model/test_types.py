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


def test_a_head_in_8_bits_is_that_of_a_q8_0_file(isa, write_llama, oracle):
    path = write_llama(hidden=64, wide=80, vocab=64)
    config, weights = oracle(path)
    table = weights["token_embd"]
    scales = (np.abs(table.reshape(64, -1, 32)).max(2) / 127).astype(np.float16).astype(np.float64)
    codes = np.rint(table.reshape(64, -1, 32) * 127 / np.abs(table.reshape(64, -1, 32)).max(2, keepdims=True))
    rounded = reference.IntLinear(codes.reshape(table.shape).astype(np.int8), scales)
    want = reference.forward(config, {**weights, "token_embd": rounded}, IDS)
    got = lowbit.load(path, head="q8_0").logits(IDS)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert np.median(np.abs(got - want)) < 1e-5 * np.abs(want).max()
    assert np.array_equal(lowbit.load(path, head="file").logits(IDS), lowbit.load(path).logits(IDS))


@pytest.mark.parametrize(
    ("shapes", "keys", "sizes"),
    [
        ({}, {}, {"hidden": 96, "wide": 16, "heads": 4, "kv_heads": 1}),
        (
            {
                "blk.0.attn_q.weight": (6, 128),
                "blk.0.attn_k.weight": (2, 128),
                "blk.0.attn_v.weight": (2, 128),
                "blk.0.attn_output.weight": (128, 6),
            },
            {"attention.key_length": 2, "attention.value_length": 2},
            {"hidden": 128, "wide": 16, "heads": 3, "kv_heads": 1},
        ),
        (
            {
                "blk.0.attn_q.weight": (120, 16),
                "blk.0.attn_k.weight": (40, 16),
                "blk.0.attn_v.weight": (40, 16),
                "blk.0.attn_output.weight": (16, 120),
            },
            {"attention.key_length": 40, "attention.value_length": 40},
            {"hidden": 16, "wide": 16, "heads": 3, "kv_heads": 1},
        ),
        ({}, {}, {"hidden": 34, "wide": 333, "heads": 1, "kv_heads": 1, "vocab": 65}),
        ({}, {"rope.dimension_count": 4}, {"hidden": 30, "wide": 7, "heads": 3, "kv_heads": 3, "vocab": 101}),
    ],
    ids=["narrow feed-forward", "narrow heads", "wide heads", "wide feed-forward", "odd sizes"],
)
def test_any_proportions_follow_the_oracle_and_stay_in_their_memory(
    isa, write_llama, oracle, guards, shapes, keys, sizes
):
    path = write_llama(shapes=shapes, keys=keys, **{"vocab": 64, **sizes})
    want = reference.forward(*oracle(path), IDS)
    model = lowbit.load(path, context=len(IDS))  # as much scratch memory as the tokens need, and no more
    error = np.abs(model.logits(IDS) - want) / np.abs(want).max()
    assert np.median(error) < 1e-6
    assert error.max() < 1e-3  # scores of hundreds, whose rounding errors softmax turns into those of weights
    assert guards.blocks
    assert guards.intact()
