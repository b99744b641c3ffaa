"""The stress programs, for a second or two: `make stress` runs them for minutes, under sanitizers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stress_runner", HERE / "run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()


@pytest.mark.parametrize(
    ("what", "sanitizer", "seconds", "threads"),
    [("blockcache", "none", 2, 16), ("pool", "none", 1, 6), ("pool", "thread", 1, 6)],
)
def test_many_threads_at_random_find_no_fault(
    tmp_path: Path, what: str, sanitizer: str, seconds: int, threads: int
) -> None:
    compiler = runner.compiler()
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler with the options of GCC")
    try:
        program = runner.build(what, tmp_path, compiler, sanitizer)
    except subprocess.CalledProcessError:
        if sanitizer == "none":
            raise
        pytest.skip("the compiler has no ThreadSanitizer")
    assert runner.run(program, seconds, threads, seed=3).endswith("no fault")


def test_clients_of_an_engine_at_random_get_what_they_get_alone_and_leave_nothing_behind() -> None:
    out = subprocess.run([sys.executable, HERE / "engine.py", "2", "6", "3"], capture_output=True, text=True)
    assert out.stdout.strip().endswith("no fault"), out.stdout + out.stderr


def test_clients_of_a_server_at_random_get_what_python_gets_and_leave_nothing_behind() -> None:
    pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
    out = subprocess.run([sys.executable, HERE / "server.py", "4", "12", "3"], capture_output=True, text=True)
    assert out.stdout.strip().endswith("no fault"), out.stdout + out.stderr
