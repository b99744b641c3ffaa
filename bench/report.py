"""From measurements to docs/performance.md and its plots.

    python -m pytest bench --benchmark-json=build/bench/kernels.json
    python bench/engines.py --peer-python PATH        (build/bench/engines.json)
    python bench/report.py

docs/performance.json keeps the figures that the page shows: what was measured anew replaces the figure of the same
name, and the rest stays, with the date and the machine of its own run. Remarks are written by hand, in
docs/performance-notes.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from plots import draw_all, in_cache

KEYS = ("part", "size", "context", "batch", "spinners", "threads")
BULKY = ("ids", "turns", "limits", "text")
SIZES = ["stories260K", "3M", "13M", "15M", "110M", "0.7B", "1B", "2.4B"]
PEER = "llama.cpp"
PLAIN = "lowbit avx2"

Figure = dict[str, Any]


# --- the record --------------------------------------------------------------------------------------------------


def merge(record: dict[str, Any], kernels: Path, engines: Path) -> dict[str, Any]:
    """Put new measurements into the record."""
    if kernels.exists():
        data = json.loads(kernels.read_text())
        rows = [b["extra_info"] for b in data["benchmarks"] if "engine" in b["extra_info"]]
        record["kernels"] = {
            "environment": data["machine_info"],
            "products": [r for r in rows if "macs_per_second" in r],
            "models": [{k: v for k, v in r.items() if k != "ids"} for r in rows if "tokens_per_second" in r],
        }
    if engines.exists():
        figures = {key_of(f): f for f in record.get("figures", [])}
        for run in json.loads(engines.read_text()):
            about = {**run["environment"], **({"llama.cpp": run["peer"]} if "peer" in run else {})}
            for f in run["figures"]:
                lean = {n: {k: v for k, v in e.items() if k not in BULKY} for n, e in f["engines"].items()}
                kept = {k: v for k, v in f.items() if k not in BULKY}
                figures[key_of(f)] = {**kept, "engines": lean, "run": about}
        record["figures"] = sorted(figures.values(), key=order)
    return record


def key_of(figure: Figure) -> tuple[Any, ...]:
    """What a figure is of."""
    return tuple(figure.get(key) for key in KEYS)


def order(figure: Figure) -> tuple[Any, ...]:
    """Small models first."""
    size = SIZES.index(figure["size"]) if figure["size"] in SIZES else len(SIZES)
    return (figure["part"], size, *(figure.get(key) or 0 for key in KEYS[2:]))


# --- the page ----------------------------------------------------------------------------------------------------


def number(x: float | None) -> str:
    """Three significant digits, thousands apart."""
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def ratio(a: float | None, b: float | None) -> str:
    """How many times b goes into a."""
    return f"**{a / b:.2f}x**" if a and b else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, numbers to the right; columns of engines that did not take part are left out."""
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    head, rows = [head[i] for i in filled], [[row[i] for i in filled] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def tps(figure: Figure, engine: str) -> float | None:
    """Tokens per second, if that engine took part."""
    value = figure["engines"].get(engine, {}).get("tps")
    return None if value is None else float(value)


def speed_table(figures: list[Figure], part: str) -> str:
    """Engines and limits side by side."""
    unit, limit, giga = ("GB/s", "memory read", "bytes") if part == "decode" else ("GMAC/s", "int8 peak", "macs")
    head = ["model", "threads", PEER, "lowbit", "", "lowbit AVX2", "", unit, f"{limit} {unit}", "of the limit"]
    rows = []
    for f in figures:
        ours = f["engines"]["lowbit"]
        share = "in cache" if in_cache(f, ours) else f"{ours['fraction']:.0%}"
        rows.append([
            f["size"], str(f["threads"]), number(tps(f, PEER)), number(tps(f, "lowbit")),
            ratio(tps(f, "lowbit"), tps(f, PEER)), number(tps(f, PLAIN)), ratio(tps(f, PLAIN), tps(f, PEER)),
            number(ours[f"{giga}_per_second"] / 1e9), number(ours["limit"] / 1e9), share,
        ])  # fmt: skip
    return table(head, rows)


def context_table(figures: list[Figure]) -> str:
    """A row per length, prefill and decode side by side."""
    by = {(f["part"], f["context"], f["threads"]): f for f in figures}
    rows = []
    for n, threads in sorted({(c, t) for _, c, t in by}):
        row = [f"{n:,}", str(threads)]
        for part in ("prefill", "decode"):
            f = by.get((f"context {part}", n, threads), {"engines": {}})
            row += [number(tps(f, PEER)), number(tps(f, "lowbit")), ratio(tps(f, "lowbit"), tps(f, PEER))]
        rows.append(row)
    return table(["tokens", "threads", f"prefill {PEER}", "lowbit", "", f"decode {PEER}", "lowbit", ""], rows)


def batch_table(figures: list[Figure]) -> str:
    """Tokens of all sequences together."""
    alone = {(f["size"], f["threads"]): tps(f, "lowbit") for f in figures if f["batch"] == 1}
    rows = [
        [f["size"], str(f["threads"]), str(f["batch"]), number(tps(f, "lowbit")),
         ratio(tps(f, "lowbit"), alone.get((f["size"], f["threads"])))]
        for f in sorted(figures, key=lambda f: (f["threads"], f["batch"]))
    ]  # fmt: skip
    return table(["model", "threads", "sequences", "lowbit", "over one"], rows)


def busy_table(figures: list[Figure]) -> str:
    """Both engines, beside one thread on the machine as it was."""
    quiet = {f["size"]: f for f in figures if f["spinners"] == 0 and f["threads"] == 1}
    rows = []
    for f in figures:
        row = [f["size"], str(f["spinners"]), str(f["threads"])]
        for engine in (PEER, "lowbit"):
            alone = tps(quiet[f["size"]], engine) if f["size"] in quiet else None
            row += [number(tps(f, engine)), ratio(tps(f, engine), alone)]
        rows.append(row)
    return table(["model", "busy processes", "threads", PEER, "over 1 quiet", "lowbit", "over 1 quiet"], rows)


def load_table(figures: list[Figure]) -> str:
    """Seconds and memory."""
    rows = []
    for f in figures:
        row = [f["size"], number(f["tensor_bytes"] / 1e6)]
        for engine in (PEER, "lowbit"):
            e = f["engines"].get(engine, {})
            row += [number(e.get("load_seconds")), number(e.get("first_token_seconds"))]
            row += [f"{e['memory_ratio']:.2f}x" if "memory_ratio" in e else ""]
            if engine == "lowbit":
                row += [f"{e['peak_ratio']:.2f}x" if "peak_ratio" in e else ""]
        rows.append(row)
    return table(
        ["model", "tensors MB", f"{PEER} load s", "first token s", "memory", "lowbit load s", "first token s",
         "memory", "at most"], rows,
    )  # fmt: skip


def products_table(rows: list[Figure]) -> str:
    """Kernels beside NumPy."""
    float32 = {(r["m"], r["n"], r["k"]): r["macs_per_second"] for r in rows if r["engine"] == "numpy float32"}
    out = []
    for r in sorted(rows, key=lambda r: (r["m"], r["n"], r["k"])):
        macs, read = r["macs_per_second"], r["weight_bytes_per_second"]
        over = ratio(macs, float32.get((r["m"], r["n"], r["k"])))
        out.append([r["engine"], str(r["m"]), f"{r['n']} x {r['k']}", number(macs / 1e9), number(read / 1e9), over])
    return table(["engine", "tokens", "weights", "GMAC/s", "weights GB/s", "over NumPy float32"], out)


def models_table(rows: list[Figure]) -> str:
    """Whole models per instruction set, prefill and decode side by side."""
    speed = {(r["model"], r["engine"], r["what"]): r["tokens_per_second"] for r in rows}
    names = dict.fromkeys((r["model"], r["engine"]) for r in rows)
    return table(
        ["model", "engine", "prefill 128", "decode 32"],
        [[m, e, number(speed.get((m, e, "prefill"))), number(speed.get((m, e, "decode")))] for m, e in names],
    )


def machines(record: dict[str, Any]) -> str:
    """The machines and versions, each once, with the dates on which they were used."""
    lines: dict[str, list[str]] = {}
    runs = [f["run"] for f in record.get("figures", [])]
    runs += [record["kernels"]["environment"]] if "kernels" in record else []
    for e in runs:
        peer = e.get("llama.cpp")
        line = (
            f"{e['cpu']}, {e['cores']} cores, {e['system']}; instruction sets {', '.join(e['isa'])}; "
            f"{e['cache_bytes'] >> 20} MB of last-level cache; "
            f"{e['compiler']}; Python {e['python']}, NumPy {e['numpy']}, lowbit {e['lowbit']}"
        )
        if peer:
            features = " ".join(w.removesuffix(" = 1").removeprefix("CPU : ") for w in peer["features"].split(" | "))
            line += f"; llama-cpp-python {peer['version']} built for this machine ({features})"
        load = f", load average {e['load_average'][0]}" if e["load_average"] else ""
        lines.setdefault(line, []).append(e["date"] + load)
    return "\n".join(f"* {line}. Measured {'; '.join(sorted(set(dates)))}." for line, dates in lines.items())


INTRODUCTION = """# Performance

Written by `bench/report.py` from measurements. All speeds are tokens per second; the best of several turns counts,
except on the busy machine, where it is the median. Engines take turns on the same file in the same run, and the
machine's limits are measured just before and after each turn of lowbit. Results are checked in every run: lowbit's
greedy tokens are the same on every instruction set and for any number of threads.
"""

METHOD = """## How to repeat

```
make bench
python bench/engines.py --peer-python PYTHON_WITH_LLAMA_CPP --llama2c PATH_OF_RUN
python bench/report.py
```

The second line needs another Python with `numpy` and `llama-cpp-python` built for the machine; without it the peer is
left out. `--only decode,prefill,context,batch,busy,load,story`, `--sizes` and `--threads` split a long run.

* Models: 13M to 2.4B are Llama shapes with random ternary weights (TQ2_0) and 8-bit embeddings and head (Q8_0); 3M is
  a trained ternary model. One GGUF file serves all engines.
* Prefill takes 128 tokens in, and needs logits after the last only. Decode makes 32 tokens after them.
* llama.cpp runs with its defaults; only its calls of `llama_decode` are timed, not the choice of the token.
* Memory read is the rate at which the same number of threads reads 512 MB in order; the GB/s of decode are the bytes
  of weights that one token needs, times tokens per second. Rate and limit are the best of the run; the share is the
  median over the turns of rate over limit around it.
* One multiply-add (MAC) counts once. Prefill counts those of the linear layers for every token and of the head once,
  not those of attention. The int8 peak is measured in registers, with the same instruction set.
* Load is measured in a fresh process with the file in the page cache; memory is the growth of the resident set after
  the first token, over the bytes of the file's tensors, with room for 512 tokens.
"""


def page(record: dict[str, Any], notes: Path) -> str:
    """The whole page."""
    parts: dict[str, list[Figure]] = {}
    for f in record.get("figures", []):
        parts.setdefault(f["part"].split()[0], []).append(f)
    text = [INTRODUCTION]
    if "decode" in parts or "prefill" in parts:
        text.append("![Tokens per second by engine](performance-engines.svg)\n")
    for part, title in (("decode", "Decode"), ("prefill", "Prefill")):
        if part in parts:
            text.append(f"## {title}\n\n{speed_table(parts[part], part)}\n")
    if "decode" in parts or "prefill" in parts:
        text.append("![Achieved rates and the limits of the machine](performance-limits.svg)\n")
        text.append("## Scaling\n\n![Speed by model size, context and batch](performance-scaling.svg)\n")
    if "context" in parts:
        text.append(f"Context, {parts['context'][0]['size']}:\n\n{context_table(parts['context'])}\n")
    if "batch" in parts:
        text.append(f"Several sequences decoded together, tokens of all:\n\n{batch_table(parts['batch'])}\n")
    if "busy" in parts:
        text.append(f"## A busy machine\n\nDecode, while other processes spin:\n\n{busy_table(parts['busy'])}\n")
    if "load" in parts:
        text.append(f"## Load and memory\n\n{load_table(parts['load'])}\n")
    if "story" in parts:
        e = parts["story"][0]["engines"]
        row = [
            number(e["llama2.c"]["tps"]),
            number(e["lowbit"]["tps"]),
            ratio(e["lowbit"]["tps"], e["llama2.c"]["tps"]),
        ]
        title = "stories260K, 256 tokens, float32, one thread; the texts are equal"
        text.append(f"## A tiny model\n\n{table([title, 'llama2.c', 'lowbit', ''], [['decode', *row]])}\n")
    measured = record.get("kernels", {})
    if measured.get("products"):
        text.append("## Kernels\n\n![Kernels and NumPy](performance-kernels.svg)\n")
        text.append(f"One thread. Decode reads its weights from memory.\n\n{products_table(measured['products'])}\n")
    if measured.get("models"):
        text.append(f"## Models by instruction set\n\nOne thread.\n\n{models_table(measured['models'])}\n")
    text.append(f"## Machine and versions\n\n{machines(record)}\n\n{METHOD}")
    if notes.exists():
        text.append(notes.read_text().strip() + "\n")
    return "\n".join(text)


def main() -> None:
    """Update the record, the page and the plots."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--kernels", type=Path, default=Path("build/bench/kernels.json"), help="from pytest-benchmark")
    p.add_argument("--engines", type=Path, default=Path("build/bench/engines.json"), help="from bench/engines.py")
    p.add_argument("--docs", type=Path, default=Path("docs"))
    args = p.parse_args()
    kept = args.docs / "performance.json"
    record = merge(json.loads(kept.read_text()) if kept.exists() else {}, args.kernels, args.engines)
    if not record:
        raise SystemExit(f"no measurements: neither {args.kernels} nor {args.engines} nor {kept} exists")
    kept.write_text(json.dumps(record, indent=1) + "\n")
    (args.docs / "performance.md").write_text(page(record, args.docs / "performance-notes.md"))
    drawn = draw_all(record, args.docs)
    print("wrote", ", ".join(str(path) for path in (args.docs / "performance.md", kept, *drawn)))


if __name__ == "__main__":
    main()
