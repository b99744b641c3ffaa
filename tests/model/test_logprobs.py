"""Log-probabilities of generated tokens: those of the model itself, and the text stays what it was."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lowbit
from lowbit.engine.text import LogprobRecorder

SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "repeat_penalty": 1.3, "seed": 6},
]


def expected(model, prompt, out):
    """Log-probabilities at each place of the generated tokens, float64, shape (n, vocab_size)."""
    logits = model.logits([*prompt, *out.tokens])[len(prompt) - 1 : -1].astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )


@pytest.mark.parametrize("sampling", SETTINGS)
def test_logprobs_are_those_of_the_model_and_change_no_token(embedded, sampling):
    prompt = embedded.tokenizer.encode("Once upon a time")
    plain = embedded.generate(prompt, max_tokens=24, **sampling)
    out = embedded.generate(prompt, max_tokens=24, logprobs=5, **sampling)
    assert (out.tokens, out.text, out.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    assert plain.logprobs is None
    assert len(out.logprobs) == len(out.tokens)
    for token, one, scores in zip(out.tokens, out.logprobs, expected(embedded, prompt, out)):
        assert one.token == token
        assert one.logprob == pytest.approx(scores[token], abs=1e-9)
        best = np.argsort(-scores, kind="stable")[:5]
        assert [i for i, _, _ in one.top] == best.tolist()
        assert [p for _, _, p in one.top] == pytest.approx(scores[best].tolist(), abs=1e-9)


def test_all_tokens_together_have_probability_one(scripted):
    out = scripted("bc").generate("a", max_tokens=1, temperature=0, logprobs=100)
    assert len(out.logprobs[0].top) == 100
    [one] = scripted("bc").generate("a", max_tokens=1, temperature=0, logprobs=1).logprobs
    assert one.top == ((one.token, one.piece, one.logprob),)
    assert one.piece == "b"
    # one logit of 10 * sqrt(n) apart from zeros: the one channel of an RMS-normed one-hot vector
    assert math.exp(one.logprob) > 0.99


def test_the_token_that_ends_a_text_has_no_entry(scripted):
    out = scripted("bc").generate("a", max_tokens=8, temperature=0, logprobs=0)
    assert out.text == "bc"
    assert out.finish_reason == "stop"
    assert [(one.piece, one.top) for one in out.logprobs] == [("b", ()), ("c", ())]


def test_control_tokens_have_their_names_and_parts_of_characters_a_replacement(scripted):
    model = scripted("é")
    out = model.generate("a", max_tokens=8, temperature=0, logprobs=1)
    assert [one.piece for one in out.logprobs] == ["\ufffd", "\ufffd"]
    recorder = LogprobRecorder(model.tokenizer, 2)
    logits = np.zeros(model.config.vocab_size, np.float32)
    logits[[2, 259]] = 7, 8
    assert [piece for _, piece, _ in recorder(0, logits).top] == [" ", "</s>"]


def test_of_equally_likely_tokens_the_lower_ids_are_reported():
    logits = np.zeros(50, np.float32)
    logits[[30, 7]] = 1
    assert [token for token, _, _ in LogprobRecorder(None, 4)(0, logits).top] == [7, 30, 0, 1]


def test_a_list_of_prompts_gets_them_too(embedded):
    prompts = ["Once upon a time", "One day, a dog"]
    alone = [embedded.generate(p, max_tokens=6, seed=2, logprobs=2) for p in prompts]
    assert [(o.tokens, o.logprobs) for o in embedded.generate(prompts, max_tokens=6, seed=[2, 2], logprobs=2)] == [
        (o.tokens, o.logprobs) for o in alone
    ]


def test_a_model_without_a_tokenizer_reports_ids(write_llama):
    out = lowbit.load(write_llama(), threads=1).generate([1, 2], max_tokens=3, temperature=0, logprobs=20)
    assert {len(one.top) for one in out.logprobs} == {16}
    assert sum(math.exp(p) for _, _, p in out.logprobs[0].top) == pytest.approx(1.0)
    assert {piece for _, piece, _ in out.logprobs[0].top} == {""}


@pytest.mark.parametrize("wrong", [-1, 101, 2.5, True, "5"])
def test_counts_out_of_range_are_refused(embedded, wrong):
    with pytest.raises(ValueError, match="logprobs must be a whole number from 0 to 100"):
        embedded.generate("Once", logprobs=wrong)
