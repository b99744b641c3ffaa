"""Block Hadamard transforms: what makes folding them into weights harmless."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.reference.hadamard import fold, grouped_heads, hadamard, rotate, unrotate

RNG = np.random.default_rng(3)


def signs(n):
    return RNG.choice([-1.0, 1.0], n)


@pytest.mark.parametrize("block", [1, 2, 8, 64, 1024])
def test_the_matrix_is_orthogonal_symmetric_and_that_of_its_formula(block):
    matrix = hadamard(np.eye(block), block)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(block), atol=1e-12)
    assert np.array_equal(matrix, matrix.T)
    rows, columns = np.indices((block, block))
    odd = np.array([bin(i).count("1") & 1 for i in range(block)])[rows & columns]
    np.testing.assert_allclose(matrix, (1 - 2 * odd) / np.sqrt(block), rtol=1e-14)


def test_the_worked_example():
    x = np.arange(1.0, 9.0)
    want = [2.12132, 2.12132, -2.12132, -7.778175, 2.12132, -0.707107, -3.535534, 10.606602]
    np.testing.assert_allclose(rotate(x, 8, np.array([1, -1, 1, 1, -1, 1, 1, -1])), want, atol=1e-6)


@pytest.mark.parametrize(("n", "block"), [(16, 16), (96, 32), (3072, 1024), (34, 2)])
def test_rotated_weights_times_rotated_activations_are_the_plain_product(n, block):
    weights, x, s = RNG.standard_normal((5, n)), RNG.standard_normal((3, n)), signs(n)
    np.testing.assert_allclose(rotate(x, block, s) @ fold(weights, block, s).T, x @ weights.T, atol=1e-10)
    np.testing.assert_allclose(unrotate(rotate(x, block, s), block, s), x, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(rotate(x, block, s)), np.linalg.norm(x))


def test_weights_of_grouped_heads_are_folded_in_that_order():
    key_heads, ratio, size = 2, 3, 4
    n = key_heads * ratio * size
    weights, x, s = RNG.standard_normal((5, n)), RNG.standard_normal(n), signs(n)
    folded = fold(grouped_heads(weights, key_heads, size), 8, s)
    np.testing.assert_allclose(folded @ rotate(grouped_heads(x, key_heads, size), 8, s), weights @ x, atol=1e-12)
    # Tiled head k + G i stands at i + r k then.
    tiled = np.repeat(np.arange(key_heads * ratio), size)
    assert grouped_heads(tiled, key_heads, size)[::size].tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(("n", "block"), [(16, 3), (16, 32), (24, 16), (8, 0)])
def test_blocks_that_do_not_fit_are_refused(n, block):
    with pytest.raises(ValueError, match="do not fit"):
        hadamard(np.zeros(n), block)
