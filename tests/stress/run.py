"""Use the block cache, the pool of threads, or a whole engine from many threads at random, under sanitizers.

python run.py blockcache|pool BUILD_FOLDER [--seconds 600] [--threads 16] [--seed 1] [--sanitizers thread,address]
python run.py engine ENVIRONMENT [--seconds 600] [--threads 8] [--seed 1]

The first two are programs in C, which are built here. The engine is a script for the Python of an environment in which
lowbit was built with ThreadSanitizer (`make stress` makes it).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "src" / "kernels"
INCLUDE = [f"-I{KERNELS / room}" for room in ("base", "cache")]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", "-frounding-math"]
SANITIZERS = {"none": [], "thread": ["-fsanitize=thread"], "address": ["-fsanitize=address,undefined"]}
SOURCES = {
    "blockcache": sorted((KERNELS / "cache").glob("*.c")),
    "pool": [],  # it includes pool.c
}


def compiler() -> list[str] | None:
    """Return the C compiler of this machine: `CC`, cc, gcc or clang."""
    for name in filter(None, [os.environ.get("CC"), "cc", "gcc", "clang"]):
        if shutil.which(name.split()[0]):
            return name.split()
    return None


def build(what: str, folder: Path, cc: list[str], sanitizer: str) -> Path:
    """Compile a program with a sanitizer, and return it.

    Raises
    ------
    subprocess.CalledProcessError
        If the compiler fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{what}-{sanitizer}"
    sources = map(str, [HERE / f"stress_{what}.c", *SOURCES[what]])
    flags = [*FLAGS, *SANITIZERS[sanitizer], "-fno-sanitize-recover=all", *INCLUDE]
    subprocess.run([*cc, *flags, *sources, "-o", str(program), "-lm", "-lpthread"], check=True)
    return program


def run(program: Path, seconds: int, threads: int, seed: int) -> str:
    """Run a program; return its one line of counts.

    Raises
    ------
    subprocess.CalledProcessError
        If it, or the sanitizer, found a fault.
    """
    what, sanitizer = program.name.split("-")
    file = program.with_suffix(f".{os.getpid()}.bin")
    forks = "0" if sanitizer == "thread" else "1"  # ThreadSanitizer does not follow children with threads
    last = {"blockcache": str(file), "pool": forks}[what]
    try:
        return _output([str(program), str(seconds), str(threads), str(seed), last])
    finally:
        file.unlink(missing_ok=True)


def run_engine(environment: Path, cc: list[str], seconds: int, threads: int, seed: int) -> str:
    """Run the engine; return its one line of counts.

    Raises
    ------
    subprocess.CalledProcessError
        If it, or the sanitizer, found a fault.
    """
    library = _output([*cc, "-print-file-name=libtsan.so"])
    # Python itself is not built with it, and so are its own races, which its global lock makes harmless, not seen.
    variables = {"LD_PRELOAD": library, "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0"}
    command = [str(environment / "bin" / "python"), str(HERE / "engine.py"), str(seconds), str(threads), str(seed)]
    return _output(command, {**os.environ, **variables})


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()


def main() -> None:
    """Build and run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SOURCES, "engine"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizers", default="thread,address")
    options = parser.parse_args()
    cc = compiler()
    if cc is None:
        sys.exit("no C compiler")
    numbers = options.seconds, options.threads, options.seed
    for sanitizer in ["thread"] if options.what == "engine" else options.sanitizers.split(","):
        try:
            if options.what == "engine":
                counts = run_engine(options.folder, cc, *numbers)
            else:
                counts = run(build(options.what, options.folder, cc, sanitizer), *numbers)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{sanitizer}: ended with {error.returncode}")
        print(f"{options.what}, {sanitizer}: {counts}", flush=True)


if __name__ == "__main__":
    main()
