"""Texts under schemas from the wild: are those that end valid, and which schemas are refused?

    git clone https://github.com/guidance-ai/jsonschemabench
    python bench/jsonschemabench.py jsonschemabench [--model FILE] [--per-part 50] [--tokens N]

Takes as many schemas of each part, at random from a seed, makes a text for each, and asks the package jsonschema about
those that end. Prints one row per part, and why schemas were refused.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema

import lowbit
from lowbit import Engine
from lowbit.errors import ConstraintError


def verdict(schema: Any, stream: lowbit.Stream) -> tuple[str, str]:
    """Return what became of a text, and why."""
    try:
        out = stream.result()
    except ConstraintError as error:
        if "cannot be compiled" not in str(error):
            return "given up", re.sub(r".*?: ", "", str(error))[:60]
        return "refused", re.sub(r"[\"'`].*|\d.*|\{.*", "", str(error).partition("compiled: ")[2]).strip()[:60]
    if out.finish_reason == "length":
        return "cut off", ""
    try:
        jsonschema.validate(json.loads(out.text), schema, cls=jsonschema.validators.validator_for(schema))
    except jsonschema.ValidationError as error:
        return "INVALID", f"{error.message[:100]} in {out.text[:200]}"
    except Exception as error:  # the schema itself, to the validator
        return "not judged", type(error).__name__
    return "valid", ""


def main(argv: list[str]) -> int:
    """Print the table; the status is 1 if a text is not valid."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--per-part", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=400)
    args = parser.parse_args(argv)
    model = lowbit.load() if args.model is None else lowbit.load(args.model)
    parts = sorted(path for path in (args.repository / "data").iterdir() if path.is_dir())
    total: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    with Engine(model, max_queue=4096) as engine:
        for part in parts:
            files = random.Random(1).sample(sorted(part.glob("*.json")), args.per_part)
            schemas = [json.loads(file.read_text("utf-8")) for file in files]
            prompt, options = "Once upon a time", {"max_tokens": args.tokens, "temperature": 1.2, "seed": 1}
            streams = []
            for schema in schemas:
                try:
                    streams.append(engine.submit(prompt, json_schema=schema, **options))
                except ConstraintError as error:
                    streams.append(None)
                    reasons[str(error)] += 1
            found = [
                ("refused", "") if stream is None else verdict(schema, stream)
                for schema, stream in zip(schemas, streams, strict=True)
            ]
            counts = collections.Counter(kind for kind, _ in found)
            reasons.update(f"{kind}: {why}" for kind, why in found if why)
            total += counts
            print(f"{part.name:16} " + ", ".join(f"{kind} {n}" for kind, n in counts.most_common()), flush=True)
    print(f"{'all':16} " + ", ".join(f"{kind} {n}" for kind, n in total.most_common()))
    for reason, n in reasons.most_common():
        print(f"  {n:4} {reason}")
    return int(total["INVALID"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
