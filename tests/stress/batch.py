"""Kill a batch again and again, and compare what it leaves with what it leaves in one go.

python batch.py [--lines 2000] [--kills 20] [--tokens 96] [--seed 1] [--ray ADDRESS]

Kills are SIGKILL, at random moments between the first answers and the end. The answers must be those of a run that
nobody disturbs, line by line, none of them lost and none doubled; the failures, too.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from batches import answers_of, command, write_lines


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ray", metavar="ADDRESS")
    args = parser.parse_args()
    more = () if args.ray is None else ("--ray", args.ray)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "in.jsonl", args.lines, args.tokens, args.seed)
        start = time.monotonic()
        subprocess.run(command(folder / "in.jsonl", "-o", folder / "whole.jsonl", "--order", "file"), check=False)
        seconds = time.monotonic() - start
        broken, kept, kills = folder / "broken.jsonl", [0], 0
        while True:
            process = subprocess.Popen(command(folder / "in.jsonl", "-o", broken, "--order", "random", "-q", *more))
            before = kept[-1]
            while process.poll() is None and (broken.read_bytes().count(b"\n") if broken.exists() else 0) <= before:
                time.sleep(0.01)
            if kills < args.kills:
                time.sleep(rng.uniform(0, seconds / args.kills / 2))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
            process.wait()
            kept.append(broken.read_bytes().count(b"\n"))
            assert process.returncode in (0, 3, -signal.SIGKILL)
            if process.returncode >= 0:
                break
        whole, found = answers_of(folder / "whole.jsonl"), answers_of(broken)
        assert found == whole, "answers differ"
        failed = [answers_of(folder / f"{one}.failed.jsonl") for one in ("whole", "broken")]
        assert failed[0] == failed[1], "failures differ"
        print(f"{args.lines} lines, {seconds:.1f} s in one go; killed {kills} times, with {kept[1:]} lines in the "
              f"file: {len(whole)} answers and {len(failed[0])} failures are the same")  # fmt: skip


if __name__ == "__main__":
    main()
