"""Valid files, broken in the terms of their format, load or raise one clear error: the targets of atheris, too."""

from __future__ import annotations

import random

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = {"tokenizer_model": 100, "gguf_tokenizer": 100}
"""For parsers that hand a vocabulary to another library, which takes its time; 200 for others."""


@pytest.fixture(params=targets.TARGETS)
def target(request):
    if request.param in ("gguf_tokenizer", "tokenizer_json", "tiktoken"):
        pytest.importorskip("tokenizers.models")
    return request.param


def test_unbroken_files_are_taken(target, tmp_path):
    for content in targets.TARGETS[target].valid:
        assert targets.check(targets.TARGETS[target], tmp_path, content)


def test_broken_files_load_or_raise_one_clear_error(target, tmp_path):
    @settings(max_examples=EXAMPLES.get(target, 200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.randoms(use_true_random=False))
    def broken(source):
        targets.check(targets.TARGETS[target], tmp_path, targets.TARGETS[target].broken(source.randrange))

    broken()


def test_mutations_reach_what_lies_behind_the_first_check(target, tmp_path):
    # Were every broken file refused, the rest of the parser and what uses it would never be run.
    taken = 0
    for seed in range(120):
        content = targets.TARGETS[target].broken(random.Random(seed).randrange)
        taken += targets.check(targets.TARGETS[target], tmp_path, content)
    assert 2 <= taken <= 100
