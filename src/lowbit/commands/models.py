"""List the models on this machine, and some of those that lowbit is made for.

On this machine are the embedded model and those in the cache of the Hugging Face hub, whoever fetched them; whether
lowbit runs one of these is known when it is loaded. Of the others: RAM is what `lowbit info` counts with the defaults
(weights, scratch, and keys and values of 2,048 tokens), and "checked" says whether lowbit ran the very file, here.
Where nothing is said, nothing is known.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from .common import print_json, print_table, printable

CATALOGUE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "catalogue.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    from ..assets import EMBEDDED_MODEL
    from ..hub import Here, models_here

    here = [Here("(embedded)", EMBEDDED_MODEL, os.path.getsize(EMBEDDED_MODEL)), *models_here()]
    with open(CATALOGUE, encoding="utf-8") as file:
        catalogue: list[dict[str, Any]] = json.load(file)
    if args.json:
        print_json({"here": [vars(one) for one in here], "catalogue": catalogue})
        return 0
    print("On this machine:")
    print_table((one.name, _size(one.bytes), printable(one.path or "(unfinished: pull it again)")) for one in here)
    print("\nTo be had (checked: whether lowbit ran this very file):")
    print_table(
        [
            ("model", "disk", "RAM", "architecture", "type", "licence", "checked", "from"),
            *(
                (
                    one["model"],
                    _size(one.get("disk")),
                    _size(one.get("ram")),
                    one["architecture"],
                    one["type"],
                    one.get("licence", "-"),
                    "yes" if one["checked"] else "no",
                    one["from"],
                )
                for one in catalogue
            ),
        ]
    )
    return 0


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
