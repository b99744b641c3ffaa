"""Clients that ask an engine, read slowly and go away at random: python engine.py SECONDS CLIENTS SEED

Every text that comes to its end is compared with the same request alone; no block may be held when all are gone.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

import lowbit

PREFIXES = ("Once upon a time there was a dog. " * 12, "The cat sat on the mat. " * 12)
ENDS = ("He", "She ran", "They said", "")


def request_of(number: int) -> tuple[str, dict[str, object]]:
    """Make one of the requests that there are, so that few have to be made alone."""
    choice = random.Random(number)
    prompt = choice.choice(PREFIXES)[: choice.choice((0, 30, 150, 230))] + choice.choice(ENDS)
    return prompt or "A", {
        "max_tokens": choice.choice((1, 5, 20)), "seed": number, "temperature": choice.choice((0, 0.8)),
        "repeat_penalty": choice.choice((1.0, 1.2)), "stop": choice.choice(((), (".",))),
    }  # fmt: skip


def main(seconds: int, clients: int, seed: int) -> int:
    """Run, print one line of counts, and return the exit status."""
    model = lowbit.load(threads=2)
    alone = {n: model.generate(request_of(n)[0], **request_of(n)[1]).text for n in range(64)}
    engine = lowbit.Engine(model, max_sequences=4, kv_ram="1MB", step_ms=5, max_queue=clients)
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while time.monotonic() < until:
            n = rng.randrange(64)
            prompt, options = request_of(n)
            try:
                how = {"speculate": rng.random() < 0.3, "cache_salt": rng.choice(("", "a"))}
                stream = engine.submit(prompt, **how, **options)
            except lowbit.QueueFullError:  # streams that were dropped wait for the next step before they go
                counts["queue full"] += 1
                time.sleep(0.01)
                continue
            way = rng.choice(("result", "read", "read", "cancel", "drop"))
            if way == "result":
                counts["right" if stream.result().text == alone[n] else "WRONG"] += 1
            elif way == "read":
                text = ""
                for piece in stream:
                    text += piece
                    if rng.random() < 0.1:
                        time.sleep(rng.random() * 0.01)
                counts["right" if text == alone[n] else "WRONG"] += 1
            else:
                for _ in range(rng.randrange(4)):
                    next(stream, None)
                if way == "cancel":
                    stream.cancel()
                counts[way] += 1
                del stream
            if rng.random() < 0.05:
                engine.stats()
                model.generate("One", max_tokens=2, seed=1)  # whose own engine shares the decoder and the pool

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = {}
    for _ in range(600):
        left = {name: engine.stats()[name] for name in ("running", "waiting")}
        if not any(left.values()) and not model._decoder.pool.held:
            break
        time.sleep(0.1)
    held = model._decoder.pool.held
    engine.close()
    bad = counts["WRONG"] or any(left.values()) or held or not counts["right"]
    print(dict(counts), left, f"{held} blocks held:", "FAULT" if bad else "no fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
