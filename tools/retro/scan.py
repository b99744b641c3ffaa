"""Find instructions that a Pentium II does not have.

    python scan.py WHEEL_OR_SHARED_OBJECT... [--objects CMAKE_BUILD_FOLDER]

Every shared object is disassembled, but not the dispatch module: it also holds the kernels that run only after the
processor was asked. Its object files, in the build folder, are looked at one by one, without those of the instruction
sets that cmake/isa.cmake gives to newer processors.

Ends with 1 if there is such an instruction. An emulator is not enough to find them: qemu-i386 traps registers that a
Pentium II does not have, but not the instructions that SSE added for its MMX registers.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ISA_TABLE = Path(__file__).resolve().parents[2] / "cmake" / "isa.cmake"

# Of SSE, SSE2 and SSSE3 on MMX registers, of SSE without any register, and of later extensions on general registers.
# Not `tzcnt`: a processor that lacks it runs it as `bsf`, and LLVM writes it where both give the same.
NEWER = set(
    re.findall(
        r"\S+",
        """
    pshufw pavgb pavgw pmulhuw pmaxub pmaxsw pminub pminsw psadbw pextrw pinsrw pmovmskb movntq maskmovq
    paddq psubq pmuludq movq2dq movdq2q cvtps2pi cvtpi2ps cvttps2pi cvtpd2pi cvtpi2pd cvttpd2pi
    pshufb palignr pmaddubsw pmulhrsw pabsb pabsw pabsd phaddw phaddd phaddsw phsubw phsubd phsubsw
    psignb psignw psignd
    prefetcht0 prefetcht1 prefetcht2 prefetchnta prefetch prefetchw sfence lfence mfence clflush movnti ldmxcsr stmxcsr
    fisttp fisttps fisttpl fisttpll monitor mwait
    popcnt lzcnt crc32 crc32b crc32w crc32l movbe andn bextr blsi blsr blsmsk bzhi pdep pext mulx rorx sarx shlx
    shrx adcx adox rdrand rdseed rdtscp
    """,
    )
)
ASKED = {"dispatch.c.o", "pool.c.o"}
"""Objects that include floats.h, which asks the processor before it uses these two."""
AFTER_ASKING = re.compile(r"\b(ldmxcsr|stmxcsr)\b")
WIDE = re.compile(r"%[xyz]mm|%k[0-7]\b")


def newer_sets() -> set[str]:
    """The instruction sets that run only where the processor has more than MMX."""
    rows = re.findall(
        r'^lb_isa\(NAME (\S+)\s+BASE \S+\s+FOR ".*?"\s+NEEDS "(.*?)"', ISA_TABLE.read_text(), re.MULTILINE
    )
    return {name for name, needs in rows if needs not in ("", "MMX")}


def newer_instructions(objdump: str, path: Path) -> Iterator[str]:
    """Lines of the disassembly that a Pentium II cannot run, each after the function it is in."""
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(path)]
    function = "?"
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if line.endswith(">:"):
            function = line.split("<")[1][:-2]
        _, colon, code = line.partition(":\t")
        words = code.split()
        if colon and words and (WIDE.search(code) or NEWER.intersection(words[:2])):  # the first may be a prefix
            yield f"{function}: {' '.join(words)}"


def shared_objects(paths: list[Path], folder: Path) -> Iterator[Path]:
    """The shared objects among the paths and in the wheels among them."""
    for path in paths:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder / path.stem)
            yield from sorted((folder / path.stem).rglob("*.so*"))
        else:
            yield path


def main() -> None:
    """Look at what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--objects", type=Path)
    options = parser.parse_args()
    objdump = shutil.which("i686-linux-gnu-objdump") or shutil.which("objdump")
    if objdump is None:
        sys.exit("there is no objdump")
    with tempfile.TemporaryDirectory() as folder:
        files = list(shared_objects(options.paths, Path(folder)))
        if options.objects:
            dispatched = {f"isa_{name}.dir" for name in newer_sets()}
            files = [file for file in files if not file.name.startswith("dispatch.")]
            objects = sorted(options.objects.rglob("*.o"))
            if not any(dispatched.intersection(file.parts) for file in objects):
                sys.exit(f"{options.objects} has no objects of the instruction sets of newer processors")
            files += [file for file in objects if not dispatched.intersection(file.parts)]
        found = 0
        for file in files:
            lines = list(newer_instructions(objdump, file))
            if file.name in ASKED:
                lines = [line for line in lines if not AFTER_ASKING.search(line)]
            found += len(lines)
            for line in lines[:5]:
                print(f"{file.name}: {line}")
            if len(lines) > 5:
                print(f"{file.name}: and {len(lines) - 5} more")
    if not files:
        sys.exit("there is nothing to look at")
    if found:
        sys.exit(f"{found} instructions that a Pentium II does not have")
    print(f"a Pentium II has every instruction of {len(files)} files")


if __name__ == "__main__":
    main()
