"""Check that a wheel asks nothing of a machine that its tag does not promise.

    python check.py WHEEL CMAKE_BUILD_FOLDER

Its modules are for the right processor, import only what is on every such system, and hold no instruction that the
oldest processor lacks: the object files of the build are disassembled, without those of the instruction sets that run
only after the processor was asked. Ends with one line that says what is wrong, or prints a row of a table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = {
    "manylinux": r"lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux[-\w]*\.so\.\d",
    "musllinux": r"libc\.so|libc\.musl-\w+\.so\.1",
    "linux": r"lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux[-\w]*\.so\.\d|libgcc_s\.so\.1",
    "win": r"(?i)python3|kernel32|msvcrt|ucrtbase|ntdll|advapi32|api-ms-win-crt-[-\w]+",
    "macosx": r"/usr/lib/libSystem\.B\.dylib",
}
"""What is on every system of the kind, without `.dll`."""

NEWER = {
    "x86_64": r"%[yz]mm|%k[0-7]\b|^(pshuf?b|palignr|pmaddubsw|phadd\w+|phsub\w+|pabs[bwd]|psign[bwd]|pmulhrsw|haddp[sd]"
    r"|hsubp[sd]|addsubp[sd]|movddup|movs[hl]dup|lddqu|fisttp\w*|popcnt\w*|lzcnt\w*|crc32\w*|movbe\w*|pmulld"
    r"|pmov[sz]x\w+|p?blendv?\w+|round[ps][sd]|pextr[bdq]|pinsr[bdq]|ptest|pcmp(eq|gt)q|cmpxchg16b|dpp[sd]|mpsadbw"
    r"|packusdw|p(min|max)(s[bd]|u[wd])|andn[lq]|bextr\w*|bls\w+|bzhi\w*|mulx\w*|[rs][oha][rl]x\w*|v[a-z]{3,}\w*)$",
    "aarch64": r"^([su]dot|us?dot|sudot|[su]mmla|usmmla|bf\w*dot|bfmmla|cas\w*|swp\w*|ld(add|clr|eor|set)\w*|ldapr\w*"
    r"|sqrdml\w+|fmlal\w*|whilelo|ptrue)$",
    "armv6l": r"^(movw|movt|[su]div|dmb|dsb|isb|[su]bfx|bf[ci]|rbit|ml[sa]l?d?x|v(ld|st)[1-4]\S*|vmov\.i\S*|vfma\S*)$",
}
"""Instructions, or registers, that the oldest processor of a kind does not have, in the words of llvm-objdump.

Not `tzcnt`: a processor that lacks it runs it as `bsf`, and LLVM writes it where both give the same.
"""

BASELINE = {"x86_64": "SSE2", "aarch64": "Armv8.0", "armv6l": "ARMv6, VFPv2", "i686": "Pentium II"}


def processor(tag: str) -> str:
    """What the processor of a platform is called here."""
    name = re.search(r"(amd64|x86_64|arm64|aarch64|i686|armv6l)$", tag)[1]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def later_sets() -> set[str]:
    """The folders with objects that run only after the processor was asked."""
    rows = re.findall(
        r'^lb_isa\(NAME (\S+)\s+BASE \S+\s+FOR ".*?"\s+NEEDS "(.*?)"',
        (ROOT / "cmake/isa.cmake").read_text(),
        re.MULTILINE,
    )
    return {f"isa_{name}.dir" for name, needs in rows if needs not in ("", "NEON")}


def tool(name: str) -> str:
    """A program of LLVM, which reads the files of all systems."""
    return shutil.which(name) or sys.exit(f"needs {name}: apt install llvm")


def imports(module: Path, system: str) -> tuple[list[str], str]:
    """The libraries that a module needs, and the oldest system that it asks for."""
    more = {"win": "--coff-imports", "macosx": "--macho-version-min"}.get(system, "--version-info")
    command = [tool("llvm-readobj"), "--needed-libs", more, str(module)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    libraries = re.search(r"NeededLibraries \[\n(.*?)^\]", said, re.MULTILINE | re.DOTALL)
    names = libraries[1].split() if libraries else []
    if system == "macosx":
        least = re.search(r"Version: ([\d.]+)", said)
        return [name for name in names if Path(name).name != module.name], f"macOS {least[1]}" if least else ""
    versions = [
        tuple(map(int, version.split("."))) for version in re.findall(r"Name: GLIBC_([\d.]+)$", said, re.MULTILINE)
    ]
    return [name.removesuffix(".dll") for name in names], "glibc " + ".".join(
        map(str, max(versions))
    ) if versions else ""


def scan(objects: Path, kind: str) -> int:
    """Count the object files, none of which has an instruction that the oldest processor lacks."""
    objdump = tool("llvm-objdump")
    words = ["--mattr=+dotprod,+lse,+rcpc,+i8mm,+bf16"] if kind == "aarch64" else []
    newer, later, count = re.compile(NEWER[kind]), later_sets(), 0
    for file in sorted([*objects.rglob("*.o"), *objects.rglob("*.obj")]):
        if later.intersection(file.parts) or "CompilerIdC" in file.parts:
            continue
        text = subprocess.run(
            [objdump, "-d", "--no-show-raw-insn", *words, file], check=True, capture_output=True, text=True
        ).stdout
        for line in text.splitlines():
            code = line.partition(":")[2].split()
            if (
                line.startswith(" ")
                and code
                and (newer.search(code[0]) or any(newer.search(word) for word in code[1:2]))
            ):
                sys.exit(f"{file.name}: {' '.join(code)} is newer than {BASELINE[kind]}")
        count += 1
    return count or sys.exit(f"{objects} has no objects")


def check(wheel: Path, objects: Path) -> str:
    """Return the wheel's row of the table, or end the program."""
    tag = wheel.stem.split("-")[-1].split(".")[0]
    system, kind = re.match(r"[a-z]+", tag)[0], processor(tag)
    asked = set()
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        modules = [file for file in Path(folder).rglob("*") if file.suffix in (".so", ".pyd", ".dylib")]
        for module in modules:
            libraries, least = imports(module, system)
            asked.add(least)
            for library in libraries:
                if not re.fullmatch(SYSTEM[system], library):
                    sys.exit(f"{wheel.name}: {module.name} needs {library}")
    if kind == "i686":
        retro = [sys.executable, ROOT / "tools/retro/scan.py", wheel, "--objects", objects]
        subprocess.run(retro, check=True, stdout=subprocess.DEVNULL)
    else:
        scan(objects, kind)
    least = max(filter(None, asked), key=lambda text: [int(n) for n in re.findall(r"\d+", text)], default=system)
    return f"| `{wheel.name}` | {wheel.stat().st_size / 1e6:.2f} MB | {len(modules)} | {least} | {BASELINE[kind]} |"


if __name__ == "__main__":
    print(check(Path(sys.argv[1]), Path(sys.argv[2])))
