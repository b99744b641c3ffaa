"""A file used in the same order over and over, within less memory than it takes: who reads how much, in which time.

    python bench/blockcache.py [--folder FOLDER] [--megabytes 600] [--record docs/block-cache.json]

In every round and for every budget from 10 to 100 % of the file, in turn:

* the disk: the best rate of direct reads of 1 MB, one to eight at a time;
* `order`: BlockCache that was told the order;
* `lru`: BlockCache without an order, but with hints for the next blocks, so that it reads ahead as well;
* `mmap`: the file mapped by a process of its own, in a memory control group whose limit is the budget. Its pages are
  dropped from the page cache before; tried without advice and with MADV_SEQUENTIAL, and the quicker one counts. Left
  out where control groups are not for us to make.

Each goes through the file once, and then again while it is measured; "using" a block is adding up its 64-bit words. The
least number of reads (Belady 1966) is computed for the same sequence of blocks, in as much memory without any
bookkeeping. The best of the rounds is recorded, and the plot goes beside the record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from environment import environment
from paging_limits import belady, cached, disk_rate, forget, mapped, use
from plots import STYLE
from tqdm import tqdm

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs"
CURVES = {
    "order": ("BlockCache, order known", "#0072B2", "o"),
    "lru": ("the same, LRU with read-ahead", "#E69F00", "s"),
    "mmap": ("mmap under a memory limit", "#CC79A7", "^"),
}


def measure(path: Path, length: int, percents: list[int], rounds: int) -> dict[str, Any]:
    """Measure everything in turn; return the record."""
    size = path.stat().st_size
    n = size // length
    blocks = np.column_stack([np.arange(n) * length, np.full(n, length)])
    rows = []
    for percent in percents:
        budget = size * percent // 100
        least = belady([length] * n, budget)
        rows.append({"percent": percent, "budget": budget, "least_bytes": least, "engines": {}})
    content = np.fromfile(path, np.uint64)
    rates, resident = [], []
    with tqdm(total=rounds * len(rows) * 4, unit="run", file=sys.stderr) as progress:
        for _ in range(rounds):
            for row in rows:
                forget(path)
                rates.append(disk_rate(path, size // 2))
                start = time.perf_counter()
                for at in range(0, len(content), length // 8):
                    use(memoryview(content[at : at + length // 8]))
                resident.append(time.perf_counter() - start)
                progress.update()
                for name in CURVES:
                    if name == "mmap":
                        result = mapped(path, blocks, row["budget"])
                    else:
                        result = cached(path, blocks, row["budget"], name == "order")
                    progress.update()
                    best = row["engines"].get(name)
                    if result and (best is None or result["seconds"] < best["seconds"]):
                        row["engines"][name] = result
    return {
        "environment": environment(),
        "file_bytes": size,
        "block_bytes": length,
        "disk_bytes_per_second": max(rates),
        "disk_bytes_per_second_all": rates,
        "resident_seconds": min(resident),
        "rows": rows,
    }


def limit(record: dict[str, Any], row: dict[str, Any]) -> float:
    """Return the least seconds per cycle: the least bytes at the disk's rate, or everything at the memory's."""
    return max(row["least_bytes"] / record["disk_bytes_per_second"], record["resident_seconds"])


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot bytes and seconds over the budget."""
    rows = record["rows"]
    percents = [row["percent"] for row in rows]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for axis, key, scale in ((left, "bytes", 1e-6), (right, "seconds", 1)):
            for name, (label, color, marker) in CURVES.items():
                points = [(r["percent"], r["engines"][name][key] * scale) for r in rows if name in r["engines"]]
                if points:
                    axis.plot(*zip(*points), color=color, marker=marker, ms=4, label=label)
            axis.set_xlabel("budget, % of the file")
            axis.set_xticks(percents)
        left.plot(percents, [r["least_bytes"] / 1e6 for r in rows], "k--", lw=1, label="least possible (Belady)")
        right.plot(percents, [limit(record, r) for r in rows], "k--", lw=1, label="least bytes / disk rate, or memory")
        left.set_ylabel("MB read per cycle")
        right.set_ylabel("seconds per cycle")
        for axis in (left, right):
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7.5)
        figure.savefig(path, metadata={"Date": None})


def table_of(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| budget | least MB | order | LRU | mmap | limit s | order | LRU | mmap |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["rows"]:
        cells = [f"{row['percent']} %", f"{row['least_bytes'] / 1e6:.0f}"]
        for key, form in (("bytes", "{:.0f}"), ("seconds", "{:.2f}")):
            if key == "seconds":
                cells.append(f"{limit(record, row):.2f}")
            for name in CURVES:
                value = row["engines"].get(name, {}).get(key)
                cells.append("" if value is None else form.format(value / 1e6 if key == "bytes" else value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the file is made")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--block", type=int, default=256, help="KB per block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--percents", type=int, nargs="+", default=list(range(10, 101, 10)))
    parser.add_argument("--record", type=Path, default=DOCS / "block-cache.json")
    options = parser.parse_args()
    if not hasattr(os, "O_DIRECT"):
        sys.exit("this benchmark needs direct reads, which this system does not have")
    length = options.block << 10
    path = options.folder / f"lowbit-blockcache-{os.getpid()}.bin"
    try:
        with path.open("wb") as file:
            random = np.random.default_rng(0)
            for _ in range((options.megabytes << 20) // length):
                file.write(random.bytes(length))
            file.flush()
            os.fsync(file.fileno())
        record = measure(path, length, options.percents, options.rounds)
    finally:
        path.unlink(missing_ok=True)
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.record.with_suffix(".svg"))
    print(f"disk {record['disk_bytes_per_second'] / 1e6:.0f} MB/s, all from memory {record['resident_seconds']:.3f} s")
    print(table_of(record))


if __name__ == "__main__":
    main()
