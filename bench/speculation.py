"""Tokens per second with proposed tokens over plain ones, on the same texts, in turns.

    python bench/speculation.py SmolLM2-135M-Instruct.Q4_1.gguf                  # what was said before
    python bench/speculation.py big.gguf --draft small.gguf --weights file       # a small model writes ahead
    python bench/speculation.py --grow 110M small.gguf -o grown.gguf             # a large model that says the same

A turn makes the same text in each way, plain first; texts must be equal. `repeated` asks again for what was answered.
A grown model has further layers that add exactly nothing, so that it takes the time of a larger one, and agrees with
the small one always: it shows what the engine makes of a draft that is always right, and nothing about drafts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import lowbit
from lowbit._kernels.lookup import EarlierTexts
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter

CODE = """import json


class Inventory:
    def __init__(self, path):
        self.path = path
        self.items = {}

    def load(self):
        with open(self.path) as file:
            self.items = json.load(file)

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self.items, file)

    def add(self, name, count):
        if count < 0:
            raise ValueError("count must not be negative")
        self.items[name] = self.items.get(name, 0) + count

    def remove(self, name, count):
        if self.items.get(name, 0) < count:
            raise ValueError("there are not so many")
        self.items[name] -= count

    def total(self):
        return sum(self.items.values())
"""

ARTICLE = """The harbour of Lund was built in 1821, when the fishing villages along the coast had outgrown their
beaches. For sixty years it held nothing larger than a herring boat. Then the railway came, and with it
timber from the north. In 1887 the first steamship tied up at the new stone pier, and the town doubled
its population within a decade. The old lighthouse, which had burned whale oil, was given an electric
lamp in 1902. A storm in the winter of 1911 took the roof of the customs house and sank eleven boats.
After the war the timber trade moved to larger ports, and the harbour went quiet. Today it is used by
pleasure boats and by a ferry that runs to the islands four times a day. The customs house is a museum,
and the lighthouse is still lit every evening at dusk."""

TASKS = {
    "code edit": f"Repeat this Python file, but rename the method `total` to `count_all`.\n\n{CODE}",
    "quotes": f"Quote the five most important sentences of this article, word for word.\n\n{ARTICLE}",
    "story": "Write a short story about a cat that lives in a lighthouse.",
}


def turn(model: lowbit.Model, text: str, tokens: int, options: dict[str, Any], forget: bool = True) -> dict[str, Any]:
    """Make one text, with nothing known of it; seconds of the wall without the prompt."""
    decoder = model._decoder
    decoder.pool.clear()
    if model._draft is not None:
        model._draft.pool.clear()
    if forget:
        decoder.texts = EarlierTexts(1 << 16)
    proposed, accepted = decoder.proposed, decoder.accepted
    start = time.perf_counter()
    if model.info()["chat_template"]:
        out = model.chat([{"role": "user", "content": text}], max_tokens=tokens, **options)
    else:
        out = model.generate(text, max_tokens=tokens, **options)
    seconds = time.perf_counter() - start - out.timings.first_token_seconds
    return {"tokens": out.tokens, "rate": (len(out.tokens) - 1) / seconds, "proposed": decoder.proposed - proposed,
            "accepted": decoder.accepted - accepted}  # fmt: skip


def compare(model: lowbit.Model, text: str, args: argparse.Namespace, sampling: dict[str, Any]) -> dict[str, Any]:
    """The ways in turns."""
    ways: dict[str, tuple[dict[str, Any], bool]] = {"plain": ({"speculate": False}, True)}
    ways |= {"draft": ({}, True)} if model._draft is not None else {"speculate": ({"speculate": True}, True)}
    if args.repeated:
        ways["repeated"] = {"speculate": True}, False
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(args.rounds + 1):
        for way, (options, forget) in ways.items():
            found[way].append(turn(model, text, args.tokens, {**sampling, **options}, forget))
            assert found[way][-1]["tokens"] == found["plain"][0]["tokens"], "the texts differ"
    found = {way: turns[1:] for way, turns in found.items()}  # the first wakes up threads and page cache
    rate = {way: statistics.median(one["rate"] for one in turns) for way, turns in found.items()}
    return {
        "tokens": len(found["plain"][-1]["tokens"]), "rate": rate,
        **{way: {"ratio": statistics.median(a["rate"] / b["rate"] for a, b in zip(turns, found["plain"])),
                 "proposed": turns[-1]["proposed"], "accepted": turns[-1]["accepted"]}
           for way, turns in found.items() if way != "plain"},
    }  # fmt: skip


def grow(source: str, layers: int, path: Path) -> None:
    """Write a model with further layers whose outputs are zero."""
    with open_model(source) as file, GGUFWriter(path, file.architecture) as out:
        blocks = file.metadata[f"{file.architecture}.block_count"]
        for key, value in file.metadata.items():
            if key.endswith(".block_count"):
                out.add_metadata(key, layers, "u32")
            elif key != "general.architecture":
                out.add_metadata(key, value)
        wanted = {name: name for name in file.tensors if not name.startswith("blk.")}
        for i in range(layers):
            prefix = f"blk.{i % blocks}."
            wanted |= {f"blk.{i}.{name[len(prefix) :]}": name for name in file.tensors if name.startswith(prefix)}
        for name, origin in wanted.items():
            out.add_tensor_info(name, file.tensors[origin].type, file.tensors[origin].shape)
        out.write_header()
        for name, origin in wanted.items():
            data = np.array(file.read(origin))
            new = name.startswith("blk.") and int(name.split(".")[1]) >= blocks
            if new and name.endswith(("attn_output.weight", "ffn_down.weight")):
                data = zeros(data, file.tensors[origin].type)
            out.write_tensor(name, data)


def zeros(data: np.ndarray, kind: str) -> np.ndarray:
    """The same blocks with a scale of zero."""
    block, at = {"TQ2_0": (66, 64), "Q8_0": (34, 0), "F32": (4, 0), "F16": (2, 0)}[kind]
    raw = data.view(np.uint8).reshape(-1, block).copy()
    raw[:, at : at + (2 if block > 4 else block)] = 0
    return raw.reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--max-ram")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--text", help="one text to continue, in place of the tasks")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.8])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeated", action="store_true")
    parser.add_argument("--grow", type=int, metavar="LAYERS")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    if args.grow:
        grow(args.model, args.grow, args.out)
        return
    model = lowbit.load(args.model, draft=args.draft, weights=args.weights, threads=args.threads, max_ram=args.max_ram)
    texts = {"text": args.text} if args.text else {name: TASKS[name] for name in args.tasks}
    record: dict[str, Any] = {"uptime": os.getloadavg(), "isa": lowbit.isa.active(), "threads": model._decoder.threads}
    for name, text in texts.items():
        for temperature in args.temperatures:
            record[f"{name}, temperature {temperature:g}"] = compare(
                model, text, args, {"temperature": temperature, "seed": 1}
            )
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
