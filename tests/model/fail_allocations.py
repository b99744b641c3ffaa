"""Load a model, read a prompt and decode, again and again, while one allocation after the other fails.

    python fail_allocations.py SHIM MODEL OPTIONS EXPECTED

Every allocation fails in a round of its own. A round may only end with the results of an undisturbed process, or with
MemoryError or an error of lowbit; and the same model, or else one loaded anew, has those results afterwards. Prints how
many rounds there were.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys

import lowbit
from lowbit.errors import LowbitError

PROMPT = [1, 5, 9, 2, 3, 14, 7, 1, 1, 8, 10, 11]


def results(model: lowbit.Model) -> list[object]:
    """What decoding and scoring say, the second time after the same prompt too."""
    texts = [model.generate(PROMPT, max_tokens=6, temperature=0.8, seed=3).tokens for _ in range(2)]
    batch = [g.tokens for g in model.generate([PROMPT, PROMPT[:5]], max_tokens=4, temperature=0)]
    return [*texts, batch, model.logits(PROMPT)[-1].tobytes().hex()]


def main() -> None:
    """Run the rounds."""
    shim, path, options, expected = sys.argv[1:]
    allocations = ctypes.CDLL(shim)
    options, expected = json.loads(options), json.loads(expected)
    assert results(lowbit.load(path, **options)) == expected  # and all that is imported late is imported now
    for n in itertools.count(1):
        print(n, file=sys.stderr, flush=True)  # the last one is where it crashed
        model = None
        allocations.fail_at(n)
        try:
            model = lowbit.load(path, **options)
            got = results(model)
        except (MemoryError, LowbitError):
            got = expected
        untouched = allocations.fails_after() > 0
        allocations.fail_at(0)
        assert got == expected, f"allocation {n} failed unseen"
        assert results(model or lowbit.load(path, **options)) == expected, f"allocation {n} left something behind"
        if untouched:
            break
    print(n)


if __name__ == "__main__":
    main()
