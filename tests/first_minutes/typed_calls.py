"""Calls that mypy is to take, and calls that it is to refuse: `mypy.ini` names this file, which nobody runs.

It complains of each ``type: ignore`` that ignores nothing, so the marked calls are those that it finds wrong.
"""

from __future__ import annotations

import lowbit

MESSAGES = [{"role": "user", "content": "Hello"}]


def taken(model: lowbit.Model) -> list[list[lowbit.Generation]]:
    one: lowbit.Generation = model.generate("a", max_tokens=None, stop="x", temperature=0, seed=1)
    ids: lowbit.Generation = model.generate([1, 2], logprobs=3, json_schema={"type": "string"})
    answer: lowbit.Generation = model.chat(MESSAGES, temperature=0.5, top_k=3, context_shift=True)
    some: list[lowbit.Generation] = model.generate("a", n=2)
    more: list[lowbit.Generation] = model.generate(["a", "b"], seed=[1, 2])
    other: list[lowbit.Generation] = model.generate([[1, 2], [3]])
    return [[one, ids, answer], some, more, other, [lowbit.Engine(model).submit("a", top_p=0.5).result()]]


def refused(model: lowbit.Model) -> None:
    model.generate("a", max_tokenz=3)  # type: ignore[call-overload]
    model.generate("a", temperature="hot")  # type: ignore[call-overload]
    model.stream("a", max_tokenz=3)  # type: ignore[call-arg]
    model.generate("a", context_shift="yes")  # type: ignore[call-overload]
    model.stream("a", stop=5)  # type: ignore[arg-type]
    model.chat(MESSAGES, temperature="hot")  # type: ignore[call-overload]
    lowbit.Engine(model).submit("a", top_k="many")  # type: ignore[arg-type]
