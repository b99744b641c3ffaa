"""One run on the Pentium II machine: generate greedily, and report as one line of JSON after the text.

python3 run.py RUNS.JSON NAME
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def peak_kilobytes() -> int:
    """The most memory that this process had at a time (VmHWM: resident, with what it shares)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("the kernel tells no VmHWM")


def main() -> None:
    """Do the run that the command line names."""
    runs, name = Path(sys.argv[1]), sys.argv[2]
    run = next(r for r in json.loads(runs.read_text()) if r["name"] == name)
    import lowbit

    start = time.perf_counter()
    options = {"max_ram": run["max_ram"]} if "max_ram" in run else {}
    model = lowbit.load(runs.parent / run["model"], **options)
    loaded = time.perf_counter() - start
    pieces = model.stream(run["prompt"], max_tokens=run["tokens"], temperature=0)
    has_text = isinstance(run["prompt"], str)
    if has_text:
        print(f'"{run["prompt"]} ...', flush=True)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            out = end.value
            break
        if has_text:
            print(piece, end="", flush=True)
    if has_text:
        print('"')
    result = {
        "name": name,
        "isa": lowbit.isa.active(),
        "tokens": list(map(int, out.tokens)),
        "load_seconds": loaded,
        "prompt_tokens": out.prompt_tokens,
        "prompt_seconds": out.timings.prompt_seconds,
        "decode_tokens": out.timings.decode_tokens,
        "decode_seconds": out.timings.decode_seconds,
    }
    if "probe" in run:
        logits = model.logits(run["probe"])[-1].view("<u4")
        result["logits"] = logits[:: model.config.vocab_size // 64].tolist()
    result["peak_kb"] = peak_kilobytes()
    print("@result", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
