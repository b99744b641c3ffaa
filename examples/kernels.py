"""Multiply a ternary matrix by int8 activations, exactly, on every instruction set of this machine.

Usage: python examples/kernels.py
"""

import numpy as np

import lowbit

rng = np.random.default_rng(0)
weights = rng.integers(-1, 2, size=(100, 300), dtype=np.int8)  # (out, in)
activations = rng.integers(-127, 128, size=(4, 300), dtype=np.int8)  # (tokens, in)
exact = activations.astype(np.int32) @ weights.T.astype(np.int32)

packed = lowbit.kernels.pack_ternary(weights)
for name in lowbit.isa.available():
    lowbit.isa.use(name)
    sums = lowbit.kernels.ternary_matmul(packed, activations)  # int32, (tokens, out)
    print(f"{name}: {np.array_equal(sums, exact)}")
