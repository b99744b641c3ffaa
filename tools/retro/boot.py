"""Boot the Pentium II machine in emulation.

    python boot.py run FOLDER      the series of runs; ends with 1 unless all of them do what they have to
    python boot.py shell FOLDER    a person at the serial console

The emulator is qemu-system-i386 as a Pentium II with 128 MB. It counts neither cycles nor waits for memory: times are
those of the emulator, not of a Pentium II. What it shows is that every instruction is there, and every byte fits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TIME_LIMIT = 3600
"""Seconds after which a machine that has not switched itself off is switched off."""
MEMORY_MB = 128


def command(folder: Path, mode: str) -> list[str]:
    """The emulator's command line. The disks stay as they are: what the machine writes is forgotten."""
    disks = [f"file={folder / name}.img,format=raw,if=ide,index={i}" for i, name in enumerate(("system", "models"))]
    kernel = ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initramfs.gz")]
    options = f"console=ttyS0 quiet panic=-1 noapic no_timer_check retro={mode}"
    machine = ["-M", "pc", "-cpu", "pentium2", "-m", str(MEMORY_MB), "-accel", "tcg,thread=single", "-snapshot"]
    console = ["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nic", "none"]
    if mode == "shell":
        console = ["-nographic", "-no-reboot", "-nic", "none"]
    drives = [word for disk in disks for word in ("-drive", disk)]
    return ["qemu-system-i386", *machine, *drives, *kernel, "-append", options, *console]


def check(runs: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the results, a line each."""
    wrong = []
    for run in runs:
        name = run["name"]
        if name not in results:
            wrong.append(f"{name}: did not end")
            continue
        result = results[name]
        peak = result["peak_kb"] / 1024
        if result["tokens"] != run["expected"]:
            wrong.append(f"{name}: made the tokens {result['tokens']}, not {run['expected']}")
        if result.get("logits") != run.get("logits"):
            wrong.append(f"{name}: has other logits than the 64-bit machine")
        if "rss_limit" in run and peak > run["rss_limit"]:
            wrong.append(f"{name}: took {peak:.1f} MB, more than {run['rss_limit']} MB")
    return wrong


def report(result: dict[str, Any]) -> str:
    """One line about a run."""
    seconds = result["decode_seconds"] / max(1, result["decode_tokens"])
    speed = f"{1 / seconds:.2f} tokens/s" if 0 < seconds < 1 else f"{seconds:.1f} s per token"
    return (
        f"{result['name']}: {result['isa']}, loaded in {result['load_seconds']:.1f} s, prompt of "
        f"{result['prompt_tokens']} in {result['prompt_seconds']:.1f} s, {speed}, "
        f"peak {result['peak_kb'] / 1024:.1f} MB"
    )


def run_series(folder: Path) -> list[str]:
    """Boot, show what the machine says, and return what is wrong."""
    runs = json.loads((folder / "models" / "runs.json").read_text())
    results: dict[str, dict[str, Any]] = {}
    wrong = []
    start = time.monotonic()
    with subprocess.Popen(
        command(folder, "run"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as machine:
        timer = threading.Timer(TIME_LIMIT, machine.kill)
        timer.start()
        assert machine.stdout is not None
        with open(folder / "console.log", "w") as log:
            for line in machine.stdout:
                log.write(line)
                log.flush()
                word, _, rest = line.rstrip("\r\n").partition(" ")
                if word == "@result":
                    result = json.loads(rest)
                    results[result["name"]] = result
                    print("  [" + report(result) + "]", flush=True)
                elif word == "@failed":
                    wrong.append(rest)
                elif word in ("@machine", "@memory", "@run"):
                    print({"@machine": "machine: ", "@memory": "  available: ", "@run": ""}[word] + rest, flush=True)
                elif not word.startswith(("@", "[")) or "panic" in line:  # no kernel messages
                    print("  " + line.rstrip("\r\n"), flush=True)
        timer.cancel()
    print(f"switched off after {time.monotonic() - start:.0f} s; times are the emulator's, not a Pentium II's")
    return wrong + check(runs, results)


def main() -> None:
    """Boot as the command line says."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "shell":
        sys.exit(subprocess.run(command(folder, mode)).returncode)
    wrong = run_series(folder)
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        sys.exit(1)
    print("all runs gave the tokens and the logits of the 64-bit machine, bit for bit, within their memory")


if __name__ == "__main__":
    main()
