"""What batches and servers must withstand, alone and on a cluster of Ray whose nodes are processes on this machine.

python bench/disturbed.py kills [--lines 2000] [--tokens 48] [--times 20]
python bench/disturbed.py batch [--lines 20000] [--tokens 8] [--nodes 2]
python bench/disturbed.py serve [--clients 100]

`kills` kills `lowbit batch` again and again. `batch` answers lines with one process, and then with a cluster of which
ten workers are killed at random, of which the driver is killed three times and begun again, and of which a node is
killed in the middle. Both compare all lines with those of a run that nobody disturbed. `serve` kills one of two
replicas while clients stream, lets clients leave, and compares how much of the prompts is known beforehand with one
replica and with two; and sees one replica become two. How fast a cluster is: `scale.py cluster`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

CONTEXT = 65536


def cluster_of(nodes: int) -> Cluster:
    """Begin a head without a processor, and nodes with one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    return cluster


def report(**figures: Any) -> None:
    """Print figures as one line of JSON."""
    print(json.dumps(figures), flush=True)


# --- batches ---


class Batch:
    """A batch that runs, and how many lines of it are done."""

    def __init__(self, folder: Path, name: str, *options: object) -> None:
        from batches import command

        self.output = folder / f"{name}.jsonl"
        self._line = command(folder / "in.jsonl", "-o", self.output, *options)
        self.begin()

    def begin(self) -> None:
        """Begin the command, or go on."""
        self.process = subprocess.Popen(self._line, stderr=subprocess.DEVNULL)

    def done(self) -> int:
        """Return how many lines are there."""
        return self.output.read_bytes().count(b"\n") - 1 if self.output.exists() else 0

    def wait(self, lines: float) -> bool:
        """Wait until so many lines are there; return whether the batch still runs."""
        while self.process.poll() is None and self.done() < lines:
            time.sleep(0.02)
        return self.process.poll() is None


