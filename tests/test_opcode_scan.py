"""The opcode scan of the i686 wheel finds what a Pentium II does not have, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCAN = Path(__file__).parents[1] / "tools" / "retro" / "scan.py"


@pytest.fixture
def scan(tmp_path):
    """Scan a shared object that is made of one line of assembly."""
    compiler = shutil.which("i686-linux-gnu-gcc")
    if not SCAN.exists() or compiler is None:
        pytest.skip("no source tree, or no compiler for i686")

    def run(line):
        source, target = tmp_path / "one.s", tmp_path / "one.so"
        source.write_text(f".globl f\nf: {line}\nret\n")
        subprocess.run([compiler, "-shared", "-nostdlib", str(source), "-o", str(target)], check=True)
        return subprocess.run([sys.executable, SCAN, target], capture_output=True, text=True)

    return run


@pytest.mark.parametrize("line", ["cmovne %eax, %edx", "paddw %mm0, %mm1", "emms", "rep; nop", "fcomi %st(1), %st"])
def test_instructions_of_a_pentium_2_pass(scan, line):
    done = scan(line)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    ["movaps %xmm0, %xmm1", "psadbw %mm0, %mm1", "pshufw $1, %mm0, %mm1", "paddq %mm0, %mm1", "pshufb %mm0, %mm1",
     "prefetcht0 (%eax)", "sfence", "popcnt %eax, %edx", "vaddps %ymm0, %ymm1, %ymm2", "pmaddubsw %mm0, %mm1"],
)  # fmt: skip
def test_newer_instructions_are_named_with_their_function(scan, line):
    done = scan(line)
    assert done.returncode == 1
    assert f"f: {line.split()[0]}" in done.stdout
