"""Build the stress test of the pool of threads with one C compiler, and run it under sanitizers.

python stress.py BUILD_FOLDER [--seconds 600] [--callers 8] [--seed 1] [--sanitizers thread,address]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent


def _blockcache() -> ModuleType:
    spec = importlib.util.spec_from_file_location("blockcache_stress", HERE.parent / "blockcache" / "stress.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blockcache = _blockcache()


def build(folder: Path, cc: list[str], sanitizer: str) -> Path:
    """Compile the program with a sanitizer, and return it; it includes pool.c.

    Raises
    ------
    subprocess.CalledProcessError
        If the compiler fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"pool-stress-{sanitizer}"
    flags = [*blockcache.FLAGS, "-frounding-math", *blockcache.SANITIZERS[sanitizer], "-fno-sanitize-recover=all"]
    source = str(HERE / "stress.c")
    subprocess.run([*cc, *flags, *blockcache.INCLUDE, source, "-o", str(program), "-lm", "-lpthread"], check=True)
    return program


def run(program: Path, seconds: int, callers: int, seed: int) -> str:
    """Run the program; return its one line of counts.

    Raises
    ------
    subprocess.CalledProcessError
        If it, or the sanitizer, found a fault.
    """
    forks = "0" if program.name.endswith("thread") else "1"  # ThreadSanitizer does not follow children with threads
    command = [str(program), str(seconds), str(callers), str(seed), forks]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    """Build and run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizers", default="thread,address")
    options = parser.parse_args()
    cc = blockcache.compiler()
    if cc is None:
        sys.exit("no C compiler")
    for sanitizer in options.sanitizers.split(","):
        program = build(options.folder, cc, sanitizer)
        try:
            print(f"{sanitizer}: {run(program, options.seconds, options.callers, options.seed)}", flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{sanitizer}: ended with {error.returncode}")


if __name__ == "__main__":
    main()
