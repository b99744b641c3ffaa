"""One run of run.sh: prints tokens and bits of logits, and to stderr what depends on the machine.

python run.py story | chat | memory MODEL
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lowbit
import lowbit.isa
from lowbit.chat import ChatSession

LIMIT_MB = 200
CONTEXT = 2048
QUESTIONS = ("Tell me a story about a dog.", "What did the dog do then?")


def peak() -> float:
    """The most memory that this process ever had, in MB; the emulator's own is in it where there is one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def bits(model: lowbit.Model, tokens: list[int]) -> list[int]:
    """Some logits after these tokens."""
    found: list[int] = model.logits(tokens)[-1].view("<u4")[::50].tolist()
    return found


def run(model: lowbit.Model, kind: str) -> Iterator[object]:
    """What is compared."""
    if kind == "story":
        ids = model.tokenizer.encode("Once upon a time")
        answer = model.generate(ids, max_tokens=96, temperature=0)
        yield from (answer.tokens, bits(model, ids), model.tokenizer.decode(answer.tokens))
    elif kind == "chat":
        session = ChatSession(model, template="plain")
        for question in QUESTIONS:
            yield "".join(session.stream(question, max_tokens=48, temperature=0))
    else:  # random weights: as many tokens as the context holds
        prompt = [1 + i * 7919 % 31000 for i in range(CONTEXT - 16)]
        yield model.generate(prompt, max_tokens=16, temperature=0).tokens


def main() -> None:
    """Run what the command line names."""
    kind, *path = sys.argv[1:]
    start = time.monotonic()
    model = lowbit.load(path[0] if path else None, threads=1, context=CONTEXT if path else None)
    for result in run(model, kind):
        print(result)
    seconds = time.monotonic() - start
    print(f"{kind}: {lowbit.isa.active()}, {seconds:.0f} s, peak {peak():.0f} MB", file=sys.stderr)
    if peak() > LIMIT_MB:
        sys.exit(f"more than {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
