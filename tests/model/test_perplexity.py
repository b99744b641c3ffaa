"""Scores of the real models on the validation stories equal those of the oracle."""

from __future__ import annotations

import math
import re

import pytest

FIRST_WORDS = r"\n\s*\n(?=Once upon a time|One day|Once there|There once|In a |A long)"


@pytest.fixture(scope="module")
def stories(test_data):
    """The first 60 whole stories of 201 to 1,099 characters; the first piece may begin anywhere, so it is dropped."""
    text = (test_data / "corpora/tinystories/valid.txt").read_text("utf-8")
    pieces = [piece.strip() for piece in re.split(FIRST_WORDS, text)[1:]]
    return [piece for piece in pieces if 200 < len(piece) < 1100][:60]


def test_the_stories_are_those_that_the_oracle_scored(stories):
    assert len(stories) == 60
    assert sum(len(story.encode()) for story in stories) == 37179


@pytest.mark.parametrize(
    ("file", "nats_per_token", "bits_per_byte"),
    [
        ("stories260K.bin", 1.2982, 0.8875),
        ("tinystories-3m.F32.gguf", 1.1994, 0.8199),
        ("tinystories-3m.TQ2_0.gguf", 1.1994, 0.8199),
        ("tinystories-3m.I2_S.gguf", 1.1994, 0.8199),
    ],
)
def test_scores_are_the_oracles(stories, real_model, file, nats_per_token, bits_per_byte):
    model = real_model(file, 2)
    scores = [model.perplexity(story) for story in stories]
    tokens = sum(score.tokens for score in scores)
    nats = sum(score.nats_per_token * score.tokens for score in scores)
    assert tokens == 17618
    assert nats / tokens == pytest.approx(nats_per_token, rel=1e-3)
    assert nats / math.log(2) / 37179 == pytest.approx(bits_per_byte, rel=1e-3)


def test_one_text_has_three_ways_to_say_its_score(stories, real_model):
    score = real_model("stories260K.bin").perplexity(stories[0])
    assert score.perplexity == pytest.approx(math.exp(score.nats_per_token))
    bits = score.nats_per_token * score.tokens / math.log(2)
    assert score.bits_per_byte == pytest.approx(bits / len(stories[0].encode()))
