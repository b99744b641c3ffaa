"""Train a tiny ternary model in at most five minutes, export it, and let it tell a story with lowbit.

Usage: python examples/train_demo.py [FOLDER] [MINUTES]      (default: build/train-demo, 5; needs lowbit[train])

The text is generated here, or read from corpora/tinystories in the folder that LOWBIT_TEST_DATA names.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path

import torch

import lowbit
from lowbit.train.loop import Schedule
from lowbit.train.model import BitNet, BitNetShape
from lowbit.train.project import Project, compute_type, train
from lowbit.train.speed import training_speed

SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "context_length": 128,
}  # fmt: skip
BATCH = 1024
MOST_STEPS = 2500  # beyond this the small text is known
SHARE = 0.7  # of the time is for training; the rest for vocabulary, measuring, export and a busy machine

PEOPLE = [
    ("Lily", "she"),
    ("Tom", "he"),
    ("Mia", "she"),
    ("Ben", "he"),
    ("Anna", "she"),
    ("Max", "he"),
    ("Sara", "she"),
]
FRIENDS = ["a small bird", "an old dog", "a green frog", "a shy cat", "a little mouse", "a kind bear", "a quick rabbit"]
PLACES = ["the park", "the garden", "the forest", "the beach", "the farm", "the river", "the big hill"]
THINGS = ["a red ball", "a shiny key", "a blue kite", "a yellow boat", "a warm hat", "a sweet apple", "a round stone"]
WISHES = ["play with it", "show it to a friend", "take it home", "find out whose it was", "keep it safe"]
TROUBLES = [
    "a strong wind took it away", "it fell into a deep hole", "it rolled under a tree", "it got lost in the tall grass",
    "it was stuck on a high branch",
]  # fmt: skip
HELP = ["looked everywhere", "ran as fast as the wind", "dug with both hands", "climbed up very slowly", "had an idea"]
LESSONS = [
    "friends help each other", "it is good to be kind", "sharing makes everyone happy", "we must never give up",
    "it is fine to ask for help",
]  # fmt: skip


def tell(draw: random.Random) -> str:
    """Make up one story."""
    (name, pronoun), friend, place, thing = map(draw.choice, (PEOPLE, FRIENDS, PLACES, THINGS))
    it, opening = pronoun.capitalize(), draw.choice(["Once upon a time", "One day", "One sunny morning", "Long ago"])
    short = friend.split(" ", 1)[1]
    return (
        f"{opening}, {name} went to {place}. {it} found {thing} and wanted to {draw.choice(WISHES)}. "
        f"But then {draw.choice(TROUBLES)}. {name} was very sad.\n\n"
        f'"Do not cry," said {friend}. "I will help you." The {short} {draw.choice(HELP)} and found {thing}. '
        f'"Thank you!" said {name}. {it} and the {short} played in {place} all day.\n\n'
        f"In the evening {name} told everyone at home: {draw.choice(LESSONS)}. The end."
    )


def corpus(folder: Path) -> Path:
    """Return a text to train on."""
    given = os.environ.get("LOWBIT_TEST_DATA")
    found = Path(given, "corpora", "tinystories", "train.txt") if given else None
    if found and found.is_file():
        return found
    draw, made = random.Random(0), folder / "stories.txt"
    made.write_text("\n<|endoftext|>\n".join(tell(draw) for _ in range(3000)), encoding="utf-8")
    return made


def main(folder: Path, minutes: float) -> None:
    """Train within the time, then generate."""
    begun = time.monotonic()
    torch.set_num_threads(1)  # so small a model gains little from two, and loses much if the machine is busy
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text, output = corpus(folder), folder / "demo.gguf"
    model = BitNet(BitNetShape(512, **SHAPE), compute_type("auto", "cpu"))
    speed = training_speed(model, BATCH, BATCH, 128, steps=2)
    seconds = SHARE * (60 * minutes - (time.monotonic() - begun))
    steps = max(5, min(MOST_STEPS, int(seconds * speed / BATCH)))
    print(f"{speed:,.0f} tokens/s on this machine: {steps} steps of {BATCH} tokens from {text}", file=sys.stderr)
    train(
        Project(
            corpus=[str(text)],
            output=output,
            schedule=Schedule(steps, BATCH, BATCH, window=128, learning_rate=4e-3),
            vocab_size=512,
            shape=SHAPE,
            compile=False,  # compiling takes longer than it saves here
            ternary_type="I2_S",
            measure_every=500,
            name="lowbit train demo",
        )
    )
    prompt = "One day"
    story = lowbit.load(output).generate(prompt, max_tokens=100, temperature=0.7, seed=1).text
    print(f"{prompt}{story}")
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes; loss curve and samples: {output}.train")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/train-demo"), float(sys.argv[2] if len(sys.argv) > 2 else 5))
