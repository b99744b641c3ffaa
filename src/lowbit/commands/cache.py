"""Keep keys and values of texts on disk: list them, compute those of a text beforehand, or remove them all.

`generate`, `chat`, `serve` and others use what is in a folder with `--kv-disk PATH`, and put there what they compute.
What was not used for the longest goes when the folder is full. Here PATH is `auto` if it is not given.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from .common import InputError, add_model_arguments, load_model, print_json, print_table, printable, read_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "warm", "clear"), help="what to do")
    parser.add_argument("--text", metavar="FILE", help="warm: a text, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    args.kv_disk = args.kv_disk or "auto"
    if args.action != "warm" and args.text is not None:
        raise InputError(f"{args.action} takes no --text")
    return {"list": _list, "warm": _warm, "clear": _clear}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from ..loading.kvdisk import name_in
    from ..loading.kvfolder import KVFolder

    folder = KVFolder(args.kv_disk)
    models: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.files() if os.path.isdir(folder.path) else [], key=lambda file: file.used):
        one = models.setdefault(file.model, {"fingerprint": file.model, "blocks": 0, "states": 0, "bytes": 0})
        one[f"{file.kind}s"] += 1
        one["bytes"] += file.bytes
        one["used"] = file.used / 1e9
        one["name"] = name_in(file.path) or one.get("name", "")
    if args.json:
        print_json({"path": folder.path, "bytes": sum(one["bytes"] for one in models.values()),
                    "models": list(models.values())})  # fmt: skip
        return 0
    print(f"{printable(folder.path)}: {sum(one['bytes'] for one in models.values()) / 1e6:.1f} MB")
    rows = [("model", "fingerprint", "blocks", "states", "MB", "last used")]
    for one in models.values():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["used"]))
        name = printable(one["name"]) or "?"
        counts = (str(one["blocks"]), str(one["states"]), f"{one['bytes'] / 1e6:.1f}")
        rows.append((name, one["fingerprint"][:8], *counts, used))
    if models:
        print_table(rows)
    return 0


def _warm(args: argparse.Namespace) -> int:
    from .._kernels.kvpool import SPAN

    if args.text is None:
        raise InputError("warm needs a text: --text FILE")
    text = read_file(args.text)
    model = load_model(args)
    out = model.generate(text, max_tokens=0)
    disk = model._decoder.pool.stats()["disk"]
    if disk["off"] is not None:
        raise InputError(f"{args.kv_disk}: {disk['off']}")
    result = {"tokens": out.prompt_tokens, "blocks": out.prompt_tokens // SPAN, "written": disk["written"],
              "refused": disk["refused"], "bytes": disk["bytes"]}  # fmt: skip
    if args.json:
        print_json(result)
    else:
        refused = f", no room for {disk['refused']}" if disk["refused"] else ""
        print(f"{out.prompt_tokens} tokens, {result['blocks']} full blocks of {SPAN}: {disk['written']} files "
              f"written{refused}; {disk['bytes'] / 1e6:.1f} MB in the folder")  # fmt: skip
    return 0


def _clear(args: argparse.Namespace) -> int:
    from ..loading.kvfolder import KVFolder

    folder = KVFolder(args.kv_disk)
    removed = folder.clear() if os.path.isdir(folder.path) else 0
    if args.json:
        print_json({"path": folder.path, "removed": removed})
    else:
        print(f"{printable(folder.path)}: {removed} files removed")
    return 0
