"""The C self-test of all micro-kernels, built with the compiler at hand: on this CPU and on emulated ones."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("selftest_run", Path(__file__).parent / "selftest" / "run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = runner.native_compiler()
    if compiler is None or os.name == "nt":
        pytest.skip("no C compiler with the options of GCC")
    folder = tmp_path_factory.mktemp("selftest")
    built: Path = runner.build(folder, compiler, platform.machine(), cpu=runner.cpu_flags())
    return built


@pytest.fixture(scope="module")
def equal(program: Path) -> list[str]:
    """The instruction sets that this CPU runs, all found equal to the plain loops."""
    found: list[str] = runner.run(program, [])
    return found


def test_every_kernel_of_this_cpu_equals_the_plain_loops(equal: list[str]) -> None:
    assert equal[0] == "portable"


def test_tiles_equal_the_plain_loops_also_on_a_cpu_that_emulates_them(equal: list[str]) -> None:
    if "avx512vbmi" not in runner.cpu_flags():
        pytest.skip("this CPU has no AVX-512 VBMI, on which the tiles of AMX are emulated")
    compiler, amx = runner.native_compiler(), runner.rows("x86_64")[-1]
    if not runner.knows(compiler, amx):
        pytest.skip("the compiler does not know AMX")
    assert equal[-1] == amx.name == "amx"


def test_an_unknown_instruction_set_ends_the_self_test(program: Path) -> None:
    done = subprocess.run([program], env={**os.environ, "LOWBIT_ISA": "avx3"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "avx3" in done.stderr
    assert not done.stdout


def test_a_forced_instruction_set_is_the_only_one_checked(program: Path) -> None:
    done = subprocess.run([program], env={**os.environ, "LOWBIT_ISA": "portable"}, capture_output=True, text=True)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["portable"]


def test_every_kernel_of_a_pentium_ii_equals_the_plain_loops(tmp_path: Path) -> None:
    """The other emulated CPUs take minutes each: `make selftest`."""
    if runner.cross_compiler("i686") is None:
        pytest.skip("no compiler for i686")
    if runner.emulator("i686") is None:
        pytest.skip("no emulator for i686 (qemu-user)")
    assert runner.emulate(tmp_path, "i686", only="pentium2")


def test_the_kernels_of_armv6_have_no_newer_instruction(tmp_path: Path) -> None:
    """That they equal the plain loops takes a minute to find out: `make selftest`."""
    compiler = runner.cross_compiler("armv6l")
    if compiler is None:
        pytest.skip("no compiler for ARMv6 (gcc-arm-linux-gnueabi, libc6-dev-armel-cross)")
    newer = re.compile(r"(movw|movt|[su]div|dmb|[su]bfx|bf[ci]|rbit|mls|vfm[as]|vld[1-4]|vst[1-4])\b")
    (row,) = (row for row in runner.rows("armv6l") if row.name == "armv6")
    for source in sorted((runner.KERNELS / "isa" / "armv6").glob("*.c")):
        target = tmp_path / f"{source.stem}.o"
        flags = [*runner.common_flags(), *row.flags, *runner.INCLUDE]
        subprocess.run([*compiler, *flags, "-c", source, "-o", target], check=True)
        objdump = [compiler[0].replace("gcc", "objdump"), "-d", "--no-show-raw-insn", target]
        said = subprocess.run(objdump, check=True, capture_output=True, text=True).stdout
        codes = [line.split()[1] for line in said.splitlines() if re.match(r"\s+[0-9a-f]+:\s", line)]
        assert len(codes) > 10
        assert not [code for code in codes if newer.match(code)]
        if source.stem == "matmul":
            assert "smlad" in codes


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_compiler_warns_of_the_sources(name: str, program: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", program.parent, *runner.INCLUDE]
    sources = list(runner.KERNELS.glob("*/*.c"))  # of the rooms; the instruction sets need flags of their own
    assert sources
    for source in sources:
        subprocess.run([name, *flags, source], check=True)
