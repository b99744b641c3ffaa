"""Show what is inside a model file, or what lowbit finds on this machine.

Only the header is read, and of the weights a few rows. Warnings at the end say what in the file is guessed,
contradicts itself, or is known to ruin the text elsewhere. Of a chat template only the beginning is shown; --template
prints all of it. Without a file: the version, the instruction sets, the processor cores and the embedded model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from typing import Any

from .common import InputError, add_tokenizer_argument, print_json, print_table, printable, without_controls

SHOWN = 60
"""Characters of a chat template that the table shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="FILE", help="model file")
    parser.add_argument("-m", "--model", dest="option", metavar="FILE", help="the same")
    add_tokenizer_argument(parser.add_argument)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the whole chat template")
    parser.add_argument("--template", action="store_true", help="print the chat template as it is in the file, no more")


def run(args: argparse.Namespace) -> int:
    import lowbit

    from ..loading.inspection import inspect_file

    if args.model is not None and args.option is not None:
        raise InputError("name one model file, not two")
    path = args.option if args.model is None else args.model
    if path is None:
        embedded = inspect_file(tokenizer=args.tokenizer)
        info: dict[str, Any] = {
            "version": lowbit.__version__,
            "isa": lowbit.isa.active(),
            "available_isas": list(lowbit.isa.available()),
            "cores": os.cpu_count(),
            "embedded_model": embedded,
        }
    else:
        info = inspect_file(path, args.tokenizer)
    if args.template:
        return _print_template(info)
    if args.json:
        print_json(info)
        return 0
    warnings = (info if path is not None else info["embedded_model"]).pop("warnings", ())
    print_table(_rows(info))
    for warning in warnings:
        print(f"warning: {printable(warning)}")
    return 0


def _print_template(info: dict[str, Any]) -> int:
    template = info.get("chat_template")
    if template is None:
        raise InputError("there is no chat template to print")
    # Line ends and tabs belong to a template; what else is invisible may steer a terminal.
    print("\n".join("\t".join(without_controls(part) for part in line.split("\t")) for line in template.split("\n")))
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
            rows.append((label, ", ".join(map(str, value)) or "-"))
        elif isinstance(value, int) and not isinstance(value, bool):
            rows.append((label, f"{value:,}"))
        elif key == "chat_template" and value is not None:
            rows.append((label, _shortened(str(value))))
        elif isinstance(value, bool):
            rows.append((label, "yes" if value else "no"))
        else:
            rows.append((label, "-" if value is None else printable(str(value))))
    return rows


def _shortened(template: str) -> str:
    """The beginning of a chat template, its length, and its SHA-256, by which two can be compared."""
    start = printable(template[:SHOWN])
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    more = "..." if len(template) > SHOWN else ""
    return f"{start}{more} ({len(template):,} characters, SHA-256 {digest[:16]})"
