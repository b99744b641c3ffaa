"""Translates Cython modules to C, all in one process: Cython reads its own code once, which is most of its time.

    python cythonize.py OUTPUT_FOLDER SOURCE_FOLDER FILE...

What Cython needs for memoryviews is one more module, `_cyutility`, which the others import instead of having a copy
each: half of what there would be to compile. A C file that would not change is left alone.
"""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from Cython.Compiler.Main import main as cython

PACKAGE = "lowbit._kernels"
# Hot loops use pointers; what is indexed is checked.
OPTIONS = ["-3", f"--shared={PACKAGE}._cyutility", "-X", "initializedcheck=False", "-X", "cdivision=True"]


def translate(out: Path, source: Path, modules: list[Path]) -> None:
    """Write a C file per module into a folder."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for module in [*modules, Path("_cyutility")]:
            made = Path(folder) / f"{module.stem}.c"
            if module.stem == "_cyutility":
                arguments = ["-3", f"--generate-shared={made}"]
            else:
                arguments = [*OPTIONS, "-I", str(source), str(module), "-o", str(made)]
            sys.argv = ["cython", "--module-name", f"{PACKAGE}.{module.stem}", *arguments]
            cython(command_line=True)  # ends the process where there is an error
            target = out / made.name
            if not target.exists() or not filecmp.cmp(made, target, shallow=False):
                os.replace(made, target)


if __name__ == "__main__":
    translate(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
