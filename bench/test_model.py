"""Prefill and decode of whole models, per instruction set, one thread."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from subject import Subject

from lowbit import isa
from lowbit.benchmark import RandomModel
from lowbit.formats import open_model

PROMPT, TOKENS = 128, 32
REAL = ["stories260K.bin", "tinystories-3m.TQ2_0.gguf", "tinystories-3m.I2_S.gguf"]


def folder() -> Path:
    """Where the real models are."""
    if "LOWBIT_TEST_DATA" not in os.environ:
        pytest.skip("LOWBIT_TEST_DATA is not set: no real models")
    return Path(os.environ["LOWBIT_TEST_DATA"]) / "models"


@lru_cache(maxsize=1)
def subject(name: str) -> Subject:
    """A model with room for the prompt and the tokens."""
    if name == "random 13M":
        return Subject(RandomModel("13M"), PROMPT + TOKENS, 1)
    with open_model(folder() / name) as file:
        return Subject(file, PROMPT + TOKENS, 1)


def prompt(model: Subject) -> list[int]:
    """The same tokens for every instruction set."""
    return np.random.default_rng(1).integers(3, model.config.vocab_size, PROMPT).tolist()


@lru_cache(maxsize=2)
def expected(name: str, under_test: str) -> tuple[int, list[int]]:
    """What another instruction set gives for the prompt: the next token, and the decoded ones."""
    isa.use(next((other for other in reversed(isa.available()) if other != under_test), under_test))
    model = subject(name)
    return model.prefill(prompt(model))[1], model.decode(TOKENS)[1][0]


@pytest.mark.benchmark(min_rounds=3, max_time=0.5)
@pytest.mark.parametrize("kind", isa.available())
@pytest.mark.parametrize("what", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["random 13M", *REAL])
def test_model(benchmark: Any, name: str, what: str, kind: str) -> None:
    model = subject(name)
    next_token, tokens = expected(name, kind)
    isa.use(kind)
    seen = model.prefill(prompt(model))[1]
    assert seen == next_token
    benchmark.group = f"{what} {PROMPT if what == 'prefill' else TOKENS} of {name}"
    if what == "prefill":
        count = PROMPT
        assert benchmark(lambda: model.prefill(prompt(model))[1]) == next_token
    else:
        count = TOKENS
        assert benchmark(lambda: model.decode(TOKENS)[1][0]) == tokens
    benchmark.extra_info.update(
        engine=f"lowbit {kind}", model=name, what=what, correct=True, ids=tokens if what == "decode" else [next_token],
        tokens_per_second=count / benchmark.stats.stats.min,
    )  # fmt: skip


@pytest.mark.parametrize("kind", isa.available())
@pytest.mark.parametrize("name", REAL)
def test_real_models_decode_the_golden_ids(name: str, kind: str) -> None:
    golden = json.loads((folder() / "golden.json").read_text())["greedy"][name.split(".")[0]]["greedy_ids"]
    model = subject(name)
    isa.use(kind)
    n = len(golden) // 2
    model.prefill(golden[: n - 1])
    model.prompts[0].append(golden[n - 1])
    assert model.decode(len(golden) - n)[1][0] == golden[n:]
