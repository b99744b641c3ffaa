"""Ternary products of every instruction set beside NumPy, one thread; decode reads its weights from memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from lowbit import isa, kernels

SHAPES = [(2560, 2560), (2560, 6912)]
ENGINES = [f"lowbit {name}" for name in isa.available()] + ["numpy float32", "numpy int32"]
RING_BYTES = 192 << 20
"""Decode goes round copies of the weights of this size together, more than a last-level cache holds: a model's
weights are not in the cache either when their turn comes."""


@lru_cache(maxsize=1)
def problem(n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ternary weights (n, k), int8 activations (128, k), and their exact product."""
    rng = np.random.default_rng(n + k)
    w, x = rng.integers(-1, 2, (n, k), np.int8), rng.integers(-127, 128, (128, k), np.int8)
    return w, x, np.rint(x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)


@lru_cache(maxsize=1)
def prepared(engine: str, n: int, k: int, ring: bool) -> tuple[list[Any], int]:
    """Weights as an engine wants them, as many copies as are to be gone round, and the bytes of one."""
    w = problem(n, k)[0]
    if engine.startswith("lowbit"):
        pack: Callable[[], Any] = lambda: kernels.pack_ternary(w)  # noqa: E731
    else:
        dtype = np.float32 if engine == "numpy float32" else np.int32
        pack = lambda: np.ascontiguousarray(w.astype(dtype))  # noqa: E731
    first = pack()
    return [first, *(pack() for _ in range(RING_BYTES // first.nbytes if ring else 0))], first.nbytes


@pytest.mark.benchmark(min_rounds=3, max_time=0.5, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("m", [1, 128], ids=["decode", "prefill"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_ternary_product(benchmark: Any, n: int, k: int, m: int, engine: str) -> None:
    """Only lowbit takes int8 activations as they are; NumPy gets both operands widened beforehand."""
    family, kind = engine.split()
    if family == "lowbit":
        isa.use(kind)
    matrices, nbytes = prepared(engine, n, k, ring=m == 1)
    turn = itertools.cycle(matrices)
    benchmark.group = f"{'decode' if m == 1 else 'prefill'} m={m} n={n} k={k}"
    x = problem(n, k)[1][:m]
    if family == "lowbit":
        result = benchmark(lambda: kernels.ternary_matmul(next(turn), x))
    else:
        x = x.astype(matrices[0].dtype)
        result = benchmark(lambda: x @ next(turn).T)
    exact = problem(n, k)[2][:m]
    assert np.allclose(result, exact) if kind == "float32" else np.array_equal(result, exact)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info.update(
        engine=engine, m=m, n=n, k=k, correct=True, sum=int(np.rint(np.sum(result, dtype=np.float64))),
        macs_per_second=m * n * k / seconds, weight_bytes=nbytes, weight_bytes_per_second=nbytes / seconds,
    )  # fmt: skip
