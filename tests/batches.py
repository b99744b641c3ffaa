"""Batches for the tests: lines, what becomes of them, and the command."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from pathlib import Path

HEROES = ("fox", "girl", "boy", "dog", "bear", "duck", "cat")
PLACES = ("a forest", "a house", "a garden", "a cave")


def write_lines(path: Path, n: int, tokens: int, seed: int, wrong: bool = True) -> None:
    """Write a batch of all kinds of lines, some of which cannot be answered."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            begin = f"Once upon a time there was a little {rng.choice(HEROES)} who lived in {rng.choice(PLACES)}."
            url, body = (
                ("embeddings", {"input": f"{begin} {i}"}) if i % 8 == 7 else
                ("completions", {"prompt": f"{begin} Day {i}", "max_tokens": rng.randint(1, tokens)}) if i % 2 else
                ("chat/completions", {"messages": [{"role": "user", "content": f"{begin} Tell me {i}."}],
                                      "max_tokens": rng.randint(1, tokens)})
            )  # fmt: skip
            if i % 5 == 0 and url != "embeddings":
                body["seed"] = i
            line = json.dumps({"custom_id": f"line-{i}", "method": "POST", "url": f"/v1/{url}", "body": body})
            if wrong and i % 200 == 199:
                line = (line[:-2], line.replace(f"line-{i}", "line-0"), line.replace('"POST"', '"GET"'))[i // 200 % 3]
            file.write(line + "\n")


def command(*arguments: object) -> list[str]:
    """Return the command line of a batch."""
    return [sys.executable, "-m", "lowbit", "batch", *map(str, arguments)]


def answers_of(path: Path) -> list[bytes]:
    """Return the lines of an output but for its header, in order of their keys."""
    return sorted(path.read_bytes().splitlines()[1:])


class Folder:
    """A folder with a batch, and its output."""

    def __init__(self, path):
        self.path = path
        self.input, self.output, self.failed = (path / name for name in ("in.jsonl", "out.jsonl", "out.failed.jsonl"))

    def write(self, *lines):
        """Make the input of requests, or of lines as they are."""
        self.input.write_bytes(b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        ))  # fmt: skip

    def run(self, *arguments):
        """Run the command in this process; return its status and what it says."""
        from lowbit.cli import main

        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(["batch", *map(str, (self.input, "-o", self.output, "-t", 1, *arguments))])
        return status, said.getvalue()

    def command(self, *arguments):
        """Return the command line that does the same."""
        return command(self.input, "-o", self.output, "-t", 1, *arguments)

    def answers(self):
        """The answers by their ids."""
        lines = [json.loads(line) for line in self.output.read_bytes().splitlines()[1:]]
        found = {line["custom_id"]: line["response"]["body"] for line in lines}
        assert len(found) == len(lines)
        return found

    def failures(self):
        """The failures, by the numbers of their lines."""
        lines = [json.loads(line) for line in self.failed.read_bytes().splitlines()[1:]]
        found = {line["line"]: line for line in lines}
        assert len(found) == len(lines)
        return found


def chat(name, text="Hello", **more):
    """A line that asks for an answer."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def completion(name, prompt="Once upon a time", **more):
    """A line that asks for a continuation."""
    body = {"prompt": prompt, "max_tokens": 8, **more}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


def embedding(name, text="Once upon a time"):
    """A line that asks for a vector."""
    return {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"input": text}}
