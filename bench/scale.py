"""Many machines: the simulation drawn, and compared with a real cluster of Ray on this machine.

python bench/scale.py draw OUT.svg
python bench/scale.py cluster [--lines 20000] [--tokens 24] [--nodes 2]

`cluster` answers the same lines with as many plain processes as there are nodes, each with its part, and then with the
cluster, once Ray's own processes have begun; both answer with one thread for each. It compares the answers, line by
line, and the time with the simulation, which knows the speed of the processes, and which share of the processors Ray's
own processes had, of which there are here those of all nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lowbit.fleet import Fleet, simulate


def rate_of(said: str) -> tuple[float, float]:
    """Return lines and tokens per second, as a batch reports them at its end."""
    found = re.search(r"([\d,.]+) lines/s, ([\d,]+) tokens/s", said)
    assert found, said
    return float(found[1].replace(",", "")), float(found[2].replace(",", ""))


def processes() -> dict[tuple[str, str], float]:
    """Return what each of our processes has computed so far, by what it is and its id; ``daemons`` are Ray's own."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ")
            fields = path.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        kind = (
            "driver" if b" lowbit batch " in command else "workers" if command.startswith(b"ray::Worker") else
            "daemons" if b"ray" in command and b"scale.py" not in command else ""
        )  # fmt: skip
        if kind:
            found[kind, path.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def until_idle() -> None:
    """Wait until Ray's own processes have begun, which takes each of them seconds of a processor."""
    before = now = sum(processes().values())
    while now - before > 0.4 or now == before:
        before = now
        time.sleep(2)
        now = sum(processes().values())


def watched(*lines: list[str]) -> tuple[list[str], dict[str, float]]:
    """Run batches; return what they said, and what each kind of process computed from the first answers to the last."""
    outputs = [Path(line[line.index("-o") + 1]) for line in lines]
    running = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    begun: dict[tuple[str, str], float] = {}
    last: dict[tuple[str, str], float] = {}
    while any(process.poll() is None for process in running):
        now = processes()  # without those that have ended just now
        last |= now
        if not begun and all(output.exists() and output.stat().st_size for output in outputs):
            begun = now
        time.sleep(0.05)
    said = [process.communicate()[1] for process in running]
    assert not any(process.returncode for process in running), said
    kinds = dict.fromkeys(("driver", "workers", "daemons"), 0.0)
    for one, seconds in last.items():
        kinds[one[0]] += seconds - begun.get(one, 0.0)
    return said, kinds


def cluster(lines: int, tokens: int, nodes: int) -> dict[str, object]:
    """Compare a cluster with plain processes, and with the simulation."""
    from batches import answers_of, command, write_lines
    from ray.cluster_utils import Cluster

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "in.jsonl", lines, tokens, 1, wrong=False)
        whole = (folder / "in.jsonl").read_bytes().splitlines(keepends=True)
        for i in range(nodes):
            (folder / f"in{i}.jsonl").write_bytes(b"".join(whole[i::nodes]))
        said, alone = watched(*(
            command(folder / f"in{i}.jsonl", "-o", folder / f"plain{i}.jsonl", "-t", 1) for i in range(nodes)
        ))  # fmt: skip
        plain = [rate_of(one) for one in said]
        ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(nodes):
            ray.add_node(num_cpus=1)
        until_idle()
        [done], computed = watched(command(folder / "in.jsonl", "-o", folder / "ray.jsonl", "--ray", ray.address))
        ray.shutdown()
        wanted = sorted(line for i in range(nodes) for line in answers_of(folder / f"plain{i}.jsonl"))
        assert answers_of(folder / "ray.jsonl") == wanted, "answers differ"
        work = [json.loads(line)["response"]["body"]["usage"]["total_tokens"] for line in wanted]
    real = lines / rate_of(done)[0]
    slowest = max(len(whole[i::nodes]) / rate for i, (rate, _) in enumerate(plain))
    random.Random(1).shuffle(work)
    # Ray's own processes share the processors with the nodes here; the driver does what plain processes do as well.
    share = computed["daemons"] / (cores * real) if nodes >= cores else 0.0
    predicted = simulate(work, Fleet([rate for _, rate in plain], load=0, taken=share)).seconds
    return {
        "nodes": nodes, "cores": cores, "lines": lines, "plain_seconds": slowest, "ray_seconds": real,
        "overhead": real / slowest - 1, "processor_seconds": computed, "plain_processor_seconds": alone["driver"],
        "taken": share,
        "simulated_seconds": predicted, "simulated_over_real": predicted / real, "equal": True,
    }  # fmt: skip


def machines(n: int, seed: int = 1) -> list[float]:
    """Return speeds of machines as they are found in a computer room: tokens per second of a 2B model."""
    rng = random.Random(seed)
    return [rng.choice((12.0, 25.0, 25.0, 40.0, 80.0)) for _ in range(n)]


def draw(out: str) -> None:
    """Draw speed-up, stragglers, and the cost of failures."""
    from plots import STYLE, plt

    rng = random.Random(2)
    work = [rng.lognormvariate(5, 0.6) for _ in range(200_000)]
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
        counts = [1, 10, 40, 100, 400, 1000, 3000, 10_000]
        one = sum(work) / 36.4
        for label, options in (("as it is", {}), ("nobody takes what another has", {"copies": False}),
                               ("and groups do not shrink", {"copies": False, "fixed_groups": True})):  # fmt: skip
            runs = [simulate(work, Fleet(machines(n), driver=0.0005, load=20, **options)) for n in counts]
            middle.semilogx(counts, [100 * run.efficiency for run in runs], marker="o", markersize=3, label=label)
            if not options:
                left.loglog(counts, [one / run.seconds for run in runs], marker="o", markersize=3)
                for n, run in zip(counts, runs):
                    print(f"{n} machines: {run.seconds:,.0f} s, efficiency {run.efficiency:.3f}")
        left.loglog(counts, counts, color="#999999", linewidth=0.8)
        left.set(title="Speed-up, 200,000 lines", xlabel="machines of mixed speed")
        middle.set(title="% of the speed that is of use", xlabel="machines", ylim=(0, 102))
        middle.legend(fontsize=7, loc="lower left")
        hours = [1, 3, 10, 30, 100, 300, 1000]
        for n in (40, 400):
            runs = [simulate(work, Fleet(machines(n), driver=0.0005, load=20,
                    between_failures=3600 * hour, repair=900), 1) for hour in hours]  # fmt: skip
            right.semilogx(
                hours, [100 * run.efficiency for run in runs], marker="o", markersize=3, label=f"{n} machines"
            )
            for hour, run in zip(hours, runs):
                lost = run.lost_tokens / sum(work)
                print(f"{n} machines, a failure in {hour} h: efficiency {run.efficiency:.3f}, {run.failures} failures, "
                      f"{lost:.2%} computed twice")  # fmt: skip
        right.set(title="The same with failures", xlabel="hours between two failures of a machine", ylim=(0, 102))
        right.legend(fontsize=7, loc="lower right")
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("draw").add_argument("out")
    real = what.add_parser("cluster")
    real.add_argument("--lines", type=int, default=20_000)
    real.add_argument("--tokens", type=int, default=24)
    real.add_argument("--nodes", type=int, default=2)
    args = parser.parse_args()
    if args.what == "draw":
        draw(args.out)
    else:
        print(json.dumps(cluster(args.lines, args.tokens, args.nodes), indent=1))


if __name__ == "__main__":
    main()
