"""A CPU that lacks what the modules were compiled for is refused in one line, before any of them runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lowbit._kernels.processor import missing

REFUSE = """
import sys, types
import lowbit.errors
fake = types.ModuleType("lowbit._kernels.processor")
fake.missing = lambda: ["cmov", "MMX"]
sys.modules[fake.__name__] = fake
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)


def test_this_cpu_lacks_nothing():
    assert missing() == []


@pytest.mark.parametrize("use", ["lowbit.load()", "import lowbit.isa", "import lowbit.kernels"])
def test_what_is_missing_is_named_before_another_module_is_loaded(use):
    check = "finally: assert 'lowbit._kernels.dispatch' not in sys.modules"
    done = run(f"{REFUSE}\nimport lowbit\ntry: {use}\n{check}")
    want = "lowbit.errors.UnsupportedISAError: this build of lowbit needs a CPU with cmov and MMX, which this one lacks"
    assert done.stderr.strip().splitlines()[-1] == want


def test_the_command_line_says_it_in_one_line():
    done = run(f"{REFUSE}\nfrom lowbit.cli import main\nsys.exit(main(['generate', 'x']))")
    assert done.returncode == 2
    assert done.stderr == "lowbit: error: this build of lowbit needs a CPU with cmov and MMX, which this one lacks\n"
