"""A small model writes ahead: every text is the one that the large model writes alone."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
from small_model import write_small_model

import lowbit
from lowbit import Engine, FormatError, MemoryBudgetError, UnsupportedModelError
from lowbit.engine import State, sequence
from lowbit.engine.scheduler import MAX_DRAFT
from lowbit.engine.shadow import Shadow

LENGTH = Shadow.length
CONTEXT = 320
PROMPT = [1, *np.random.default_rng(2).integers(3, 280, 70).tolist()]
SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 4},
    {"temperature": 3.0, "seed": 1, "repeat_penalty": 1.3, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "seed": 2, "presence_penalty": 0.5, "frequency_penalty": 0.3, "min_p": 0.01},
    {"temperature": 1.0, "seed": 3, "logit_bias": {50: 5.0, 2: -1000.0}},
]


@pytest.fixture(scope="session")
def drafts(tmp_path_factory):
    """Models that always, mostly and never say the same as the small model, and one with little room."""
    folder = tmp_path_factory.mktemp("drafts")
    return {
        "same": write_small_model(folder / "same.gguf", CONTEXT),
        "near": write_small_model(folder / "near.gguf", CONTEXT, noise=0.01),
        "other": write_small_model(folder / "other.gguf", CONTEXT, noise=1.0),
        "short": write_small_model(folder / "short.gguf", 90),
    }


@pytest.fixture(autouse=True)
def always_worth(monkeypatch):
    """On models of this size no proposal pays; whether one is made must not depend on the clock."""
    monkeypatch.setattr(Shadow, "length", lambda shadow, most, row, token: (min(5, most), 99.0))


def same(found, want):
    return (found.tokens, found.text, found.finish_reason) == (want.tokens, want.text, want.finish_reason)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["same", "near", "other", "short"])
def test_every_text_is_what_it_is_without(load, drafts, kind, options):
    plain, model = load(), load(draft=drafts[kind])
    for n in (0, 1, 2, 40, 200):
        assert same(model.generate(PROMPT, max_tokens=n, **options), plain.generate(PROMPT, max_tokens=n, **options))
    assert model._draft.pool.held == 0
    assert model._draft.pool.sequences == ()


@pytest.mark.parametrize("options", SETTINGS[:3], ids=str)
def test_a_draft_that_says_the_same_is_always_right(load, drafts, options):
    """It draws with the same random numbers."""
    model = load(draft=drafts["same"])
    out = model.generate(PROMPT, max_tokens=200, logit_bias={1: -1000.0, 2: -1000.0}, **options)
    stats = model._engine.stats()
    assert stats["accepted_tokens"] > 0.75 * len(out.tokens)
    assert stats["proposed_tokens"] - stats["accepted_tokens"] <= MAX_DRAFT  # from the text, while the draft read it


@pytest.mark.parametrize("gain", [1.2, 99.0])
def test_several_texts_with_and_without_a_draft_share_steps(load, drafts, monkeypatch, gain):
    """With little gain what was said before is proposed as well."""
    monkeypatch.setattr(Shadow, "length", lambda shadow, most, row, token: (min(3, most), gain))
    model = load(draft=drafts["near"])
    asked = [
        {"max_tokens": 30 + 9 * i, "seed": i, "temperature": (0, 0.8, 2.0)[i % 3], "stop": ((), "a")[i % 2]}
        for i in range(10)
    ]
    want = [load().generate(PROMPT[: 20 + 5 * i], **options) for i, options in enumerate(asked)]
    with Engine(model, max_sequences=4, step_ms=0.02) as engine:
        streams = [
            engine.submit(PROMPT[: 20 + 5 * i], speculate=(None, False, True)[i % 3], cache_salt="ab"[i % 2], **options)
            for i, options in enumerate(asked)
        ]
        assert all(same(stream.result(), expected) for stream, expected in zip(streams, want))
        stats = engine.stats()
    assert 0 < stats["accepted_tokens"] <= stats["proposed_tokens"]
    assert model._draft.pool.held == model._decoder.pool.held == 0


def test_a_text_that_is_cancelled_in_the_middle_leaves_nothing_and_disturbs_nobody(load, drafts):
    want = load().generate(PROMPT, max_tokens=150, seed=7)
    model = load(draft=drafts["same"])
    engine = Engine(model, thread=False)
    others = [engine.submit(PROMPT[:30], max_tokens=200, seed=i) for i in range(3)]
    kept = engine.submit(PROMPT, max_tokens=150, seed=7)
    for _ in range(5):
        engine._drive()
    assert all(stream.state is State.DECODE for stream in others)
    for stream in others:
        stream.cancel()
    assert same(kept.result(), want)
    engine.settle()
    assert model._draft.pool.sequences == model._decoder.pool.sequences == ()


def test_a_stop_string_and_an_end_within_proposed_tokens_end_the_text(load, drafts):
    plain, model = load(), load(draft=drafts["same"])
    text = plain.generate(PROMPT, max_tokens=100, seed=5).text
    for i in range(3, 15):
        options = {"max_tokens": 100, "seed": 5, "stop": text[i : i + 2]}
        assert same(model.generate(PROMPT, **options), plain.generate(PROMPT, **options))
    for seed in range(12):  # the end token is likely
        options = {"max_tokens": 100, "seed": seed, "temperature": 1.5, "logit_bias": {2: 3.0}}
        assert same(model.generate(PROMPT, **options), plain.generate(PROMPT, **options))


def test_the_context_ends_within_proposed_tokens(load, drafts):
    plain, model = load(), load(draft=drafts["same"])
    for n in (CONTEXT - 5, CONTEXT - 1, CONTEXT):
        prompt = np.resize(PROMPT, n).tolist()
        assert same(model.generate(prompt, max_tokens=20, seed=1), plain.generate(prompt, max_tokens=20, seed=1))


def test_constrained_and_recorded_texts_are_made_without(load, drafts):
    pytest.importorskip("llguidance")
    plain, model = load(), load(draft=drafts["same"])
    options = {"json_schema": {"type": "array", "items": {"type": "integer"}}, "max_tokens": 60, "seed": 3}
    assert same(model.generate(PROMPT, **options), plain.generate(PROMPT, **options))
    recorded = model.generate(PROMPT, max_tokens=20, seed=3, logprobs=2)
    assert recorded.logprobs == plain.generate(PROMPT, max_tokens=20, seed=3, logprobs=2).logprobs
    assert model._engine.stats()["proposed_tokens"] == 0


def test_a_text_that_was_set_aside_goes_on(load, drafts):
    want = load().generate(PROMPT, max_tokens=60, seed=1)
    with mock.patch.object(sequence, "MOST_UNREAD", 4):
        model = load(draft=drafts["near"])
        engine = Engine(model, max_sequences=1, thread=False)
        unread = engine.submit(PROMPT, max_tokens=60, seed=1)
        for _ in range(12):
            engine._drive()
        assert engine.submit([1, 6], max_tokens=30, seed=2).result().tokens
        assert unread.state is State.QUEUED
        assert len(model._draft.pool.sequences) == 0
        assert same(unread.result(), want)


def test_a_draft_without_memory_left_is_done_without(load, drafts):
    model = load(draft=drafts["same"])
    model._draft.pool.resize(1, 1)
    assert same(model.generate(PROMPT, max_tokens=60, seed=1), load().generate(PROMPT, max_tokens=60, seed=1))
    assert model._draft.pool.allocated <= 1
    assert model._draft.pool.sequences == ()


def test_a_known_beginning_is_not_read_again_by_the_draft(load, drafts):
    model = load(draft=drafts["same"])
    for _ in range(2):
        model.generate(PROMPT, max_tokens=60, seed=1)
    assert model._draft.pool.hits == 1


def test_a_draft_that_is_wrong_is_asked_less_and_less():
    shadow = Shadow(None)
    lengths = []
    for _ in range(60):
        n, _ = LENGTH(shadow, 16, 0.1, 0.05)
        lengths.append(n)
        shadow.at, shadow.proposed = 0, max(n, 1)
        shadow.learn(1)
    assert lengths[0] > 2
    assert lengths[-1] == 0
    assert sorted(lengths, reverse=True) == lengths


def test_a_draft_that_is_right_is_asked_for_more():
    shadow = Shadow(None)
    first, _ = LENGTH(shadow, 16, 0.05, 0.05)
    for _ in range(30):
        shadow.at, shadow.proposed = 0, 4
        shadow.learn(5)
    last, gain = LENGTH(shadow, 16, 0.05, 0.05)
    assert last > first
    assert gain > 3


def test_another_vocabulary_is_refused(load, test_data):
    with pytest.raises(UnsupportedModelError, match=r"tinystories.*vocabulary, but .*, the model"):
        load(draft=test_data / "models" / "tinystories-3m.TQ2_0.gguf")


def test_a_vocabulary_that_differs_in_one_token_is_refused(load, path, tmp_path):
    changed = path.read_bytes().replace(b"\x01\0\0\0\0\0\0\0q", b"\x01\0\0\0\0\0\0\0Q")
    other = tmp_path / "changed.gguf"
    other.write_bytes(changed)
    with pytest.raises(UnsupportedModelError, match=r"changed.gguf: .*its token 276 is 'Q', the model's 'q'"):
        load(draft=other)


def test_what_is_no_model_is_refused(load, tmp_path):
    with pytest.raises(FormatError) as caught:
        load(draft=tmp_path / "missing.gguf")
    assert str(caught.value).startswith(str(tmp_path / "missing.gguf"))


def test_a_draft_counts_in_the_memory_budget(load, drafts):
    with pytest.raises(MemoryBudgetError) as caught:
        load(max_ram="1MB")
    least = caught.value.smallest
    with pytest.raises(MemoryBudgetError) as caught:
        load(max_ram="1200kB", draft=drafts["same"])
    model = load(max_ram=max(caught.value.smallest, 2 * least), draft=drafts["same"])
    plan, small = model.info()["memory"], model._draft
    assert plan["budget_bytes"] <= max(caught.value.smallest, 2 * least) - small.graph.weight_bytes
    assert small.pool.limit is not None
    assert same(model.generate(PROMPT, max_tokens=50, seed=1), load().generate(PROMPT, max_tokens=50, seed=1))
    assert len(model._decoder.texts) == 0


def test_the_command_takes_a_draft(path, drafts, capsys):
    from lowbit.cli import main

    texts = []
    for extra in ([], ["--draft", str(drafts["near"])], ["--draft", str(drafts["near"]), "--speculate"]):
        arguments = ["generate", "abc", "-m", str(path), "-n", "40", "--seed", "3", "--json", *extra]
        assert main(arguments) == 0
        texts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert texts[0] == texts[1] == texts[2]
    assert len(lowbit.load(path, draft=drafts["near"]).info()["draft"])
