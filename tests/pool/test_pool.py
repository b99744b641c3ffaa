"""The stress program of the pool, for a second: `make stress` runs it for minutes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pool_stress", Path(__file__).with_name("stress.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stress = load_runner()


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_callers_forks_and_nested_work_do_each_unit_once_in_the_default_mode_of_floats(
    tmp_path: Path, sanitizer: str
) -> None:
    compiler = stress.blockcache.compiler()
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler with the options of GCC")
    try:
        program = stress.build(tmp_path, compiler, sanitizer)
    except subprocess.CalledProcessError:
        if sanitizer == "none":
            raise
        pytest.skip("the compiler has no ThreadSanitizer")
    assert stress.run(program, seconds=1, callers=6, seed=3).endswith("no fault")
