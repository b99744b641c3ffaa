"""Show what is inside a model file, or what lowbit finds on this machine.

Without a file: the version, the instruction sets, the processor cores and the embedded model.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from .common import InputError, print_json, print_table, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="FILE", help="model file")
    parser.add_argument("-m", "--model", dest="option", metavar="FILE", help="the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import lowbit

    if args.model is not None and args.option is not None:
        raise InputError("name one model file, not two")
    path = args.option if args.model is None else args.model
    if path is None:
        embedded = lowbit.load().info()
        info: dict[str, Any] = {
            "version": lowbit.__version__,
            "isa": lowbit.isa.active(),
            "available_isas": list(lowbit.isa.available()),
            "cores": os.cpu_count(),
            "embedded_model": embedded,
        }
    else:
        info = lowbit.load(path).info()
    if args.json:
        print_json(info)
    else:
        print_table(_rows(info))
    return 0


def _rows(info: dict[str, Any], indent: str = "") -> list[tuple[str, str]]:
    """Return label and value of each entry; a dict inside becomes indented rows."""
    rows: list[tuple[str, str]] = []
    for key, value in info.items():
        label = indent + key.replace("_", " ")
        if isinstance(value, dict) and all(isinstance(v, int) for v in value.values()):
            rows.append((label, ", ".join(f"{k} x {v}" for k, v in value.items())))
        elif isinstance(value, dict):
            rows += [(label, ""), *_rows(value, indent + "  ")]
        elif isinstance(value, (list, tuple)):
            rows.append((label, ", ".join(map(str, value))))
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((label, f"{value:,}"))
        else:
            rows.append((label, "-" if value is None else printable(str(value))))
    return rows
