"""float16 means what it means in NumPy, with and without an instruction for it."""

from __future__ import annotations

import numpy as np
import pytest
from plans import make_plan

from lowbit._kernels.decoder import Decoder
from lowbit._kernels.graph import Graph
from lowbit._kernels.kvpool import KVPool
from lowbit._kernels.sequence import Sequence
from lowbit.kernels import PackedMatrix, matmul

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)
WIDTH = 512


def test_every_half_has_its_value(isa):
    w = PackedMatrix("f16", 1 << 16, 1)
    w.fill_floats(ALL_HALVES.view(np.uint8), 1 << 16)
    want = ALL_HALVES.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(w.rows(range(1 << 16))[:, 0], want)
    np.testing.assert_array_equal(matmul(w, np.ones((1, 1), np.float32))[0], want)


@pytest.fixture(scope="module")
def through_half():
    """Send 512 floats through a float16 cache.

    The model has no weights but a bias, which becomes the value of the one position, and identities. Its norms divide
    by 2**30, exactly: their epsilon of 2**60 swallows the mean square of anything below 2**16.
    """
    config = make_plan("test", WIDTH, WIDTH, 16, 1, 1, 1, WIDTH, 16, norm_eps=2.0**60)
    identity, nothing = PackedMatrix("f32", WIDTH, WIDTH), PackedMatrix("f32", WIDTH, WIDTH)
    identity.fill_floats(np.eye(WIDTH, dtype=np.float32).reshape(-1).view(np.uint8), WIDTH)
    nothing.fill_floats(np.zeros(WIDTH * WIDTH * 4, np.uint8), WIDTH)
    gate_up, down = PackedMatrix("f32", 32, WIDTH), PackedMatrix("f32", WIDTH, 16)
    gate_up.fill_floats(np.zeros(32 * WIDTH * 4, np.uint8), 32)
    down.fill_floats(np.zeros(16 * WIDTH * 4, np.uint8), WIDTH)
    ones = np.ones(WIDTH, np.float32)

    def send(values):
        layer = {"attn_norm": ones, "ffn_norm": ones, "qkv": [nothing] * 3, "attn_output": [identity],
                 "gate_up": [gate_up], "ffn_down": [down],
                 "qkv_bias": np.concatenate([np.zeros(2 * WIDTH, np.float32), values])}  # fmt: skip
        decoder = Decoder(Graph(config, [layer], nothing, identity, ones, 16, 1), KVPool(1, 1, WIDTH, "f16"), 1, 1)
        return decoder.read(Sequence(decoder.pool, np.zeros(1, np.int32), 1))[0] * np.float32(2.0**30)

    return send


def test_floats_round_to_the_nearest_half(isa, through_half):
    rng = np.random.default_rng(0)
    halves = rng.choice(ALL_HALVES[:0x7BFF], 8 * WIDTH, replace=False)  # positive and finite, not the largest
    halves[:4] = 0, 1, 0x03FF, 0x0400  # zero, and both sides of the smallest normal number
    low, high = (h.astype(np.uint16).view(np.float16).astype(np.float32) for h in (halves, halves.astype(int) + 1))
    middle = (low + high) / 2  # exact: a tie, which goes to the even one
    for values in (low, middle, np.nextafter(middle, low), np.nextafter(middle, high)):
        values = values * rng.choice(np.array([-1, 1], np.float32), values.size)
        got = np.concatenate([through_half(part) for part in values.reshape(-1, WIDTH)])
        np.testing.assert_array_equal(got, values.astype(np.float16).astype(np.float32))
