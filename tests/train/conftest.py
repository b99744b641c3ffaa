"""Tiny corpora and models that train in seconds, in one thread and without compilation."""

from __future__ import annotations

import random

import pytest

from lowbit.tokenizers import from_gguf_metadata
from lowbit.train.corpus import encode
from lowbit.train.vocabulary import train_vocabulary

TINY = {"hidden_size": 64, "intermediate_size": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "context_length": 32}
"""With a vocabulary of 512: 57,600 parameters."""


@pytest.fixture
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stories():
    """Three hundred short documents that a tiny model can learn."""
    draw = random.Random(1)
    who = ["Lily", "Tom", "Ben", "Mia", "the cat", "the dog", "a bird", "a frog", "grandma", "Jack", "Sara", "a rabbit"]
    what = [
        "found a red ball",
        "went to the park",
        "saw a big tree",
        "ate an apple",
        "sang a song",
        "lost a shoe",
        "climbed the ladder",
        "baked some cookies",
        "painted a yellow flower",
        "jumped over puddles",
        "helped a friend",
        "drew a picture with crayons",
    ]
    feel = ["happy", "sad", "tired", "very proud", "scared", "hungry", "surprised", "curious"]
    return [
        f"Once upon a time, {draw.choice(who)} {draw.choice(what)}.\nThen {draw.choice(who)} {draw.choice(what)} too. "
        f"They were {draw.choice(feel)}."
        for _ in range(300)
    ]


@pytest.fixture(scope="session")
def vocabulary(stories):
    return train_vocabulary(stories, 512)


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return from_gguf_metadata(vocabulary, "test")


@pytest.fixture(scope="session")
def documents(stories, tokenizer):
    return encode(stories, tokenizer)


@pytest.fixture
def make_model(tokenizer, one_thread):
    import torch

    from lowbit.train.model import BitNet, BitNetShape

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return BitNet(BitNetShape(tokenizer.vocab_size, **{**TINY, **changes}))

    return make
