"""Shared by the benchmarks: one BLAS thread, the folder on the path, and an instruction set that is put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by the BLAS when NumPy is imported, so before anything here imports it.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _restore_isa() -> Iterator[None]:
    from lowbit import isa

    before = isa.active()
    yield
    isa.use(before)


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Say in the results what the report needs, and nothing that names the machine."""
    from environment import environment

    machine_info.clear()
    machine_info.update(environment())
