"""Clients of a server that ask, read slowly, leave and send rubbish at random: python server.py SECONDS CLIENTS SEED

Every answer with a seed is compared with `Model.generate`'s; the server's memory is watched; at the end no block may be
held, the engine must be alive, and SIGTERM must end it in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import lowbit

PROMPTS = ("Once upon a time there was a dog. " * 12, "The cat sat on the mat. " * 12, "")
JSON = b"Content-Type: application/json\r\nContent-Length: "
RUBBISH = (
    b"GET / HTTP/9.9\r\n\r\n", b"\x00\xff\x16\x03\x01\x02", b"A" * 100_000,
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\n" + JSON + b"2\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"9\r\n\r\n[[[[[[[[[",
)  # fmt: skip
KINDS = 64
"""Different requests, so that few have to be made alone."""


def request_of(number: int) -> dict[str, object]:
    choice = random.Random(number)
    prompt = choice.choice(PROMPTS)[: choice.choice((30, 150, 230))] + choice.choice(("He", "She ran", "They said"))
    return {
        "prompt": prompt, "max_tokens": choice.choice((1, 5, 20)), "seed": number,
        "temperature": choice.choice((0, 0.8)), "stream": choice.random() < 0.7,
    }  # fmt: skip


def alone() -> list[str]:
    """The texts of all requests, made one after the other."""
    with_seeds = [request_of(n) for n in range(KINDS)]
    model = lowbit.load(threads=1)
    return [
        model.generate(r["prompt"], max_tokens=r["max_tokens"], seed=r["seed"], temperature=r["temperature"]).text
        for r in with_seeds
    ]  # fmt: skip


class Soak:
    def __init__(self, port: int, right: list[str], until: float) -> None:
        self.port, self.right, self.until = port, right, until
        self.counts: Counter[str] = Counter()

    async def client(self, rng: random.Random) -> None:
        while time.monotonic() < self.until:
            try:
                await self.visit(rng)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.counts["connection closed"] += 1
            await asyncio.sleep(rng.random())

    async def visit(self, rng: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            way = rng.choice(("ask", "ask", "ask", "ask", "leave at once", "leave", "rubbish", "half", "slow"))
            if way == "rubbish":
                writer.write(rng.choice(RUBBISH))
                writer.write_eof()
                status = await reader.read(16)
                self.counts[f"rubbish {status[9:12].decode(errors='replace')}"] += 1
                return
            n = rng.randrange(KINDS)
            data = json.dumps(request_of(n)).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + JSON
            whole = head + f"{len(data)}\r\n\r\n".encode() + data
            writer.write(whole[: len(whole) // 2] if way == "half" else whole)
            await writer.drain()
            if way in ("half", "leave at once"):
                self.counts[way] += 1
                return
            if way == "leave":
                await reader.read(rng.choice((1, 200, 600)))
                self.counts[way] += 1
                return
            answer = b""
            while part := await reader.read(rng.choice((64, 256)) if way == "slow" else 65536):
                answer += part
                if way == "slow":
                    await asyncio.sleep(rng.random() * 0.3)
            self.judge(n, answer)
        finally:
            writer.close()

    def judge(self, n: int, answer: bytes) -> None:
        status = answer[9:12].decode()
        if status == "429":
            self.counts["429"] += 1  # the documented limit
            return
        body = answer.partition(b"\r\n\r\n")[2].decode()
        if status != "200":
            self.counts[f"WRONG {status}"] += 1
            return
        if request_of(n)["stream"]:
            events = [json.loads(line) for line in re.findall(r"^data: (\{.*\})\r?$", body, re.MULTILINE)]
            text = "".join(choice.get("text") or "" for event in events for choice in event.get("choices", ()))
        else:
            text = json.loads(body[body.index("{") : body.rindex("}") + 1])["choices"][0]["text"]
        self.counts["right" if text == self.right[n] else "WRONG text"] += 1

    async def get(self, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return answer


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def soak(process: subprocess.Popen[str], port: int, seconds: int, clients: int, seed: int) -> int:
    run = Soak(port, alone(), time.monotonic() + seconds)
    memory: list[float] = []

    async def watch() -> None:
        while time.monotonic() < run.until:
            memory.append(resident_mb(process.pid))
            await asyncio.sleep(max(1.0, seconds / 100))

    await asyncio.gather(watch(), *(run.client(random.Random(seed * 100_000 + i)) for i in range(clients)))
    held = 1.0
    for _ in range(600):
        found = dict(
            re.findall(
                r"^lowbit_(kv_blocks_held|requests_running|requests_waiting) (\S+)$", await run.get("/metrics"), re.M
            )
        )
        held = sum(map(float, found.values()))
        if not held:
            break
        await asyncio.sleep(0.1)
    healthy = " 200 " in (await run.get("/health")).partition("\r\n")[0]
    early, late = memory[len(memory) // 4], memory[-1]
    wrong = [name for name in run.counts if name.startswith("WRONG")]
    flat = late <= 1.1 * early + 8
    fault = wrong or held or not healthy or not flat or not run.counts["right"]
    print(
        dict(sorted(run.counts.items())),
        f"memory {early:.0f} MB after a quarter, {late:.0f} MB at the end, most {max(memory):.0f} MB;",
        f"{held:g} held; {'alive' if healthy else 'DEAD'}:",
        "FAULT" if fault else "no fault",
    )
    return 1 if fault else 0


def main(seconds: int, clients: int, seed: int) -> int:
    """Run, print one line of counts, and return the exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lowbit", "serve", "--port", "0", "-t", "2", "--parallel", "16", "--queue", "256"],
        stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    said = ""
    assert process.stderr
    while "http://" not in said:
        line = process.stderr.readline()
        if not line:
            raise SystemExit(f"the server ended: {said}")
        said += line
    port = int(re.search(r"http://[^:]+:(\d+)", said)[1])  # type: ignore[index]
    try:
        status = asyncio.run(soak(process, port, seconds, clients, seed))
    finally:
        process.send_signal(signal.SIGTERM)
    _, rest = process.communicate()
    if process.returncode or rest:
        print(f"the server ended with status {process.returncode} and said {rest[:500]!r}: FAULT")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
