"""The check of finished wheels finds what not every machine of the kind has, and nothing else."""

from __future__ import annotations

import platform
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "tools" / "wheels" / "check.py"
TAG = "manylinux_2_17_x86_64"


@pytest.fixture
def check(tmp_path):
    """Check a wheel with one module: what it is made of, and the object file that its build left."""
    if not CHECK.exists():
        pytest.skip("no source tree")
    if platform.machine() != "x86_64" or not all(map(shutil.which, ("cc", "llvm-objdump", "llvm-readobj"))):
        pytest.skip("needs x86-64, a compiler, llvm-objdump and llvm-readobj")

    def run(body, kernel="isa_portable", flags=()):
        folder, plain = (tmp_path / "cmake" / "CMakeFiles" / f"{name}.dir" for name in (kernel, "ops"))
        folder.mkdir(parents=True)
        plain.mkdir()
        source, module, wheel = tmp_path / "one.c", tmp_path / "one.abi3.so", tmp_path / f"one-1-cp311-abi3-{TAG}.whl"
        source.write_text(body)
        subprocess.run(["cc", "-O1", "-c", "-fPIC", source, "-o", folder / "one.c.o"], check=True)
        subprocess.run(["cc", "-c", "-x", "c", "/dev/null", "-o", plain / "two.c.o"], check=True)
        subprocess.run(["cc", "-shared", folder / "one.c.o", *flags, "-o", module], check=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(module, "one/one.abi3.so")
        return subprocess.run([sys.executable, CHECK, wheel, tmp_path / "cmake"], capture_output=True, text=True)

    return run


ASSEMBLY = 'void f(void);\nvoid f(void) {{ __asm__ volatile("{}"); }}\n'


@pytest.mark.parametrize("line", ["movaps %xmm0, %xmm1", "pmaddwd %xmm0, %xmm1", "xgetbv", "pshufd $1, %xmm0, %xmm1"])
def test_a_module_for_every_machine_of_the_kind_becomes_a_row(check, line):
    done = check(ASSEMBLY.format(line))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"| `one-1-cp311-abi3-{TAG}.whl` | 0.0")


@pytest.mark.parametrize(
    "line",
    ["pshufb %xmm0, %xmm1", "vaddps %ymm0, %ymm1, %ymm2", "popcntl %eax, %edx", "pmulld %xmm0, %xmm1",
     "haddps %xmm0, %xmm1", "vpaddd %xmm0, %xmm1, %xmm2", "kmovw %k1, %eax", "lzcntl %eax, %edx",
     "blendvps %xmm0, %xmm1, %xmm2", "cmpxchg16b (%rdi)", "andnl %eax, %ebx, %ecx"],
)  # fmt: skip
def test_an_instruction_that_the_oldest_processor_lacks_is_named(check, line):
    done = check(ASSEMBLY.format(line))
    assert done.returncode == 1
    assert done.stderr == f"one.c.o: {line} is newer than SSE2\n"


@pytest.mark.parametrize("line", ["andnps %xmm0, %xmm1", "tzcntl %eax, %edx", "pmaddwd %xmm0, %xmm1"])
def test_an_instruction_that_every_processor_runs_is_let_through(check, line):
    done = check(ASSEMBLY.format(line))
    assert (done.returncode, done.stderr) == (0, "")


def test_kernels_that_run_after_the_processor_was_asked_may_have_them(check):
    done = check(ASSEMBLY.format("vaddps %ymm0, %ymm1, %ymm2"), kernel="isa_avx2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_library_that_not_every_system_has_is_named(check):
    done = check("int f(void);\nint f(void) { return 0; }\n", flags=["-Wl,--no-as-needed", "-lgcc_s"])
    assert done.returncode == 1
    assert done.stderr == f"one-1-cp311-abi3-{TAG}.whl: one.abi3.so needs libgcc_s.so.1\n"


def test_a_symbol_of_a_newer_c_library_shows_in_the_row(check):
    body = '#include <stdio.h>\nint f(void);\nint f(void) { return puts(""); }\n'
    assert "| glibc 2." in check(body).stdout


@pytest.mark.parametrize(
    ("tag", "processor"),
    [
        ("manylinux_2_17_i686", "i686"),
        ("musllinux_1_2_x86_64", "x86_64"),
        ("linux_armv6l", "armv6l"),
        ("win_amd64", "x86_64"),
        ("macosx_11_0_arm64", "aarch64"),
    ],
)
def test_the_processor_of_every_kind_of_tag_is_known(tag, processor):
    if not CHECK.exists():
        pytest.skip("no source tree")
    assert runpy.run_path(str(CHECK))["processor"](tag) == processor
