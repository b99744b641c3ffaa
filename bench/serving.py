"""Servers under load, side by side: requests that arrive at random, and long prompts beside running answers.

    python bench/serving.py smollm2.gguf --clients 1,8,32,128 --out build/bench/serving.json \\
        --peer 'llama.cpp=llama-server -m {model} --port {port} -np {clients} -c {context} -t 2'
    python bench/serving.py --draw build/bench/serving.json          # docs/serving-load.svg

The load is open: request number i is due at a moment that is drawn before (Poisson), whatever became of the others.
With N clients there are N connections; a request that is due while all are in use waits, and that counts as part of its
time to the first token. Both servers get the same requests at the same moments, in turns, each in a new process. Times
are of the wall, so nothing else should run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parents[1] / "docs"
OWN = f"{sys.executable} -m lowbit serve -m {{model}} --port {{port}} --parallel {{clients}} --context {{each}} -t 2"
WORDS = (
    "the",
    "a",
    "dog",
    "cat",
    "house",
    "river",
    "old",
    "small",
    "king",
    "ran",
    "saw",
    "found",
    "said",
    "under",
    "over",
)
ANSWER, PROMPT, LONG = 48, 60, 2000
"""Tokens of an answer; words of a prompt, and of a long one: each is one token or two."""


class Served:
    """A server in a process of its own, until it is closed."""

    def __init__(self, command: str, model: str, clients: int, each: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = command.format(model=model, port=self.port, clients=clients, each=each, context=clients * each)
        self.process = subprocess.Popen(shlex.split(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def ready(self) -> None:
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"it has ended: {self.process.args!r}")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)

    async def complete(self, prompt: str, tokens: int) -> tuple[list[float], int]:
        """Ask for a text of so many tokens; return when each piece of it came, and how many tokens it has."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
                 f"Content-Length: {len(data)}", "Connection: close", "", "")  # fmt: skip
        writer.write("\r\n".join(lines).encode() + data)
        came, made, status = [], 0, await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{status!r}: {(await reader.read())[-500:]!r}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event["choices"]:
                    came.append(time.perf_counter())
                made = (event.get("usage") or {}).get("completion_tokens", 0)
            elif line.startswith(b"data: [DONE]"):
                break
        writer.close()
        return came, made

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def prompt_of(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


async def arrivals(served: Served, clients: int, rate: float) -> dict[str, Any]:
    """Send requests as they are due, at most `clients` at a time."""
    rng, n = np.random.default_rng(clients), max(16, 2 * clients)
    due = np.cumsum(rng.exponential(1 / rate, n))
    prompts = [prompt_of(rng, PROMPT) for _ in range(n)]
    free, tokens, first, between = asyncio.Semaphore(clients), [], [], []
    start = time.perf_counter()

    async def one(i: int) -> None:
        await asyncio.sleep(due[i])
        async with free:
            came, made = await served.complete(prompts[i], ANSWER)
        tokens.append(made)
        first.append(came[0] - start - due[i])
        between.extend(np.diff(came))

    await asyncio.gather(*(one(i) for i in range(n)))
    seconds = time.perf_counter() - start
    return {"tokens_per_second": sum(tokens) / seconds, "first_ms": spread(first), "between_ms": spread(between)}


async def long_prompts(served: Served, streams: int, prompts: int = 4) -> dict[str, Any]:
    """Times between the tokens of running answers while long prompts arrive one after the other."""
    rng = np.random.default_rng(0)
    running = [asyncio.create_task(served.complete(prompt_of(rng, 20), 400)) for _ in range(streams)]
    await asyncio.sleep(2)
    start = time.perf_counter()
    for _ in range(prompts):
        await served.complete(prompt_of(rng, LONG), 1)
    end = time.perf_counter()
    came = [(await task)[0] for task in running]
    gaps = [b - a for times in came for a, b in itertools.pairwise(times) if start <= b and a <= end]
    return {"between_ms": spread(gaps), "prompt_seconds": (end - start) / prompts}


def spread(seconds: list[float]) -> dict[str, float]:
    found = 1e3 * np.asarray(seconds)
    return {"p50": float(np.percentile(found, 50)), "p99": float(np.percentile(found, 99)), "max": float(found.max())}


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    commands = {"lowbit": OWN, **dict(peer.split("=", 1) for peer in args.peer)}
    figures: list[dict[str, Any]] = []
    for clients in args.clients:
        for turn in range(args.rounds):
            for name in list(commands) if turn % 2 == 0 else reversed(list(commands)):
                served = Served(commands[name], args.model, clients, 512)
                await served.ready()
                await served.complete("Hello", 4)
                found = await arrivals(served, clients, args.rate * clients)
                served.close()
                figures.append({"server": name, "clients": clients, **found})
                print(json.dumps(figures[-1]), file=sys.stderr)
    for turn in range(args.rounds if args.long else 0):
        for name in list(commands) if turn % 2 == 0 else reversed(list(commands)):
            served = Served(commands[name], args.model, args.long + 1, 4096)
            await served.ready()
            await served.complete("Hello", 4)
            figures.append({"server": name, "streams": args.long, **await long_prompts(served, args.long)})
            served.close()
            print(json.dumps(figures[-1]), file=sys.stderr)
    return {"uptime": os.getloadavg(), "cores": len(os.sched_getaffinity(0)), "figures": figures}


def table(record: dict[str, Any]) -> str:
    """Medians of the turns, as Markdown."""
    rows = [
        "| load | server | tokens/s | first token p50 / p99 ms | between tokens p50 / p99 ms |",
        "|---|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in record["figures"]:
        load = f"{one['clients']} clients" if "clients" in one else f"{one['streams']} streams, prompts of {LONG} words"
        groups.setdefault((load, one["server"]), []).append(one)
    for (load, server), found in groups.items():

        def middle(*path: str, found: list[dict[str, Any]] = found) -> str:
            values = []
            for one in found:
                for key in path:
                    one = one.get(key, {})
                values.append(one)
            return f"{statistics.median(values):,.1f}" if all(isinstance(v, float) for v in values) else ""

        rows.append(
            f"| {load} | {server} | {middle('tokens_per_second')} | {middle('first_ms', 'p50')} / "
            f"{middle('first_ms', 'p99')} | {middle('between_ms', 'p50')} / {middle('between_ms', 'p99')} |"
        )
    return "\n".join(rows)


def draw(record: dict[str, Any]) -> None:
    """Throughput and waiting over the number of clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from plots import STYLE, color

    parts = (("tokens per second", ("tokens_per_second",)), ("ms to the first token, p99", ("first_ms", "p99")),
             ("ms between tokens, p99", ("between_ms", "p99")))  # fmt: skip
    loaded = [one for one in record["figures"] if "clients" in one]
    names = list(dict.fromkeys(one["server"] for one in loaded))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
        for panel, (title, path) in zip(panels, parts):
            for name in names:
                points: dict[int, list[float]] = {}
                for one in loaded:
                    if one["server"] == name:
                        value = one[path[0]]
                        points.setdefault(one["clients"], []).append(value[path[1]] if len(path) == 2 else value)
                panel.plot(
                    points.keys(),
                    [statistics.median(p) for p in points.values()],
                    "o-",
                    label=name,
                    color=color(name, names),
                )
            panel.set(xlabel="clients", title=title, xscale="log", xticks=list(points), xticklabels=list(points))
            panel.set_ylim(bottom=0)
            panel.minorticks_off()
            panel.yaxis.set_major_formatter("{x:,.0f}")
        panels[0].legend()
        figure.savefig(DOCS / "serving-load.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a file that all servers can read")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="with {model}, {port}, {clients}, {each}, {context}",
    )
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second and client (default: %(default)s)")
    parser.add_argument(
        "--long", type=int, default=8, help="streams beside which long prompts arrive; 0: leave that out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path)
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.draw.read_text()))
        return
    record = asyncio.run(measure(args))
    print(table(record))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
