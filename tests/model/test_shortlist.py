"""The output head where only the likeliest tokens matter: they are exact, and the text is the same."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit._kernels.decoder import Batch
from lowbit._kernels.sampler import Sampler
from lowbit._kernels.sequence import Sequence
from lowbit.errors import FormatError
from lowbit.loading.load import is_worth_shortening

VOCAB = 16384
PROMPT = np.array([5, 77, 1999, 3, 1200], np.int32)


@pytest.fixture
def load(write_llama):
    """Load a model with a large head, with a shortlist of it or without."""
    path = write_llama(kind="Q8_0", vocab=VOCAB, hidden=64, wide=96, keys={"context_length": 256})

    def one(shortened):
        model = lowbit.load(path, threads=1)
        if shortened:
            model._decoder.shorten(model._decoder.weights.output)
        return model

    return one


def step(decoder, want, temperature, top_k, **more):
    """Logits that the first token was chosen from, and the token."""
    settings = {"repeat_penalty": 1.0, "logit_bias": None, **more}
    sampler = Sampler(VOCAB, temperature, top_k, 1.0, 0.0, settings["repeat_penalty"], 9,
                      logit_bias=settings["logit_bias"])  # fmt: skip
    sequence = Sequence(decoder.pool, PROMPT, 32, len(PROMPT), sampler, 30, reuse=False)
    batch = Batch(decoder)
    batch.add(sequence, len(PROMPT), want)
    decoder.step(batch)
    logits, token = decoder.logits[batch.place(0)][0].copy(), int(sequence.tokens()[-1])
    sequence.close()
    return logits, token


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (0.9, 1), (0.9, 5), (0.9, 40), (0.9, 64)])
def test_what_the_next_token_depends_on_has_the_same_bits(isa, load, temperature, top_k):
    want, token = step(load(False)._decoder, "last", temperature, top_k)
    decoder = load(True)._decoder
    got, same = step(decoder, "token", temperature, top_k)
    k = top_k or 1
    missing = got == -np.inf
    assert np.array_equal(got[~missing].view(np.uint32), want[~missing].view(np.uint32))
    assert not missing[want >= np.sort(want)[-k]].any()
    assert token == same
    if k < 64:
        assert missing.any()
        assert decoder.shortlist.made < decoder.shortlist.asked


@pytest.mark.parametrize(
    "more", [{"repeat_penalty": 1.1}, {"logit_bias": {7: 3.0}}, {"top_k": 65}, {"top_k": 0}, {"want": "last"}], ids=str
)
def test_all_logits_are_made_where_others_may_matter(load, more):
    settings = {"want": "token", "temperature": 0.9, "top_k": 40, **more}
    want, _ = step(load(False)._decoder, **{**settings, "want": "last"})
    got, _ = step(load(True)._decoder, **settings)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 3, "temperature": 1.5}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("speculate", [False, True])
def test_texts_are_the_same(load, options, speculate):
    options = {"max_tokens": 48, "seed": 4, "speculate": speculate, **options}
    shortened = load(True)
    assert shortened.generate(PROMPT, **options).tokens == load(False).generate(PROMPT, **options).tokens
    assert 0 < shortened._decoder.shortlist.made < shortened._decoder.shortlist.asked


def test_probabilities_come_from_all_logits(load):
    options = {"max_tokens": 8, "temperature": 0, "logprobs": 3}
    assert load(True).generate(PROMPT, **options).logprobs == load(False).generate(PROMPT, **options).logprobs


def test_only_heads_of_eight_bits_and_a_size_that_pays_get_one(load, write_llama):
    model = load(False)
    assert not is_worth_shortening(model._decoder.weights.output, model.config)  # small
    floats = lowbit.load(write_llama(kind="F32", name="floats.gguf"))._decoder
    with pytest.raises(FormatError, match="no sketch"):
        floats.shorten(floats.weights.output)
