"""Estimate what a batch takes on given machines, and which of them should do how much of it.

--machines names a JSON list: [{"name": "lab", "count": 40, "memory": "8GB", "bench": [...]}, ...], where bench is what
`lowbit bench --json` printed on such a machine; or decode_tps and prefill_tps in its place. Figures that were measured
with another model are scaled by the bytes of the weights. Memory is what the model may take of the machine.
"""

from __future__ import annotations

import argparse

from .common import InputError, print_json, print_table, printable, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", metavar="FILE", help="model file or folder (default: the embedded model)")
    add("--tokens", type=_amount, required=True, metavar="N", help="tokens of the batch, read and made, such as 1e9")
    add("--prompt-share", type=float, default=0.5, metavar="F", help="the part of them that is read (default: 0.5)")
    add("--text-tokens", type=whole(1), default=1024, metavar="N",
        help="most tokens of a text, with its prompt (default: 1024)")  # fmt: skip
    add("--machines", required=True, metavar="FILE", help="the machines")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from ..batch.progress import span
    from ..fleet import plan_batch, read_machines
    from ..loading.inspection import inspect_file
    from ..loading.memory import shown

    if not 0 <= args.prompt_share <= 1:
        raise InputError(f"--prompt-share must be from 0 to 1, not {args.prompt_share:g}")
    info = inspect_file(args.model)
    text_bytes = info["kv_bytes_per_token"] * args.text_tokens + info["state_bytes"]
    shares = plan_batch(
        read_machines(args.machines), args.tokens, args.prompt_share, info["weight_bytes"],
        info["weight_bytes"] + info["scratch_bytes"], text_bytes,
    )  # fmt: skip
    rate = sum(share.rate for share in shares)
    if not rate:
        least = min(share.need for share in shares)
        raise InputError(f"no machine has the memory for the model and one text: {shown(least)}")
    if args.json:
        print_json({
            "seconds": args.tokens / rate, "tokens_per_second": rate,
            "machines": [{"name": s.machine.name, "count": s.machine.count, "parallel": s.parallel,
                          "memory_bytes": s.need, "tokens_per_second": s.rate, "tokens": s.tokens} for s in shares],
        })  # fmt: skip
        return 0
    rows = [("machine", "count", "memory", "texts at a time", "tokens/s", "share")]
    for s in shares:
        rows.append((
            printable(s.machine.name), f"{s.machine.count:,}", shown(s.need), str(s.parallel) if s.parallel else "none",
            f"{s.rate:,.0f}" if s.parallel else "too small", f"{s.tokens / args.tokens:.1%}",
        ))  # fmt: skip
    print_table(rows, numeric=True)
    print(f"together: {rate:,.0f} tokens/s, {span(args.tokens / rate)} for {args.tokens:,.0f} tokens")
    return 0


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e18:
        raise argparse.ArgumentTypeError(f"must be a number of tokens, such as 1e9, not {text!r}")
    return value