def workers_of() -> list[int]:
    """Return the process ids of the actors."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::Worker" in line]


def undisturbed(folder: Path, lines: int, tokens: int) -> list[bytes]:
    """Write lines, and return the answers of one process."""
    from batches import answers_of, command, write_lines

    write_lines(folder / "in.jsonl", lines, tokens, 1, wrong=False)
    begun = time.monotonic()
    subprocess.run(command(folder / "in.jsonl", "-o", folder / "one.jsonl", "-t", 1, "-q"), check=True)
    answers = answers_of(folder / "one.jsonl")
    assert len(answers) == lines
    report(what="one process", lines=lines, tokens=tokens, seconds=round(time.monotonic() - begun, 1))
    return answers


def prove_kills(lines: int, tokens: int, times: int) -> None:
    """Kill a batch of one process."""
    from batches import answers_of

    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = undisturbed(folder, lines, tokens)
        batch, killed, at = Batch(folder, "killed", "-t", 1), 0, []
        while killed < times:
            batch.wait(batch.done() + 1)
            time.sleep(rng.random() * 0.3)
            assert batch.process.poll() is None, f"it was done after {killed} kills"
            batch.process.kill()
            batch.process.wait()
            killed += 1
            at.append(batch.done())
            batch.begin()
        status = batch.process.wait()
        equal = answers_of(batch.output) == wanted
        report(what="killed", times=killed, lines_at_each=at, status=status, equal=equal)
        assert equal
        assert status == 0


def prove_batch(lines: int, tokens: int, nodes: int) -> None:
    """Disturb batches on a cluster."""
    from batches import answers_of

    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = undisturbed(folder, lines, tokens)
        cluster = cluster_of(nodes)

        def prove(what: str, disturb: Callable[[Batch], int]) -> None:
            begun = time.monotonic()
            batch = Batch(folder, what.replace(" ", "-"), "--ray", cluster.address)
            times = disturb(batch)
            status = batch.process.wait()
            equal = answers_of(batch.output) == wanted
            report(what=what, nodes=nodes, times=times, status=status, seconds=round(time.monotonic() - begun, 1),
                   equal=equal)  # fmt: skip
            assert equal
            assert status == 0

        def kill_workers(batch: Batch) -> int:
            killed = 0
            for at in sorted(rng.uniform(0.02, 0.85) for _ in range(10)):
                if batch.wait(at * lines) and (there := workers_of()):
                    os.kill(rng.choice(there), signal.SIGKILL)
                    killed += 1
            return killed

        def kill_driver(batch: Batch) -> int:
            killed = 0
            for at in sorted(rng.uniform(0.1, 0.8) for _ in range(3)):
                if batch.wait(at * lines):
                    batch.process.kill()
                    batch.process.wait()
                    batch.begin()
                    killed += 1
            return killed

        def kill_node(batch: Batch) -> int:
            running = batch.wait(lines / 2)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            return int(running)

        prove("undisturbed", lambda _: 0)
        prove("workers killed", kill_workers)
        prove("driver killed", kill_driver)
        prove("node killed", kill_node)
        cluster.shutdown()


# --- a server ---


async def _kill_one(served: Any, clients: int) -> None:
    from served_cluster import Stream, client_of

    asked = [{"prompt": f"{i} upon a time", "ignore_eos": True, "seed": i, "n_predict": 1500} for i in range(clients)]
    before = await asyncio.to_thread(served.until_idle, 2)
    async with client_of(served.url) as client:
        streams = [Stream(client, **body) for body in asked]
        await asyncio.gather(*(stream.begun.wait() for stream in streams))
        stats = await asyncio.to_thread(served.stats, 2)
        victim = random.Random(1).choice(sorted(stats))
        given = served.given(before, stats)[victim]
        ended = [stream for stream in streams if stream.task.done()]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        new = [Stream(client, **{**body, "n_predict": 8}) for body in asked]
        await asyncio.wait([stream.task for stream in new], return_when=asyncio.FIRST_COMPLETED)
        first = time.monotonic() - killed
        await asyncio.wait([stream.task for stream in new])
        served_again = time.monotonic() - killed
        await asyncio.to_thread(served.stats, 2)
        two_again = time.monotonic() - killed
        await asyncio.wait([stream.task for stream in streams])
        lost = [stream for stream in streams if not stream.whole]
        codes = sorted({str(stream.error["code"]) for stream in lost})
        report(
            what="one of two replicas killed", clients=clients, ended_before=len(ended),
            given_to_it=given, lost=len(lost), codes=codes,
            whole=sum(stream.whole and stream.error is None for stream in streams),
            new_whole=sum(stream.whole for stream in new),
            first_new_seconds=round(first, 2), all_new_seconds=round(served_again, 2),
            two_replicas_again_seconds=round(two_again, 2),
        )  # fmt: skip
        assert 0 < len(lost) <= given < clients
        assert codes == ["replica_lost"]
        assert all(stream.whole and stream.error is None for stream in new)
        again = [Stream(client, **asked[streams.index(stream)]) for stream in lost]
        whole = [stream for stream in streams if stream.whole]
        check = [Stream(client, **asked[streams.index(stream)]) for stream in whole]
        await asyncio.wait([stream.task for stream in again + check])
        assert [stream.text for stream in check] == [stream.text for stream in whole], "the others' texts are right"
        assert all(stream.text.startswith(part.text) for stream, part in zip(again, lost)), "and so is what was lost"


async def _leave(served: Any, clients: int) -> None:
    from served_cluster import Stream, client_of

    before = await asyncio.to_thread(served.until_idle, 2)
    async with client_of(served.url) as client:
        streams = [
            Stream(client, prompt=f"{i} upon a time", ignore_eos=True, seed=i, n_predict=60_000 if i % 2 else 1000)
            for i in range(clients)
        ]  # fmt: skip
        await asyncio.gather(*(stream.begun.wait() for stream in streams))
        held = [one["kv"]["held"] for one in (await asyncio.to_thread(served.stats, 2)).values()]
        left = time.monotonic()
        for stream in streams[1::2]:
            stream.task.cancel()
        cancelled = 0
        while cancelled < clients // 2:
            after = await asyncio.to_thread(served.stats, 2)
            cancelled = sum(after[pid]["cancelled"] - before[pid]["cancelled"] for pid in before)
            seconds = time.monotonic() - left
        await asyncio.wait([stream.task for stream in streams])
        after = await asyncio.to_thread(served.until_idle, 2)
    report(what="half of the clients leave", clients=clients, blocks_held_before=held,
           blocks_held_after=[one["kv"]["held"] for one in after.values()], cancelled=cancelled,
           whole=sum(stream.whole for stream in streams), seconds=round(seconds, 2))  # fmt: skip
    assert cancelled == clients // 2
    assert sum(stream.whole for stream in streams) == clients - clients // 2


async def _share(served: Any, replicas: int) -> float:
    """Return the part of the prompts' tokens that were known beforehand."""
    from served_cluster import Stream, client_of

    rng = random.Random(3)
    beginnings = ["".join(rng.choice("abcdefghij klmnopqrst") for _ in range(400)) for _ in range(40)]
    asked = [f"{begin}{i}" for begin in beginnings for i in range(10)]
    rng.shuffle(asked)
    before = await asyncio.to_thread(served.until_idle, replicas)
    async with client_of(served.url) as client:
        for i in range(0, len(asked), 8):
            streams = [Stream(client, prompt=prompt, n_predict=4, seed=1) for prompt in asked[i : i + 8]]
            await asyncio.wait([stream.task for stream in streams])
            assert all(stream.whole for stream in streams)
    after = await asyncio.to_thread(served.until_idle, replicas)

    def done(name: str) -> int:
        return sum(after[pid][name] - before[pid][name] for pid in after)

    return done("known_tokens") / done("prompt_tokens")


