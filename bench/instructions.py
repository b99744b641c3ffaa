"""Instructions per generated token on a Pentium II: lowbit's kernels, and plain float C code for the same model.

    python bench/instructions.py                    all shapes, and the table in docs/retro-instructions.md
    python bench/instructions.py --shapes 15M       only print

Both programs (bench/instructions/) are compiled for the same CPU with the same compiler, make the same random model,
and do one decode step under valgrind, output head included. Needs valgrind and i686-linux-gnu-gcc.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "selftest"))

import run as selftest  # noqa: E402

SOURCES = ROOT / "bench" / "instructions"
TARGET = ["-march=pentium2", "-mno-sse", "-static", "-isystem", "/usr/include/valgrind"]
SHAPES = {"260K": "64 wide, 5 layers, 512 tokens", "15M": "288, 6, 32,000", "110M": "768, 12, 32,000"}
POSITION = 128
"""Tokens that came before: half of the usual story of 256 tokens, so that attention has its average cost."""
FLOAT_FLAGS = {
    "float, -O3": ["-O3"],
    "float, -O3 -ffast-math": ["-O3", "-ffast-math"],
    "float, -O3 -ffast-math -funroll-loops": ["-O3", "-ffast-math", "-funroll-loops"],
}
LOWBIT = {
    "lowbit, greedy": ("f32", "mmx", "1"),
    "lowbit, greedy, int8 cache": ("int8", "mmx", "1"),
    "lowbit, top-k of 40": ("f32", "mmx", "40"),
    "lowbit, all logits": ("f32", "mmx", "all"),
}
"""What is decided by the logits, and so how many of them have to be exact; see `src/kernels/ops/shortlist.h`."""
TOLERANCE = 0.05
"""Largest relative distance (RMS) of lowbit's logits from those of the float code: it rounds activations to 8 bits."""


class Count(NamedTuple):
    """One decode step: how many instructions it took, and what it computed."""

    instructions: int
    token: int
    logits: np.ndarray


def build_float(folder: Path, compiler: str, flags: list[str]) -> Path:
    """Compile the float program."""
    program = folder / ("float" + "".join(flags))
    flags = [*flags, *selftest.INCLUDE]
    subprocess.run([compiler, *TARGET, *flags, str(SOURCES / "float_decode.c"), "-lm", "-o", str(program)], check=True)
    return program


def build_lowbit(folder: Path, compiler: str) -> Path:
    """Compile the kernels with the flags of the package, for instruction sets without SSE."""
    table = [row for row in selftest.rows("i686") if row.name in ("portable", "mmx")]
    selftest.write_table(folder, table)
    kernels = selftest.KERNELS
    sources = [kernels / "base" / "table.c", kernels / "base" / "cpu.c", SOURCES / "lowbit_decode.c"]
    sources += [source for row in table for source in sorted((kernels / "isa" / row.name).glob("*.c"))]
    program = folder / "lowbit"
    include = ["-I", str(folder), *selftest.INCLUDE]
    command = [compiler, *TARGET, *selftest.common_flags(), "-mmmx", *include, *map(str, sources), "-lm", "-o"]
    subprocess.run([*command, str(program)], check=True)
    return program


