"""Whichever allocation fails: MemoryError or an error of lowbit, no crash, and the right results afterwards."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit import MemoryBudgetError

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="replaces the allocator of glibc"),
    pytest.mark.skipif("LOWBIT_SANITIZED" in os.environ, reason="sanitizers replace the allocator themselves"),
]
PLAIN = """
import json, sys
import fail_allocations, lowbit
print(json.dumps(fail_allocations.results(lowbit.load(sys.argv[1], **json.loads(sys.argv[2])))))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    out = tmp_path_factory.mktemp("shim") / "fail_allocations.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", HERE / "fail_allocations.c", "-o", out, "-ldl"], check=True)
    return out


@pytest.mark.parametrize(
    "options", [{}, {"kv_type": "int8", "threads": 2}, {"sparsity": 0.5}, {"max_ram": None}], ids=str
)
def test_any_allocation_may_fail(shim, write_llama, options):
    path = write_llama(kind="TQ2_0", vocab=64, hidden=256, wide=512)
    if "max_ram" in options:
        with pytest.raises(MemoryBudgetError) as caught:
            lowbit.load(path, max_ram="1MB")
        options = {"max_ram": caught.value.smallest + (64 << 20)}
    arguments = [path, json.dumps(options)]
    run = {"cwd": HERE, "capture_output": True, "text": True, "check": False}
    plain = subprocess.run([sys.executable, "-c", PLAIN, *arguments], **run)
    assert plain.returncode == 0, plain.stderr
    done = subprocess.run(
        [sys.executable, "fail_allocations.py", shim, *arguments, plain.stdout],
        **run, env={**os.environ, "LD_PRELOAD": str(shim)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100, "lowbit allocates more often than that"
