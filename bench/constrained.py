"""What it costs to hold a text to a schema: time per token, beside that of a free text of the same model.

    python bench/constrained.py MODEL [--tokens N] [--rounds N]

Runs take turns, on one thread, and count the processor's time of the whole process, so that other programs on the
machine do not matter much. Reading the prompt and compiling the grammar are not counted. ``forced`` is the share of
tokens that had no alternative, and so were not chosen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import lowbit
from lowbit import Engine

WORD = {"type": "string", "minLength": 20, "maxLength": 200}
PERSON = {
    "type": "object",
    "properties": {
        "name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": WORD, "minItems": 4, "maxItems": 40},
        "pet": {"enum": ["cat", "dog", "none"]},
    },
    "required": ["name", "age", "hobbies", "pet"], "additionalProperties": False,
}  # fmt: skip
KINDS = {
    "free": {},
    "any text": {"regex": "(?s:.)*"},
    "words": {"regex": "([A-Za-z]+[ ,.;:!?\\n]{1,2})*"},
    "any JSON object": {"json_schema": {"type": "object", "minProperties": 30}},
    "schema": {"json_schema": PERSON},
}


def seconds_per_token(model: lowbit.Model, tokens: int, seed: int, **constraint: object) -> tuple[float, float]:
    """Return the processor's time of a token, and the share of tokens that were forced."""
    engine = Engine(model, thread=False)
    prompt = "Write about a person who lives in a small town, as a JSON object.\n"
    stream = engine.submit(prompt, max_tokens=tokens, seed=seed, temperature=1.0, **constraint)
    next(stream)
    start, steps = time.process_time(), engine.stats()["steps"]
    done = len(stream._request._text.tokens)
    out = stream.result()
    spent, made = time.process_time() - start, len(out.tokens) - done
    forced = 1 - (engine.stats()["steps"] - steps) / made if constraint else 0.0
    return spent / made, forced


def main(argv: list[str]) -> int:
    """Print one row for each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    model = lowbit.load(args.model, threads=1)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for constraint in KINDS.values():  # so that nothing is made for the first time in what counts
        seconds_per_token(model, 20, 0, **constraint)
    for seed in range(args.rounds):
        for kind, constraint in KINDS.items():
            found[kind].append(seconds_per_token(model, args.tokens, seed, **constraint))
    free = statistics.median(seconds for seconds, _ in found["free"])
    print(f"vocabulary {model.config.vocab_size}")
    for kind, runs in found.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        forced = statistics.mean(share for _, share in runs)
        print(f"{kind:16} {1e3 * seconds:8.3f} ms/token  {seconds / free:5.3f}x  forced {forced:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