def count(folder: Path, program: Path, shape: str, *more: str) -> Count:
    """Run one decode step under callgrind."""
    logits, profile = folder / "logits", folder / "callgrind.out"
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"]
    command = [*valgrind, f"--callgrind-out-file={profile}", str(program), shape, str(POSITION), str(logits), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    total = re.search(r"^totals: (\d+)", profile.read_text(), re.MULTILINE)
    if not total or not int(total[1]):
        sys.exit(f"{profile} counts nothing")
    return Count(int(total[1]), int(done.stdout), np.fromfile(logits, np.float32))


def measure(folder: Path, shapes: list[str]) -> dict[str, dict[str, Count]]:
    """Count all variants of all shapes, and check that lowbit computes what the float code does."""
    compiler = shutil.which("i686-linux-gnu-gcc")
    if compiler is None or shutil.which("valgrind") is None:
        sys.exit("needs the packages gcc-i686-linux-gnu and valgrind")
    folder.mkdir(parents=True, exist_ok=True)
    floats = {name: build_float(folder, compiler, flags) for name, flags in FLOAT_FLAGS.items()}
    lowbit = build_lowbit(folder, compiler)
    results: dict[str, dict[str, Count]] = {}
    for shape in shapes:
        print(f"counting {shape}", file=sys.stderr, flush=True)
        counts = {name: count(folder, program, shape) for name, program in floats.items()}
        counts |= {name: count(folder, lowbit, shape, *how) for name, how in LOWBIT.items()}
        results[shape] = counts
        want = counts["float, -O3"]
        for name, got in counts.items():
            distance = float(np.linalg.norm(got.logits - want.logits) / np.linalg.norm(want.logits))
            if got.token != want.token or distance > TOLERANCE:
                sys.exit(f"{shape}: {name} gives token {got.token} at distance {distance:.3f}, not {want.token}")
    return results


def table(results: dict[str, dict[str, Count]]) -> str:
    """The counts in millions, and how many times as many the float code needs."""
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---:|" * len(results)]
    for name in (*FLOAT_FLAGS, *LOWBIT):
        lines.append(
            f"| {name} | " + " | ".join(f"{c[name].instructions / 1e6:.2f} M" for c in results.values()) + " |"
        )
    for flags in FLOAT_FLAGS:
        for ours in LOWBIT:
            ratios = [c[flags].instructions / c[ours].instructions for c in results.values()]
            lines.append(f"| {flags} / {ours} | " + " | ".join(f"**{r:.1f}x**" for r in ratios) + " |")
    return "\n".join(lines)


def document(results: dict[str, dict[str, Count]], version: str) -> str:
    """The page in docs/."""
    shapes = ", ".join(f"{name} ({SHAPES[name]})" for name in results)
    return f"""# Instructions per token on a Pentium II

Written by `python bench/instructions.py`. Counted with valgrind, {version}, `-march=pentium2 -mno-sse`, one run.

One decode step with {POSITION} tokens before it, output head and choice of the largest logit included. Shapes
(channels, layers, vocabulary): {shapes}. Both sides compute the same random model: ternary layers, and a table of 8-bit
numbers with a scale for each 32 as embedding and head. lowbit reads it packed, with activations in 8 bits; the other
side is float32 C code in the manner of llama2.c, one loop over rows and one over columns. The next token is the same,
and the logits are within {TOLERANCE:.0%} of each other (root mean square). Keys and values are float32, as they are by
default, where it does not say int8.

{table(results)}

**These are counts, not times.** No Pentium II was timed, and emulated time says nothing about hardware. A count leaves
out that memory is slow: a ternary weight takes a sixteenth of the memory traffic of a float32, which favours lowbit
where a model does not fit into the caches. It also leaves out that some instructions take longer than others. With
`-ffast-math` the compiler computes exponentials with the x87's `f2xm1`, one instruction of dozens of cycles; lowbit
uses a polynomial, which is more instructions and less time. The look-ups of the ternary product are two loads each,
and the CPU does one load per cycle.

## A head that is not computed

A head of 32,000 tokens has more weights than all layers of the 15M shape, and nearly all of its logits decide
nothing. With the kernels for MMX, a head of 4 to 32 million weights in 8 bits therefore gets a sketch when the model
is loaded: each row again in codes of five bits, two rows to an int16, so that one `pmaddwd` multiplies eight of them.
The sketch's products tell each logit to within a bound that is proven (`src/kernels/ops/shortlist.h`), and only rows
that may be among the largest are computed from the real weights. Greedy decoding needs the largest logit, sampling
with `top_k` up to 64 that many, which pays in rows of up to 512 columns, for the bound is wider the longer they are;
both get exactly the tokens and probabilities of the full computation, bit for bit. Penalties, biases, schemas and
log-probabilities take all logits. It costs a byte of memory for each weight of the head, and nothing on instruction
sets that compute fast enough to wait for memory, where it is not used.

In the 15M shape greedy decoding computes 1 of 32,000 rows, since here as in most texts one token stands out, and
top-k of 40 computes 3,570. Smaller heads have no sketch: those of 260K and of the embedded model.

## Where the instructions go

In the 15M shape, greedy: the sketch 44 %, the ternary product 32 %, attention 14 %, gates, softmax and the choice of
the token 2 % each, int8 activations 1 %. The ternary product takes two instructions per four weights (a byte of codes
is an index into a table of sums, made anew for each token), and a fifth more for tables, rows and scales. The 8-bit
head takes one per weight (`pmaddwd`) and more than half as many again for the scales; the sketch takes half of one. In
the smallest shape attention and exponentials are more than half, and these are the same work on both sides: three
instructions for a multiplication and an addition of an x87 are what there is.

What did not help: behind the sketch, whole row groups instead of single rows, for with top-k of 40 that was all of
them. What is not done: a sketch of four bits with longer sums would take a tenth less, and by its bound let about twice
as many rows pass; integers for keys in int8 would add up in another order than the other instruction sets do, and so
give other bits.
"""


def main() -> None:
    """Count as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated (default: all, and write the page)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "instructions")
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown:
        parser.error(f"unknown shape {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    results = measure(options.folder, shapes)
    print(table(results))
    if shapes == list(SHAPES):
        version = subprocess.run(["i686-linux-gnu-gcc", "--version"], capture_output=True, text=True).stdout
        (ROOT / "docs" / "retro-instructions.md").write_text(document(results, version.splitlines()[0]))


if __name__ == "__main__":
    main()
