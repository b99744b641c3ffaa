"""Build the self-test of the micro-kernels with one C compiler, and run it on this CPU or under an emulator.

    python run.py BUILD_FOLDER                       on this CPU
    python run.py BUILD_FOLDER --emulate             and on emulated CPUs, with qemu-user and cross compilers
    python run.py BUILD_FOLDER --sanitize            with AddressSanitizer and UBSan

Sources, flags and needs of the instruction sets come from cmake/isa.cmake. Named here are the best sets of emulated
CPUs, and those whose code runs on a CPU that lacks them (`stand_in`).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src" / "kernels"
INCLUDE = [f"-I{KERNELS / room}" for room in ("base", "ops")]
SELFTEST = Path(__file__).resolve().parent
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Targets that qemu-user emulates, with its CPU models and the best instruction set that each of them has.
EMULATED = {
    "x86_64": {"qemu64": "sse2", "Conroe": "ssse3", "Nehalem": "ssse3", "Haswell": "avx2"},
    "i686": {"pentium2": "mmx", "coreduo": "sse2", "n270": "ssse3"},
    "aarch64": {"cortex-a53": "neon", "neoverse-n1": "neondot", "max": "neoni8mm"},
    "armv6l": {"arm1176": "armv6"},
}

# What Debian calls them, where that is another word, and the flags of a Raspberry Pi Zero.
COMPILERS = {"armv6l": ("arm-linux-gnueabi-gcc", "-mcpu=arm1176jzf-s", "-mfpu=vfp", "-mfloat-abi=softfp")}
EMULATORS = {"i686": "i386", "armv6l": "arm"}


class Row(NamedTuple):
    """One row of cmake/isa.cmake."""

    name: str
    base: str
    processors: str
    needs: str
    flags: tuple[str, ...]
    system: str
    tried: str


def rows(processor: str) -> list[Row]:
    """Return the instruction sets for a processor, the plainest first."""
    text = (ROOT / "cmake" / "isa.cmake").read_text()
    found = re.findall(
        r'^lb_isa\(NAME (\S+)\s+BASE (\S+)\s+FOR "(.*?)"\s+NEEDS "(.*?)"\s+FLAGS "(.*?)"\s+MSVC ".*?"'
        r'(?:\s+ON "(.*?)")?(?:\s+TRY "(.*?)")?\)',
        text,
        re.MULTILINE,
    )
    every = [Row(*four, tuple(flags.split()), *more) for *four, flags, more in ((*row[:5], row[5:]) for row in found)]
    return [row for row in every if re.fullmatch(row.processors, processor) and row.system in ("", platform.system())]


def knows(compiler: list[str], row: Row) -> bool:
    """Return whether a compiler can compile an instruction set, as CMakeLists.txt asks it."""
    header = {"aarch64": "arm_neon.h", "armv6l": "arm_acle.h"}.get(row.processors.split("|")[0], "immintrin.h")
    include = f"#include <{header}>\n"
    source = f"{include}int main(void) {{ {row.tried}; return 0; }}"
    command = [*compiler, *row.flags, "-x", "c", "-", "-o", os.devnull]
    return not row.tried or subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def common_flags() -> list[str]:
    """Return the flags that CMakeLists.txt gives to every source."""
    text = (ROOT / "CMakeLists.txt").read_text()
    flags = re.search(r"add_compile_options\((-O.*?)\)", text)
    assert flags, "CMakeLists.txt sets no flags"
    return [*flags[1].split(), "-std=gnu11", "-Wall", "-Wextra", "-Werror"]


def stand_in(row: Row, cpu: set[str]) -> Row:
    """Return the row of a set that a CPU with these flags lacks so that its code runs there, on AVX-512 VNNI.

    AVX-VNNI is the same instruction in another encoding, the tiles of AMX are emulated, and what is only faster on some
    processor of AMD runs on others, too.
    """
    if "avx512_vnni" in cpu and row.name == "avxvnni" and "avx_vnni" not in cpu:
        flags = [flag for flag in row.flags if flag != "-mavxvnni"]
        flags += ["-mavx512vnni", "-mavx512vl", "-DLB_AVXVNNI_AS_EVEX"]
        return row._replace(needs="AVX512VNNI", flags=tuple(flags))
    if "avx512vbmi" in cpu and row.name == "zen4":
        return row._replace(needs="AVX512VBMI")
    if "avx512vbmi" in cpu and row.name == "amx" and "amx_int8" not in cpu:
        return row._replace(needs="AVX512VBMI", flags=(*row.flags, "-include", str(SELFTEST / "emulated_tiles.h")))
    return row


def write_table(folder: Path, table: list[Row]) -> None:
    """Write what CMakeLists.txt makes of the rows for base/table.c."""
    lines = [f"LB_ISA_ROW({row.name}, {row.base}, {f'LB_CPU_{row.needs}' if row.needs else 0})\n" for row in table]
    (folder / "isa_rows.h").write_text("".join(lines))


def build(
    folder: Path,
    compiler: list[str],
    processor: str,
    *,
    static: bool = False,
    sanitize: bool = False,
    cpu: set[str] | None = None,
    quick: bool = False,
) -> Path:
    """Compile every instruction set with its own flags and link the self-test.

    Parameters
    ----------
    folder : Path
        Where objects and program go; made if missing.
    compiler : list of str
        Command of a C compiler.
    processor : str
        Its target, as CMake names it.
    static : bool
        Link statically, for an emulator without the target's libraries.
    sanitize : bool
        Watch memory accesses and undefined behaviour.
    cpu : set of str, optional
        Flags of the CPU that it will run on, for `stand_in`.
    quick : bool
        Compile with -O1, which takes a fraction of the time, instead of as the wheel is.

    Returns
    -------
    Path
        The program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*common_flags(), *(SANITIZE if sanitize else []), *(["-O1"] if quick else [])]
    table = [stand_in(row, cpu or set()) for row in rows(processor) if knows(compiler, row)]
    write_table(folder, table)
    common = [KERNELS / "base" / "table.c", KERNELS / "base" / "cpu.c", *sorted(SELFTEST.glob("*.c"))]
    jobs = [(source, row.flags) for row in table for source in sorted((KERNELS / "isa" / row.name).glob("*.c"))]

    def compile_one(job: tuple[Path, tuple[str, ...]]) -> str:
        source, more = job
        target = folder / (source.parent.name + "-" + source.stem + ".o")
        include = ["-I", str(folder), *INCLUDE]
        subprocess.run([*compiler, *flags, *more, *include, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*jobs, *((source, ()) for source in common)]))
    program = folder / "selftest"
    link = ["-static"] if static else []
    subprocess.run([*compiler, *flags, *link, *objects, "-lm", "-o", str(program)], check=True)
    return program


