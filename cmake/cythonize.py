"""Translates Cython modules to C, in as many processes as there are cores.

    python cythonize.py OUTPUT_FOLDER SOURCE_FOLDER FILE...

What Cython needs for memoryviews is one more module, `_cyutility`, which the others import instead of having a copy
each: half of what there would be to compile. A C file that would not change is left alone.
"""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from Cython.Compiler.Main import main as cython

PACKAGE = "lowbit._kernels"
# Hot loops use pointers; what is indexed is checked. A Python without the GIL needs none for lowbit: what threads share
# has a lock of its own.
DIRECTIVES = ["-3", "-X", "initializedcheck=False", "-X", "cdivision=True", "-X", "freethreading_compatible=True"]


def translate(out: Path, source: Path, module: Path) -> bool:
    """Write the C file of a module into a folder."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        made = Path(folder) / f"{module.stem}.c"
        if module.stem == "_cyutility":
            arguments = [*DIRECTIVES, f"--generate-shared={made}"]
        else:
            arguments = [*DIRECTIVES, f"--shared={PACKAGE}._cyutility", "-I", str(source), str(module), "-o", str(made)]
        sys.argv = ["cython", "--module-name", f"{PACKAGE}.{module.stem}", *arguments]
        try:
            cython(command_line=True)
        except SystemExit as end:  # what is wrong was printed
            if end.code:
                return False
        target = out / made.name
        if not target.exists() or not filecmp.cmp(made, target, shallow=False):
            os.replace(made, target)
    return True


def main() -> None:
    """Translate what the command line names."""
    out, source, *modules = map(Path, sys.argv[1:])
    modules.sort(key=lambda module: -module.stat().st_size)  # the largest first, so that all end together
    modules.insert(0, Path("_cyutility"))
    with ProcessPoolExecutor() as pool:
        done = pool.map(translate, [out] * len(modules), [source] * len(modules), modules)
        sys.exit(not all(done))


if __name__ == "__main__":
    main()
