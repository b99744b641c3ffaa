"""Cython sees the kernels as C does: it cannot read the list of `kernels.h`, so `dispatch.pxd` repeats it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
if not SOURCES.exists():
    pytest.skip("no source tree", allow_module_level=True)
HEADER = re.sub(r"/\*.*?\*/", "", (SOURCES / "kernels" / "base" / "kernels.h").read_text(), flags=re.DOTALL)
VIEW = (SOURCES / "lowbit" / "_kernels" / "dispatch.pxd").read_text()
FORMATS = ["u2", "u4", "u8", "u4m", "u8m", "t5", "up", "upm", "ut", "f32", "f16", "bf16"]


def listed() -> list[tuple[str, str]]:
    """Return name and type of every kernel in the list, which has two parts."""
    assert re.search(r"#define LB_KERNELS\(X\) LB_MOST_KERNELS\(X\) LB_SOME_KERNELS\(X\)\n", HEADER)
    bodies = [re.search(rf"#define LB_{part}_KERNELS\(X\)((?:.*\\\n)+.*\n)", HEADER) for part in ("MOST", "SOME")]
    assert all(bodies)
    return [kernel for body in bodies if body for kernel in re.findall(r"X\((\w+), (\w+)\)", body[1])]


def signatures(declared: list[tuple[str, str, str]]) -> dict[str, str]:
    return {name: f"{result} ({' '.join(parameters.split())})" for result, name, parameters in declared}


def test_cython_has_every_kernel_of_the_list() -> None:
    struct = re.search(r"ctypedef struct lb_kernels:\n((?: {8}.*\n)+)", VIEW)
    assert struct
    products, *others = [(name, kind) for kind, name in re.findall(r"(\w+) \*+(\w+)", struct[1])]
    kernels = listed()
    assert products == ("matmul", "lb_matmul_fn")
    assert kernels[: len(FORMATS)] == [(f"matmul_{name}", "lb_matmul_fn") for name in FORMATS]
    assert kernels[len(FORMATS) :] == others


def test_cython_has_the_signature_of_every_kernel() -> None:
    in_c = signatures(re.findall(r"typedef ([\w ]+?) (lb_\w+_fn)\((.*?)\);", HEADER, re.DOTALL))
    in_cython = signatures(re.findall(r"ctypedef ([\w ]+?) (lb_\w+_fn)\((.*?)\) noexcept nogil", VIEW, re.DOTALL))
    assert {kind for _, kind in listed()} == set(in_c)
    assert in_cython == in_c
