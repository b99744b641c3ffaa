"""The plots beside docs/performance.md. Colours can be told apart by colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

__all__ = ["draw_all"]

Figure = dict[str, Any]

COLORS = {
    "llama.cpp": "#E69F00",
    "lowbit": "#0072B2",
    "lowbit avx2": "#56B4E9",
    "numpy float32": "#E69F00",
    "numpy int32": "#D55E00",
}
OTHERS = ["#009E73", "#CC79A7", "#F0E442", "#999999"]
MARKERS = {"llama.cpp": "s", "lowbit": "o", "lowbit avx2": "^"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "lowbit",
}


def color(engine: str, names: Iterable[str] = ()) -> str:
    """The colour of an engine: its own, or the next free one."""
    free = [name for name in names if name not in COLORS]
    return COLORS.get(engine) or OTHERS[free.index(engine) % len(OTHERS)]


def short(x: float) -> str:
    """A label that fits on a bar."""
    return f"{x / 1000:.1f}k" if x >= 9950 else f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def engines_of(figures: list[Figure]) -> list[str]:
    """The engines that took part: the peer first."""
    names = {name for f in figures for name in f["engines"]}
    return sorted(names, key=lambda name: (name != "llama.cpp", name != "lowbit", name))


def by_engine(figures: list[Figure], parts: list[str]) -> plt.Figure:
    """Bars: a row for each part, a panel for each model."""
    sizes = list(dict.fromkeys(f["size"] for f in figures))
    names = engines_of(figures)
    fig, axes = plt.subplots(len(parts), len(sizes), figsize=(2.1 * len(sizes) + 0.6, 2.6 * len(parts)), squeeze=False)
    for row, part in zip(axes, parts):
        for ax, size in zip(row, sizes):
            here = [f for f in figures if f["part"] == part and f["size"] == size]
            width = 0.8 / len(names)
            for i, name in enumerate(names):
                values = [f["engines"].get(name, {}).get("tps", 0.0) for f in here]
                at = [x + (i - (len(names) - 1) / 2) * width for x in range(len(here))]
                bars = ax.bar(at, values, width * 0.94, color=color(name, names))
                ax.bar_label(bars, [short(v) if v else "" for v in values], fontsize=6, padding=1.5)
            ax.set_xticks(range(len(here)), [str(f["threads"]) for f in here])
            ax.set_title(f"{part}, {size}")
            ax.margins(y=0.14)
            ax.yaxis.set_major_locator(plt.MaxNLocator(4))
            ax.yaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
            ax.tick_params(axis="y", labelsize=7)
            ax.grid(axis="y")
        row[0].set_ylabel("tokens per second")
    for ax in axes[-1]:
        ax.set_xlabel("threads")
    legend(fig, names)
    return fig


def legend(fig: plt.Figure, names: list[str], extra: Iterable[Any] = ()) -> None:
    """One legend under all panels."""
    handles = [*(Patch(color=color(name, names), label=name) for name in names), *extra]
    fig.tight_layout(rect=(0, 0.3 / fig.get_figheight(), 1, 1))
    fig.legend(handles=handles, loc="lower center", ncols=len(handles))


def against_limits(figures: list[Figure], parts: list[str]) -> plt.Figure:
    """Bars of what lowbit reaches, each under the line that the machine cannot pass."""
    names = [name for name in engines_of(figures) if name.startswith("lowbit")]
    fig, axes = plt.subplots(1, len(parts), figsize=(5.2 * len(parts), 3.6), squeeze=False)
    line = None
    for ax, part in zip(axes[0], parts):
        here = [f for f in figures if f["part"] == part]
        key, title = ("bytes", "weights read") if part == "decode" else ("macs", "multiply-adds")
        width = 0.8 / len(names)
        top = 0.0
        for i, name in enumerate(names):
            for x, f in enumerate(here):
                if name not in f["engines"]:
                    continue
                e = f["engines"][name]
                rate, limit = e[f"{key}_per_second"] / 1e9, e["limit"] / 1e9
                at = x + (i - (len(names) - 1) / 2) * width
                ax.bar(at, rate, width * 0.9, color=color(name, names))
                line = ax.hlines(limit, at - width / 2, at + width / 2, color="black", lw=1.4)
                text = "cache" if e["fraction"] > 1.02 else f"{e['fraction']:.0%}"
                upright = 90 if len(here) * len(names) > 8 else 0
                ax.annotate(text, (at, max(rate, limit)), (0, 3), textcoords="offset points", ha="center",
                            fontsize=7, rotation=upright)  # fmt: skip
                top = max(top, rate, limit)
        ax.set_ylim(0, top * 1.16)
        ax.set_xticks(range(len(here)), [f"{f['size']}\n{f['threads']}" for f in here], fontsize=8)
        ax.set_xlabel("model, threads")
        ax.set_ylabel("GB/s" if part == "decode" else "GMAC/s")
        ax.set_title(f"{part}: {title}")
        ax.grid(axis="y")
    extra = [plt.Line2D([], [], color="black", lw=1.4, label="limit measured in the same run")] if line else []
    legend(fig, names, extra)
    return fig


def scaling(figures: list[Figure]) -> plt.Figure:
    """Lines: speed by model size, by context, by batch."""
    parts = {p: [f for f in figures if f["part"] == p] for p in {f["part"] for f in figures}}
    names = engines_of(figures)
    panels = [
        (0, 0, "decode", "model size", lambda f: parameters(f), "parameters"),
        (1, 0, "prefill", "model size", lambda f: parameters(f), "parameters"),
        (0, 1, "context decode", "context", lambda f: f["context"], "tokens of context"),
        (1, 1, "context prefill", "context", lambda f: f["context"], "tokens of the prompt"),
        (0, 2, "batch", "batch", lambda f: f["batch"], "sequences decoded together"),
    ]
    fig, axes = plt.subplots(2, 3, figsize=(10.5, 6))
    seen: set[int] = set()
    for row, column, part, title, x_of, label in panels:
        ax = axes[row][column]
        here = parts.get(part, [])
        if not here:
            ax.set_axis_off()
            continue
        for name in names:
            for threads in sorted({f["threads"] for f in here}):
                points = sorted(
                    (x_of(f), f["engines"][name]["tps"])
                    for f in here if f["threads"] == threads and name in f["engines"]
                )  # fmt: skip
                if points:
                    seen.add(threads)
                    ax.plot(*zip(*points), color=color(name, names), marker=MARKERS.get(name, "d"), ms=4.5, lw=1.5,
                            ls="-" if threads == 1 else "--", alpha=0.95)  # fmt: skip
        ax.set_xscale("log", base=10 if column == 0 else 2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
        ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        if column:
            ticks = sorted({x_of(f) for f in here})
            ax.set_xticks(ticks, [f"{t:,}" if t < 1024 else f"{t // 1024}k" for t in ticks])
        else:
            ticks = sorted({(x_of(f), f["size"]) for f in here})
            ax.set_xticks([t for t, _ in ticks], [size for _, size in ticks])
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        kind = part.split()[-1] if column < 2 else "decode"
        where = f" ({here[0]['size']})" if column else ""
        ax.set_title(f"{kind} by {title}{where}")
        ax.set_xlabel(label)
        ax.set_ylabel("tokens per second")
        ax.grid(axis="both")
    axes[1][2].set_axis_off()
    extra = [
        plt.Line2D([], [], color="#444444", ls="-" if t == 1 else "--", label=f"{t} thread{'s' * (t > 1)}")
        for t in sorted(seen)
    ]
    fig.tight_layout()
    handles = [
        *(plt.Line2D([], [], color=color(n, names), marker=MARKERS.get(n, "d"), label=n) for n in names), *extra,
    ]  # fmt: skip
    axes[1][2].legend(handles=handles, loc="center", fontsize=10)
    return fig


def parameters(figure: Figure) -> float:
    """Weights of a model: linear layers, embeddings and head."""
    return float(figure["macs_per_token"] + 2 * figure["head_macs"])


def kernels(rows: list[Figure]) -> plt.Figure:
    """Bars: multiply-adds per second of each engine, one panel for decode and one for prefill."""
    names = list(dict.fromkeys(r["engine"] for r in rows))
    names = sorted(names, key=lambda n: (n.startswith("lowbit"), names.index(n)))
    shapes = sorted({(r["n"], r["k"]) for r in rows})
    fig, axes = plt.subplots(1, 2, figsize=(10, 0.55 * len(names) + 1.2), sharey=True)
    for ax, m, title in ((axes[0], 1, "decode, 1 token, weights from memory"), (axes[1], 128, "prefill, 128 tokens")):
        top = 0.0
        for j, shape in enumerate(shapes):
            for i, name in enumerate(names):
                found = [r for r in rows if r["engine"] == name and (r["n"], r["k"]) == shape and r["m"] == m]
                if not found:
                    continue
                value = found[0]["macs_per_second"] / 1e9
                bar = ax.barh(i + (0.2 if j else -0.2), value, 0.38, color=COLORS["lowbit avx2" if j else "lowbit"])
                ax.bar_label(bar, [f"{value:.3g}"], fontsize=7, padding=2)
                top = max(top, value)
        ax.set_xscale("log")
        ax.set_xlim(right=top * 2.5)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.set_yticks(range(len(names)), names)
        ax.set_xlabel("GMAC/s, one thread")
        ax.set_title(title)
        ax.grid(axis="x")
    handles = [
        Patch(color=COLORS["lowbit avx2" if j else "lowbit"], label=f"weights {n} x {k}")
        for j, (n, k) in enumerate(shapes)
    ]
    fig.tight_layout(rect=(0, 0.3 / fig.get_figheight(), 1, 1))
    fig.legend(handles=handles, loc="lower center", ncols=len(handles))
    return fig


def draw_all(record: dict[str, Any], folder: Path, suffix: str = "svg") -> list[Path]:
    """Draw what the record has figures for; return the paths."""
    figures = record.get("figures", [])
    speeds = [f for f in figures if f["part"] in ("decode", "prefill")]
    parts = [p for p in ("decode", "prefill") if any(f["part"] == p for f in speeds)]
    drawn = []
    with mpl.rc_context(STYLE):
        plots = {}
        if speeds:
            plots = {"engines": by_engine(speeds, parts), "limits": against_limits(speeds, parts)}
            plots["scaling"] = scaling(figures_that_scale(figures))
        if "kernels" in record:
            plots["kernels"] = kernels(record["kernels"]["products"])
        for name, fig in plots.items():
            path = folder / f"performance-{name}.{suffix}"
            fig.savefig(path, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            plt.close(fig)
            drawn.append(path)
    return drawn


def figures_that_scale(figures: list[Figure]) -> list[Figure]:
    """Those of decode and prefill, context and batch."""
    return [f for f in figures if f["part"].split()[0] in ("decode", "prefill", "context", "batch")]
