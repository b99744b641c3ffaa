"""A random model with a tokenizer, small enough for hundreds of schedules, and what each request gets alone."""

from __future__ import annotations

import pytest
from small_model import write_small_model

import lowbit

CONTEXT = 320


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """See `write_small_model`."""
    return write_small_model(tmp_path_factory.mktemp("engine") / "small.gguf", CONTEXT)


@pytest.fixture
def load(path):
    """Load the model."""
    return lambda **options: lowbit.load(path, **{"threads": 1, **options})


@pytest.fixture
def model(load):
    return load()
