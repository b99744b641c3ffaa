"""Build the wheels of all platforms on one machine, with the C compiler that comes with zig.

    python build.py OUTPUT_FOLDER [NAME...]

Each wheel uses only the stable ABI of Python, so the headers of the Python that runs this serve all of them: what they
ask of the machine is in pyconfig.h beside this file. Python itself is not linked, but on Windows, where a library that
only names its functions is made from the list of the stable ABI.

Every wheel is checked before it is kept (check.py) and the table of all of them is written to OUTPUT_FOLDER/wheels.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from check import check

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Target:
    """A platform: its tag, zig's name for it, the oldest processor, and what Python calls it."""

    tag: str
    zig: str
    cpu: str
    platform: str


TARGETS = {
    target.tag: target
    for target in (
        Target("manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17", "x86_64", "linux-x86_64"),
        Target("manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17", "generic", "linux-aarch64"),
        Target("manylinux_2_17_i686", "x86-linux-gnu.2.17", "pentium2", "linux-i686"),
        Target("musllinux_1_2_x86_64", "x86_64-linux-musl", "x86_64", "linux-x86_64"),
        Target("musllinux_1_2_aarch64", "aarch64-linux-musl", "generic", "linux-aarch64"),
        Target("linux_armv6l", "arm-linux-gnueabihf.2.28", "arm1176jzf_s", "linux-armv6l"),
        Target("win_amd64", "x86_64-windows-gnu", "x86_64", "win-amd64"),
        Target("win_arm64", "aarch64-windows-gnu", "generic", "win-arm64"),
        Target("macosx_11_0_x86_64", "x86_64-macos.11.0", "x86_64", "macosx-11.0-x86_64"),
        Target("macosx_11_0_arm64", "aarch64-macos.11.0", "generic", "macosx-11.0-arm64"),
    )
}


def make_headers(folder: Path) -> Path:
    """The headers of this Python, with the pyconfig.h of all targets."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), folder)
    shutil.copy2(HERE / "pyconfig.h", folder)
    return folder


def make_import_library(target: Target, folder: Path) -> Path:
    """python3.lib: the names that python3.dll has on every Windows."""
    from abi3info import DATAS, FUNCTIONS

    names = [symbol.name for symbol in FUNCTIONS] + [f"{symbol.name} DATA" for symbol in DATAS]
    definition, library = folder / "python3.def", folder / "python3.lib"
    definition.write_text("LIBRARY python3.dll\nEXPORTS\n" + "\n".join(sorted(names)) + "\n")
    machine = {"x86_64": "i386:x86-64", "aarch64": "arm64"}[target.zig.split("-")[0]]
    zig = [sys.executable, "-m", "ziglang", "dlltool"]
    subprocess.run([*zig, "-m", machine, "-d", definition, "-l", library, "-D", "python3.dll"], check=True)
    return library


def build(target: Target, out: Path) -> Path:
    """Build, check and keep one wheel."""
    work = out / "work" / target.tag
    work.mkdir(parents=True, exist_ok=True)
    settings = {
        "build-dir": work / "cmake",
        "cmake.define.CMAKE_TOOLCHAIN_FILE": ROOT / "cmake/toolchains/zig.cmake",
        "cmake.define.Python_INCLUDE_DIR": make_headers(work / "include"),
    }
    if "windows" in target.zig:
        settings["cmake.define.Python_SABI_LIBRARY"] = make_import_library(target, work)
    environment = {
        **os.environ,
        "LOWBIT_ZIG_TARGET": target.zig,
        "LOWBIT_ZIG_CPU": target.cpu,
        "LOWBIT_ZIG_PYTHON": sys.executable,
        "_PYTHON_HOST_PLATFORM": target.platform,
        "CMAKE_GENERATOR": "Ninja",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("CMAKE_C_COMPILER_LAUNCHER", None)
    made = work / "wheel"
    shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", made, ROOT]
    command += [f"--config-settings={key}={value}" for key, value in settings.items()]
    subprocess.run(command, check=True, env=environment)
    (wheel,) = made.glob("*.whl")
    tags = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.tag, wheel]
    name = subprocess.run(tags, check=True, capture_output=True, text=True).stdout.split()[-1]
    return Path(shutil.move(made / name, out / name))


def main() -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    options = parser.parse_args()
    out = options.out.resolve()
    rows = []
    for name in options.names or TARGETS:
        wheel = build(TARGETS[name], out)
        audit = Path(sys.executable).with_name("abi3audit")
        subprocess.run([audit, "--strict", "--summary", wheel], check=True)
        rows.append(check(wheel, out / "work" / name / "cmake"))
        print(rows[-1], flush=True)
    table = "| wheel | size | modules | needs | baseline |\n|---|---|---|---|---|\n"
    (out / "wheels.md").write_text(table + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
