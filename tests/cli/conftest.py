"""A model that records what it is asked for, and two ways to run a command: in this process, and as a user does."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import lowbit
from lowbit import cli


class RecordingTokenizer:
    """One token per byte, after a begin-of-text token."""

    vocab_size = 257

    def encode(self, text, add_bos=None, parse_special=False):
        self.options = {"add_bos": add_bos, "parse_special": parse_special}
        return [256] * (add_bos is not False) + list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def piece(self, i):
        return "<s>" if i == 256 else chr(i)


class RecordingModel:
    """Continues every prompt with the same text, and keeps the arguments of the last call."""

    pieces = ("Ärger", " — ", "日本\n", "\N{PILE OF POO}")

    def __init__(self):
        self.tokenizer = RecordingTokenizer()
        self.scored = []

    def _generation(self):
        timings = SimpleNamespace(
            load_seconds=0.25,
            prompt_tokens=5,
            reused_tokens=0,
            prompt_seconds=0.5,
            decode_tokens=4,
            decode_seconds=2.0,
            first_token_seconds=0.6,
            prefill_tps=10.0,
            decode_tps=2.0,
        )
        return SimpleNamespace(
            text="".join(self.pieces),
            tokens=[1, 2, 3, 4],
            prompt_tokens=5,
            finish_reason="length",
            timings=timings,
            logprobs=None,
            left_out=0,
        )

    def generate(self, prompt, **sampling):
        self.prompt, self.sampling = prompt, sampling
        return self._generation()

    def stream(self, prompt, **sampling):
        self.prompt, self.sampling = prompt, sampling
        yield from self.pieces
        return self._generation()

    def perplexity(self, text, stride=None):
        """A nat per token for the first text, two for the second and so on; one token per byte."""
        self.scored.append(text)
        return SimpleNamespace(nats_per_token=float(len(self.scored)), tokens=len(text.encode()))

    def info(self):
        return {"path": "a.gguf", "parameters": 1234567, "types": {"TQ2_0": 4, "F32": 9}, "name": "A\x1b[0m"}


@pytest.fixture
def model(monkeypatch):
    """Make `lowbit.load` return a RecordingModel, which remembers how it was loaded."""
    model = RecordingModel()

    def load(path=None, **options):
        model.path, model.options = path, options
        return model

    monkeypatch.setitem(vars(lowbit), "load", load)
    monkeypatch.setitem(vars(lowbit), "load_tokenizer", lambda path: load(path).tokenizer)
    monkeypatch.setattr("lowbit.loading.inspection.inspect_file", lambda path=None, tokenizer=None: load(path).info())
    return model


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; return exit status, standard output and standard error."""

    def run(*argv, stdin=None):
        data = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", data)
        status = cli.main(list(argv))
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def lowbit_command():
    """Run a command in a process of its own, with bytes in and bytes out."""

    def command(*argv, stdin=b"", **environment):
        return subprocess.run(
            [sys.executable, "-m", "lowbit", *argv],
            input=stdin,
            capture_output=True,
            env={**os.environ, **environment},
            timeout=1200,
            check=False,
        )

    return command
