"""Texts that go on where the context is full: each token is what would follow a prompt of what was kept."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import write_small_model

import lowbit
from lowbit.engine import engine
from lowbit.engine.sequence import State

CONTEXT = 24
LETTERS = {"temperature": 2.0, "top_k": 0, "top_p": 1.0}
"""What makes the small model write anything."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("shift") / "small.gguf", 512)


@pytest.fixture(scope="module")
def model(path):
    return lowbit.load(path, context=CONTEXT, threads=1)


def kept(tokens, bos):
    """BOS and the newer half of the tokens after it; of an odd number one more goes than stays."""
    rest = tokens[bos:]
    return tokens[:bos] + rest[(len(rest) + 1) // 2 :]


def by_hand(model, prompt, n, **settings):
    """The same text, of many that end with the context."""
    tokens, made = prompt, []
    while len(made) < n:
        out = model.generate(tokens, max_tokens=n - len(made), **settings)
        made += out.tokens
        tokens = kept(tokens + out.tokens, tokens[0] == 1)
        if out.finish_reason == "stop":
            break
    return made


@pytest.mark.parametrize("prompt", [[1, 270, 271], [270, 271], [1, *range(260, 260 + CONTEXT - 1)], [1]], ids=len)
@pytest.mark.parametrize("n", [5, CONTEXT, 100])
def test_a_greedy_text_is_that_of_prompts_of_what_was_kept(model, prompt, n):
    out = model.generate(prompt, max_tokens=n, temperature=0, context_shift=True)
    assert out.tokens == by_hand(model, prompt, n, temperature=0)
    assert (len(out.tokens), out.finish_reason) in ((n, "length"), (len(out.tokens), "stop"))
    assert (out.left_out > 0) == (len(prompt) + len(out.tokens) > CONTEXT + 1)
    assert out.prompt_tokens == len(prompt)


def test_a_drawn_text_has_the_logits_of_what_was_kept(model, path):
    """Also with penalties, which go on, and whoever else is in the batch."""
    for seed in range(20):
        out = model.generate([1, 270], max_tokens=90, seed=seed, logprobs=3, context_shift=True, **LETTERS)
        if len(out.tokens) == 90:
            break
    assert len(out.tokens) == 90
    tokens = [1, 270]
    for token, one in zip(out.tokens, out.logprobs):
        if len(tokens) == CONTEXT + 1:
            tokens = kept(tokens, 1)
        logits = model.logits(tokens)[-1].astype(np.float64)
        want = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert (one.token, round(one.logprob, 5)) == (token, round(want[token], 5))
        tokens.append(token)
    assert 92 - out.left_out == len(tokens)
    settings = {"seed": [seed, 3], "max_tokens": 90, "context_shift": True, "repeat_penalty": 1.3, **LETTERS}
    both = model.generate([[1, 270], [1, 280, 281]], **settings)
    alone = [model.generate([ids], **{**settings, "seed": [one.seed]})[0].tokens
             for ids, one in zip([[1, 270], [1, 280, 281]], both)]  # fmt: skip
    assert [one.tokens for one in both] == alone
    for other in (lowbit.load(path, context=CONTEXT, threads=2, draft=path), lowbit.load(path, context=CONTEXT)):
        assert [one.tokens for one in other.generate([[1, 270], [1, 280, 281]], speculate=True, **settings)] == alone


def test_a_stream_gives_the_text_and_stops_work_across_the_border(model):
    settings = {"max_tokens": 80, "temperature": 0, "context_shift": True}
    out = model.generate("abc", **settings)
    assert out.left_out
    assert "".join(model.stream("abc", **settings)) == out.text
    border = CONTEXT + 1 - out.prompt_tokens
    stop = lowbit.load_tokenizer(model.info()["path"]).decode(out.tokens[border - 2 : border + 2])
    short = model.generate("abc", stop=stop, **settings)
    assert short.text == out.text.partition(stop)[0]
    assert short.finish_reason == "stop"


def test_without_it_the_context_ends_the_text(model):
    out = model.generate([1, 270], max_tokens=80, temperature=0)
    assert (out.finish_reason, out.left_out, len(out.tokens)) == ("context", 0, CONTEXT - 1)


def test_a_text_that_is_set_aside_behind_the_border_is_the_same(model, monkeypatch):
    asked = {"seed": 1, "max_tokens": 300, "context_shift": True, "logit_bias": {1: -1000, 2: -1000}, **LETTERS}
    want = model.generate([1, 270], **asked).tokens
    aside = []

    def step(self, of=lowbit.Engine._step):
        for request in self._running:
            if request.state is State.DECODE and len(request.ids) + request.made > 2 * CONTEXT:
                aside.append(request.made)
                request.set_aside()
        return of(self)

    monkeypatch.setattr(engine, "BURST_STEPS", 3)
    monkeypatch.setattr(lowbit.Engine, "_step", step)
    assert model.generate([1, 270], **asked).tokens == want
    assert len(want) == 300
    assert len(aside) > 50


def test_where_it_would_not_be_honest_it_is_refused(model, path):
    with pytest.raises(lowbit.ContextLengthError, match="at least 4 tokens, not 3"):
        lowbit.load(path, context=3).generate([1], context_shift=True)
    pytest.importorskip("llguidance", reason="constraints need the extra 'serve'")
    with pytest.raises(ValueError, match="no schema"):
        model.generate("a", regex="a+", context_shift=True)
