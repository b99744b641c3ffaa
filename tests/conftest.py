"""What all tests share: one BLAS thread, the test data, every instruction set in turn, and guard bytes."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when numpy is first imported

import itertools
import sys
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from lowbit import isa as instruction_sets
from lowbit import model as models
from lowbit._kernels import decoder, dispatch, graph, matrix, products

sys.path.insert(0, str(Path(__file__).parent))  # for work.py

# No test depends on how busy the machine is: by default an example fails that takes longer than 0.2 s.
hypothesis.settings.register_profile("lowbit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lowbit")

REQUIRED = [name.strip() for name in os.environ.get("LOWBIT_REQUIRE_ISA", "").split(",") if name.strip()]
"""Instruction sets whose absence is a failure rather than a skip."""


def pytest_collection_modifyitems(items):
    """Put the file that takes longest first; leave out what is measured where sanitizers watch (`make sanitize`)."""
    items.sort(key=lambda item: item.path.name != "test_selftest.py")  # else it would go on alone at the end
    if "LOWBIT_SANITIZED" in os.environ:
        for item in items:
            if item.get_closest_marker("measured"):
                item.add_marker(pytest.mark.skip(reason="sanitizers take work and memory of their own"))


def pytest_runtest_setup(item):
    """Let texts without a seed be the same in each run: what fails once fails again."""
    models.new_seed = itertools.count(zlib.crc32(item.nodeid.encode())).__next__


@pytest.fixture(scope="session")
def test_data():
    """Folder of the real files."""
    folder = os.environ.get("LOWBIT_TEST_DATA")
    if not folder:
        pytest.skip("LOWBIT_TEST_DATA is not set, and this test needs real files")
    return Path(folder)


@pytest.fixture(params=list(dict.fromkeys([*instruction_sets.compiled(), *REQUIRED])))
def isa(request):
    """Force each instruction set in turn; the value is its name."""
    name = request.param
    if name not in instruction_sets.available():
        reason = f"this {'CPU' if name in instruction_sets.compiled() else 'build'} has no {name}"
        if name in REQUIRED:
            pytest.fail(f"{reason}, and LOWBIT_REQUIRE_ISA names it")
        pytest.skip(reason)
    before = instruction_sets.active()
    instruction_sets.use(name)
    yield name
    instruction_sets.use(before)


GUARD = 1 << 16
"""Guard bytes on either side; more than what lies beside an array would be hit by a kernel that miscounts its rows."""


class GuardedNumPy:
    """NumPy, but what `empty` returns lies between guard bytes."""

    def __init__(self):
        self.blocks = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        block = np.full(size + 2 * GUARD, 0xA5, np.uint8)
        self.blocks.append((block, size))
        return block[GUARD : GUARD + size].view(dtype).reshape(shape)

    def intact(self):
        return all((b[:GUARD] == 0xA5).all() and (b[GUARD + size :] == 0xA5).all() for b, size in self.blocks)


@pytest.fixture
def guards(monkeypatch):
    """Guard bytes around results and scratch memory; `guards.intact()` tells whether they still stand."""
    guarded = GuardedNumPy()
    for module in (matrix, products, graph, dispatch, decoder):
        monkeypatch.setattr(module, "np", guarded)
    return guarded


@pytest.fixture
def stay_in_file(monkeypatch):
    """Leave weights in their file under any budget, also one that has room for all of them."""
    from lowbit.loading.memory import Budget

    monkeypatch.setattr(Budget, "holds", lambda self, weight_bytes: False)
    monkeypatch.setattr(Budget, "exceeded_by", lambda self, stored_bytes: True)
