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
fake.missing, fake.lacks_sse42 = lambda: ["cmov", "MMX"], lambda: False
sys.modules[fake.__name__] = fake
"""
OLD = (
    REFUSE.replace('["cmov", "MMX"], lambda: False', "[], lambda: True")
    + """
import importlib.metadata
numpy = types.SimpleNamespace(version=sys.argv[1], read_text=lambda name: sys.argv[2])
importlib.metadata.distribution = lambda name: numpy
"""
)


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=1200)


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


def test_a_numpy_that_would_end_the_process_is_named_before_it_is_loaded():
    check = "finally: assert 'numpy' not in sys.modules"
    done = run(f"{OLD}\ntry: import lowbit.kernels\n{check}", "2.4.6", "Tag: cp311-cp311-manylinux_2_27_x86_64\n")
    want = "numpy 2.4.6 needs a CPU with SSE4.2, which this one lacks: pip install 'numpy<2.4'"
    assert done.stderr.strip().splitlines()[-1] == f"lowbit.errors.UnsupportedISAError: {want}"


@pytest.mark.parametrize(
    ("version", "tag", "refused"),
    [
        ("2.3.5", "cp311-cp311-manylinux_2_27_x86_64", False),
        ("2.10.0rc1", "cp314-cp314-musllinux_1_2_x86_64", True),
        ("3.0", "cp314-cp314-win_amd64", True),
        ("2.4.0", "cp311-cp311-macosx_14_0_x86_64", True),
        ("2.4.6", "cp311-cp311-linux_x86_64", False),  # built where it is, for that CPU
        ("2.4.6", "", False),  # of a distribution
    ],
)
def test_only_wheels_of_numpy_that_take_sse42_are_refused(version, tag, refused):
    done = run(f"{OLD}\nimport lowbit.kernels", version, f"Tag: {tag}\n" if tag else "")
    assert ("UnsupportedISAError: numpy" in done.stderr, done.returncode) == (refused, int(refused))
