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


def test_a_text_longer_than_the_context_is_scored_in_windows(stories, test_data):
    import lowbit

    path = test_data / "models/stories260K.bin"
    whole, short = lowbit.load(path), lowbit.load(path, context=96)
    text = "\n\n".join(stories[:3])
    ids = whole.tokenizer.encode(text, add_bos=True)
    assert len(ids) > 2 * 96
    for stride in (1, 40, 48, 96):
        nats, scored, start = 0.0, 0, 0
        while scored < len(ids) - 1:  # by hand: each window alone, and of it what is new
            window = ids[start : min(start + 96, len(ids) - 1)]
            logits = short.logits(window).astype("float64")
            for i in range(max(scored - start, 0), len(window)):
                top = logits[i].max()
                nats += top + math.log(sum(math.exp(v - top) for v in logits[i])) - logits[i][ids[start + i + 1]]
            scored, start = start + len(window), start + stride
        score = short.perplexity(text, stride=stride)
        assert score.tokens == len(ids) - 1
        assert score.nats_per_token == pytest.approx(nats / (len(ids) - 1), rel=1e-9)
    assert short.perplexity(text) == short.perplexity(text, stride=48)
    assert short.perplexity(text, stride=1).nats_per_token < short.perplexity(text, stride=96).nats_per_token
    for wrong in (0, 97, True, 1.5):
        with pytest.raises(ValueError, match="stride"):
            short.perplexity(text, stride=wrong)
