"""Build the stress test of the block cache with one C compiler, and run it under sanitizers.

python stress.py BUILD_FOLDER [--seconds 600] [--threads 16] [--seed 1] [--sanitizers thread,address]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src" / "kernels"
SOURCES = [Path(__file__).with_suffix(".c"), KERNELS / "cache" / "blockcache.c", KERNELS / "cache" / "blockplan.c"]
INCLUDE = [f"-I{KERNELS / room}" for room in ("base", "cache")]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"]
SANITIZERS = {"none": [], "thread": ["-fsanitize=thread"], "address": ["-fsanitize=address,undefined"]}


def compiler() -> list[str] | None:
    """Return the C compiler of this machine: `CC`, cc, gcc or clang."""
    for name in filter(None, [os.environ.get("CC"), "cc", "gcc", "clang"]):
        if shutil.which(name.split()[0]):
            return name.split()
    return None


def build(folder: Path, cc: list[str], sanitizer: str) -> Path:
    """Compile the program with a sanitizer, and return it.

    Raises
    ------
    subprocess.CalledProcessError
        If the compiler fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"stress-{sanitizer}"
    flags = [*FLAGS, *SANITIZERS[sanitizer], "-fno-sanitize-recover=all", *INCLUDE]
    subprocess.run([*cc, *flags, *map(str, SOURCES), "-o", str(program), "-lpthread"], check=True)
    return program


def run(program: Path, seconds: int, threads: int, seed: int) -> str:
    """Run the program; return its one line of counts.

    Raises
    ------
    subprocess.CalledProcessError
        If it, or the sanitizer, found a fault.
    """
    file = program.with_suffix(f".{os.getpid()}.bin")
    command = [str(program), str(seconds), str(threads), str(seed), str(file)]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    finally:
        file.unlink(missing_ok=True)


def main() -> None:
    """Build and run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizers", default="thread,address")
    options = parser.parse_args()
    cc = compiler()
    if cc is None:
        sys.exit("no C compiler")
    for sanitizer in options.sanitizers.split(","):
        program = build(options.folder, cc, sanitizer)
        try:
            print(f"{sanitizer}: {run(program, options.seconds, options.threads, options.seed)}", flush=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{sanitizer}: ended with {error.returncode}")


if __name__ == "__main__":
    main()
