"""What all tests share: one BLAS thread, the folder of test data, and every instruction set in turn."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when numpy is first imported

from pathlib import Path

import pytest

from lowbit import isa as instruction_sets

REQUIRED = [name.strip() for name in os.environ.get("LOWBIT_REQUIRE_ISA", "").split(",") if name.strip()]
"""Instruction sets whose absence is a failure rather than a skip."""


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
