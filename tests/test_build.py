"""Building: what is missing is said in one line, and the sets of a build are those that were asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lowbit import isa as instruction_sets
from lowbit._kernels import dispatch

ROOT = Path(__file__).parents[1]

if not (ROOT / "CMakeLists.txt").exists():
    pytest.skip("no source tree", allow_module_level=True)


def run(command, **changes):
    return subprocess.run(command, env={**os.environ, **changes}, capture_output=True, text=True, timeout=600)


@pytest.fixture
def tools(tmp_path):
    """A folder with links to a few programs, to be all that is on the path."""

    def link(*names):
        for name in names:
            (tmp_path / name).symlink_to(shutil.which(name))
        return str(tmp_path)

    return link


def test_a_machine_that_has_all_hears_nothing():
    done = run(["sh", ROOT / "tools/prerequisites.sh", "python3", "cc"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_missing_is_named_with_the_packages_of_the_system_in_one_line(tools, tmp_path):
    shell = shutil.which("sh")
    command = [shell, ROOT / "tools/prerequisites.sh", "no-python", "no-compiler"]
    done = run(command, PATH=tools())
    text = "building lowbit needs what is not here: a C compiler, Python 3.10 or later with venv and headers\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", text)
    (tmp_path / "apt-get").symlink_to("/bin/true")
    done = run(command, PATH=str(tmp_path))
    packages = "gcc libc6-dev python3 python3-venv python3-dev"
    assert done.stderr == f"building lowbit needs what is not here: apt install {packages}\n"


def test_the_modules_are_for_every_later_python_where_one_wheel_can_be():
    one_wheel = sys.version_info >= (3, 11) and not sysconfig.get_config_var("Py_GIL_DISABLED")
    of_version = sysconfig.get_config_var("EXT_SUFFIX")
    suffix = {"win32": ".pyd"}.get(sys.platform, ".abi3.so") if one_wheel else of_version
    assert Path(dispatch.__file__).name == f"dispatch{suffix}"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="a Python with the GIL")
def test_no_module_asks_for_the_gil():
    code = "import sys, lowbit; lowbit.load(); sys.exit(sys._is_gil_enabled())"
    assert run([sys.executable, "-X", "gil=1", "-c", code]).returncode == 1
    assert run([sys.executable, "-W", "error", "-c", code]).returncode == 0


@pytest.fixture
def configure(tmp_path):
    """Configure a build of an empty set of modules, and return the names of its instruction sets."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    if cmake is None or shutil.which("ninja") is None:
        pytest.skip("no CMake, or no Ninja")
    version = re.search(r"(\d+)\.(\d+)", run([cmake, "--version"]).stdout)
    if (int(version[1]), int(version[2])) < (3, 26):
        pytest.skip("this CMake is too old to build lowbit")

    def configure(value, **changes):
        done = run([cmake, "-G", "Ninja", "-S", ROOT, "-B", tmp_path / "build"], LOWBIT_ISA_BUILD=value, **changes)
        rows = tmp_path / "build/generated/isa_rows.h"
        names = [line.split("(")[1].split(",")[0] for line in rows.read_text().splitlines()] if rows.exists() else []
        return done, names

    return configure


def test_a_native_build_has_the_best_set_of_this_machine_and_those_that_it_refines(configure):
    done, names = configure("native")
    assert done.returncode == 0, done.stderr
    best = instruction_sets.available()[-1]
    assert names[0] == "portable"
    assert names[-1] == best
    assert set(names) <= set(instruction_sets.available())
    done, everything = configure("all")
    assert done.returncode == 0, done.stderr
    assert set(instruction_sets.available()) <= set(everything)


def test_an_unknown_choice_of_sets_is_an_error(configure):
    done, _ = configure("fast")
    assert done.returncode != 0
    assert "LOWBIT_ISA_BUILD is all or native, not fast" in done.stderr


@pytest.mark.parametrize("cc", [{}, {"CC": "x86_64-linux-gnu-gcc -pthread"}])  # which pip takes from Python
def test_a_missing_compiler_is_one_error_that_names_the_packages(configure, tools, cc):
    done, _ = configure("all", PATH=tools("ninja"), **cc)
    assert done.returncode != 0
    said = [line.strip() for line in done.stderr.splitlines()]
    (line,) = [line for line in said if line.startswith("building lowbit needs a C compiler: install ")]
    assert "gcc and libc6-dev (Debian, Ubuntu)" in line
    assert sum(line.startswith("CMake Error") for line in said) == 1
