"""The stress program, for a second: `make stress` runs it for minutes, under sanitizers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("blockcache_stress", Path(__file__).with_name("stress.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stress = load_runner()


def test_16_threads_at_random_find_every_byte_right_within_the_budget(tmp_path: Path) -> None:
    compiler = stress.compiler()
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler with the options of GCC")
    counts = stress.run(stress.build(tmp_path, compiler, "none"), seconds=2, threads=16, seed=2)
    assert counts.endswith("no fault")