async def _grow(served: Any) -> None:
    from served_cluster import Stream, client_of

    async with client_of(served.url) as client:
        begun = time.monotonic()
        streams = [Stream(client, prompt=f"{i} upon", ignore_eos=True, n_predict=60_000) for i in range(16)]
        await asyncio.to_thread(served.stats, 2)
        report(what="one replica becomes two", requests=len(streams), seconds=round(time.monotonic() - begun, 1))
        for stream in streams:
            stream.task.cancel()
        await asyncio.wait([stream.task for stream in streams])
        await asyncio.to_thread(served.until_idle, 2)


def prove_serve(clients: int) -> None:
    """Disturb a server."""
    import ray
    from served_cluster import Served
    from small_model import write_small_model

    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "long.gguf"
        write_small_model(model, CONTEXT)
        cluster = cluster_of(2)
        options = ("-m", model, "--context", CONTEXT, "--parallel", clients, "--queue", clients)
        rates = []
        for replicas in (1, 2):
            served = Served(cluster.address, *options, "--replicas", replicas)
            rates.append(asyncio.run(_share(served, replicas)))
            if replicas == 2:
                report(what="known tokens of prompts", one_replica=round(rates[0], 4), two_replicas=round(rates[1], 4),
                       ratio=round(rates[1] / rates[0], 4))  # fmt: skip
                assert rates[1] >= 0.9 * rates[0]
                asyncio.run(_leave(served, clients))
                asyncio.run(_kill_one(served, clients))
            status, said = served.stop()
            assert (status, said) == (0, ""), said
        served = Served(cluster.address, "-m", model, "--context", CONTEXT, "--parallel", 8, "--replicas", "1:2")
        asyncio.run(_grow(served))
        served.stop()
        ray.shutdown()  # a handle that is still listening may have connected anew
        cluster.shutdown()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    kills = what.add_parser("kills")
    kills.add_argument("--lines", type=int, default=2000)
    kills.add_argument("--tokens", type=int, default=48)
    kills.add_argument("--times", type=int, default=20)
    batch = what.add_parser("batch")
    batch.add_argument("--lines", type=int, default=20_000)
    batch.add_argument("--tokens", type=int, default=8)
    batch.add_argument("--nodes", type=int, default=2)
    what.add_parser("serve").add_argument("--clients", type=int, default=100)
    args = parser.parse_args()
    if args.what == "kills":
        prove_kills(args.lines, args.tokens, args.times)
    elif args.what == "batch":
        prove_batch(args.lines, args.tokens, args.nodes)
    else:
        prove_serve(args.clients)


if __name__ == "__main__":
    main()