def run(program: Path, launcher: list[str], best: str | None = None) -> list[str]:
    """Run the self-test and return the instruction sets that it found equal.

    Parameters
    ----------
    program : Path
    launcher : list of str
        Command of an emulator, or nothing.
    best : str, optional
        The last instruction set that must be among them.

    Raises
    ------
    SystemExit
        If a kernel differs, or the last set is another.
    """
    print("$", *launcher, program.name, flush=True)
    done = subprocess.run([*launcher, str(program)], stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    equal = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(": equal")]
    if done.returncode:
        sys.exit(f"the self-test ended with {done.returncode}")
    if not equal or best not in (None, equal[-1]):
        sys.exit(f"{best} should be the best instruction set, checked {equal}")
    return equal


def cross_compiler(target: str) -> list[str] | None:
    """Return a command that compiles for the target, or None; Debian has compilers without a C library."""
    if target == platform.machine():
        return native_compiler()
    command, *flags = COMPILERS.get(target, (f"{target}-linux-gnu-gcc",))
    name = shutil.which(command)
    if name is None or subprocess.run([name, "-E", "-include", "stdio.h", os.devnull], capture_output=True).returncode:
        return None
    return [name, *flags]


def native_compiler() -> list[str] | None:
    """Return the C compiler of this machine: `CC`, cc, gcc or clang."""
    for name in filter(None, [os.environ.get("CC"), "cc", "gcc", "clang"]):
        if shutil.which(name.split()[0]):
            return name.split()
    return None


def emulator(target: str) -> str | None:
    """Return the command of qemu-user for a target, or None."""
    name = EMULATORS.get(target, target)
    return shutil.which(f"qemu-{name}-static") or shutil.which(f"qemu-{name}")


def cpu_flags() -> set[str]:
    """Return the flags of this CPU, as far as the system tells."""
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def emulate(folder: Path, target: str, only: str | None = None) -> bool:
    """Build for a target and run on its emulated CPUs; return False, with a line why, where that is not possible.

    With `only` the program is compiled quickly, and runs on that CPU alone.
    """
    cross, qemu = cross_compiler(target), emulator(target)
    if cross is None or qemu is None:
        print(f"{target}: not emulated, there is no {'cross compiler' if cross is None else 'qemu-user'}")
        return False
    program = build(folder, cross, target, static=True, quick=only is not None)
    for cpu, best in EMULATED[target].items():
        if only in (None, cpu):
            run(program, [qemu, "-cpu", cpu], best)
    return True


def main() -> None:
    """Build and run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    machine = platform.machine()
    compiler = native_compiler()
    if compiler is None:
        sys.exit("no C compiler")
    run(build(options.folder / "native", compiler, machine, sanitize=options.sanitize, cpu=cpu_flags()), [])
    for target in EMULATED if options.emulate else ():
        emulate(options.folder / target, target)


if __name__ == "__main__":
    main()
