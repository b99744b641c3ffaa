"""llama.cpp's mixtures, made by `lowbit convert` and by llama-quantize of the same file: tensors, bytes, perplexity.

    python bench/mixtures.py model.gguf text.txt --bin llama.cpp/build/bin

The source is made F16 first. A tensor is the same if its type and all of its bytes are. Perplexity is that of
llama-perplexity, on both files, which also shows that llama.cpp loads them; and lowbit's own, on ours.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

import lowbit
from lowbit.convert import convert
from lowbit.convert.mixtures import MIXTURES
from lowbit.formats import open_model


def perplexity(tools: Path, model: Path, text: Path, chunks: int) -> str:
    done = subprocess.run(
        [tools / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "--chunks", str(chunks), "-t", "2"],
        capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    assert found
    return found[1]


def same(ours: Path, theirs: Path) -> tuple[int, int]:
    """Tensors that are the same, and all."""
    with open_model(ours) as one, open_model(theirs) as other:
        assert one.tensors.keys() == other.tensors.keys()
        names = [
            name for name, info in one.tensors.items()
            if info.type == other.tensors[name].type and one.read(name).tobytes() == other.read(name).tobytes()
        ]  # fmt: skip
        return len(names), len(one.tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens, for llama-perplexity")
    parser.add_argument("--only", action="append", choices=tuple(MIXTURES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = Path(folder) / "f16.gguf"
        convert(args.model, source, "f16", "f16")
        print(f"F16: llama.cpp {perplexity(args.bin, source, args.text, args.chunks)}", flush=True)
        for name in args.only or MIXTURES:
            ours, theirs = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
            start = time.perf_counter()
            convert(source, ours, name)
            seconds = time.perf_counter() - start
            subprocess.run(
                [args.bin / "llama-quantize", source, theirs, name.upper(), "2"], capture_output=True, check=True
            )
            equal, tensors = same(ours, theirs)
            own = lowbit.load(ours).perplexity(args.text.read_text("utf-8")[: 2000 * args.chunks]).bits_per_byte
            print(
                f"{name.upper()}: {equal} of {tensors} tensors the same, {ours.stat().st_size} and "
                f"{theirs.stat().st_size} bytes, perplexity in llama.cpp "
                f"{perplexity(args.bin, ours, args.text, args.chunks)} and "
                f"{perplexity(args.bin, theirs, args.text, args.chunks)}, bits/byte here {own:.4f}, {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
