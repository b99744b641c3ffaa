"""Where and when figures were taken: the machine, the system and the versions, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np

import lowbit
from lowbit import isa
from lowbit._kernels import dispatch

__all__ = ["environment"]


def environment() -> dict[str, object]:
    """Return what somebody who repeats a measurement needs to know."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": int(dispatch.cores()),
        "isa": isa.available(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "compiler": _compiler(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lowbit": lowbit.__version__,
        "load_average": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    """The processor's name; a virtual one often keeps its model to itself, so family and model are added."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or fields.get("Hardware") or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def _compiler() -> str:
    """The C compiler that a build here takes."""
    command = os.environ.get("CC", "cc")
    if shutil.which(command) is None:
        return "unknown"
    return subprocess.run([command, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
