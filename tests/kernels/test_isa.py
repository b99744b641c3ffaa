"""Choosing an instruction set: every name is honoured, and no unknown one is passed over in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lowbit import UnsupportedISAError
from lowbit import isa as instruction_sets


def import_with(name):
    code = "import lowbit.isa; print(lowbit.isa.active())"
    environment = {**os.environ, "LOWBIT_ISA": name}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200)


def test_the_environment_forces_an_instruction_set(isa):
    done = import_with(isa)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, isa, "")


def test_an_empty_name_takes_the_best():
    assert import_with("").stdout.strip() == instruction_sets.available()[-1]


@pytest.mark.parametrize("name", ["nonsense", "AVX2", "avx2 ", "portable,avx2"])
def test_an_unknown_name_in_the_environment_is_an_error(name):
    done = import_with(name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"lowbit.errors.UnsupportedISAError: unknown instruction set {name!r}")
    assert all(known in last for known in instruction_sets.compiled())


def test_an_instruction_set_that_the_cpu_lacks_is_an_error():
    missing = [name for name in instruction_sets.compiled() if name not in instruction_sets.available()]
    if not missing:
        pytest.skip("this CPU has every instruction set of this build")
    for name in missing:
        with pytest.raises(UnsupportedISAError, match=f"no {name}"):
            instruction_sets.use(name)
        assert f"no {name}" in import_with(name).stderr.strip().splitlines()[-1]


def test_every_set_of_the_build_runs_here_or_says_why_not():
    missing = instruction_sets.missing()
    assert [name for name in instruction_sets.compiled() if name not in missing] == instruction_sets.available()
    for name, reason in missing.items():
        with pytest.raises(UnsupportedISAError) as error:
            instruction_sets.use(name)
        there = ", ".join(instruction_sets.available())
        assert str(error.value) == f"no {name}: {reason}; there are {there}"


def test_a_refused_name_changes_nothing(isa):
    with pytest.raises(UnsupportedISAError, match="nonsense"):
        instruction_sets.use("nonsense")
    assert instruction_sets.active() == isa


def test_none_takes_the_best(isa):
    instruction_sets.use(None)
    assert instruction_sets.active() == instruction_sets.available()[-1]


def test_the_portable_set_is_everywhere():
    assert instruction_sets.compiled()[0] == instruction_sets.available()[0] == "portable"
    assert set(instruction_sets.available()) <= set(instruction_sets.compiled())
