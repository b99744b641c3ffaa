"""Memory of weights: pieces of shared pages, which keep what they hold, and go back when nobody holds them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from lowbit._kernels.dispatch import Arena
from lowbit.kernels import pack_ternary, unpack_ternary


def test_matrices_keep_their_weights_whichever_others_end():
    rng = np.random.default_rng(3)
    held = {}
    for i in range(300):
        rows, cols = (int(n) for n in rng.integers(1, 700, 2))
        weights = rng.integers(-1, 2, (rows, cols), dtype=np.int8)
        with Arena() if i % 3 else nullcontext():
            held[i] = weights, pack_ternary(weights)
        if len(held) > 40:
            gone, (weights, packed) = list(held.items())[rng.integers(len(held))]
            assert np.array_equal(unpack_ternary(packed), weights), gone
            del held[gone], packed
    for i, (weights, packed) in held.items():
        assert np.array_equal(unpack_ternary(packed), weights), i


@pytest.mark.parametrize("size", [(1, 16), (16, 1 << 10), (1 << 12, 1 << 13), (1 << 12, (1 << 13) + 16)])
def test_pieces_of_any_size_hold_their_weights(size):
    """8 MB and a little more are where a matrix gets pages of its own."""
    weights = np.random.default_rng(4).integers(-1, 2, size, dtype=np.int8)
    with Arena():
        first, second = pack_ternary(weights), pack_ternary(-weights)
    assert np.array_equal(unpack_ternary(first), weights)
    assert np.array_equal(unpack_ternary(second), -weights)


RELEASED = """
from lowbit._kernels.dispatch import Arena
from lowbit.kernels import PackedMatrix
from lowbit.loading.memory import resident_bytes
import numpy as np
raw = np.zeros(66 << 12, np.uint8)
def matrix():
    w = PackedMatrix("u2", 1024, 1024, group_cols=256, scales_f16=True)     # 0.3 MB
    w.fill_blocks("TQ2_0", raw, 1024, None, 0, 1)
    return w
matrix()
before = resident_bytes()
with Arena():
    all = [matrix() for _ in range(400)]
print(resident_bytes() - before)
some = all[::8]
del all
print(resident_bytes() - before)
del some
print(resident_bytes() - before)
"""


@pytest.mark.measured
@pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**32, reason="no arena in this build: see arena.c")
def test_what_is_freed_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True)
    full, eighth, none = (int(line) for line in done.stdout.split())
    assert full > 400 * 0.25 * 2**20
    assert eighth < full / 4
    assert none < full / 20
