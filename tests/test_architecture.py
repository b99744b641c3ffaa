"""The floor plan of docs/architecture.md: what may import what, and how large a file is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lowbit"

FLOORS = [
    ["layers"],
    ["scalars"],
    ["errors", "plan", "sampling", "replacing", "assets"],
    ["hub"],
    ["_kernels"],
    ["quantize"],
    ["formats"],
    ["families", "tokenizers", "reference"],
    ["chat"],
    ["loading"],
    ["engine"],
    ["model"],
    ["train"],
    ["convert", "benchmark", "fleet"],
    ["serve"],
    ["batch"],
    ["ray"],
    ["isa", "kernels"],
    ["__init__"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
"""Rooms and modules from the ground up. One imports what is below it, and its own room; of `lowbit` itself only
commands make use."""

LOOSE = {
    "__init__", "__main__", "benchmark", "cli", "errors", "hub", "isa", "kernels", "layers", "model", "plan",
    "replacing", "sampling", "scalars",
}  # fmt: skip
"""Modules that lie in no room."""

JUSTIFIED = {
    ("loading.load", "model"): "`load` returns what users hold, and is the one door to it",
}
"""Imports upwards that stay, all of them in functions or for types alone."""


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for pattern in ("*.pyi", "*.py") for path in SOURCE.rglob(pattern)}


def resolved(name: str) -> str:
    """The module that is imported by a dotted name below `lowbit`, which may end in something inside of it."""
    while name and name not in MODULES and not name.startswith("_kernels."):
        name = name.rpartition(".")[0]
    return name or "__init__"


def imports_of(module: str, path: Path) -> set[str]:
    """All modules of lowbit that a file imports, wherever in it the import stands."""
    package = module.split(".") if path.stem == "__init__" and module != "__init__" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {resolved(name.partition(".")[2]) for name in names if name.split(".")[0] == "lowbit"}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            elif node.module and node.module.split(".")[0] == "lowbit":
                base = node.module.split(".")[1:]
            else:
                continue
            found |= {resolved(".".join([*base, alias.name])) for alias in node.names}
    return found - {module}


IMPORTS = {module: imports_of(module, path) for module, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_its_floor():
    assert {room(module) for module in MODULES} <= {name for floor in FLOORS for name in floor}


def test_nothing_imports_upwards():
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upwards = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if room(other) != room(module) and height[room(other)] >= height[room(module)]
    }
    assert upwards == set(JUSTIFIED), "an import upwards, or one that is justified and gone"


def test_no_import_runs_in_a_circle():
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"{' -> '.join(above[above.index(module) :])} -> {module}"
        if module not in done:
            for other in sorted(IMPORTS.get(module, ())):
                if (module, other) not in JUSTIFIED:
                    visit(other, (*above, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def test_loose_modules_are_those_of_the_floor_plan():
    loose = {path.stem for path in SOURCE.glob("*.py")}
    assert loose <= LOOSE


def test_files_are_short_enough_to_be_read():
    """But for what the page for browsers has from others, which is JavaScript."""
    files = [path for path in SOURCE.parent.rglob("*.*") if path.suffix in {".py", ".pyi", ".pyx", ".pxd", ".c", ".h"}]
    assert {"decoder.pyx", "pool.c", "kernels.h"} <= {path.name for path in files}
    assert not {path.name for path in files if path.read_text("utf-8").count("\n") > 450}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_tensors_are_named_by_the_plan_alone(module):
    """Formats whose files have no such names give them; the reference is the mathematics; the trainer's modules have
    names of their own."""
    if not module.startswith(("formats.", "train.")) and module not in ("layers", "plan", "reference.model"):
        assert "blk." not in MODULES[module].read_text("utf-8").replace("blk.0.*", "")
