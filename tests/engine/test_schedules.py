"""What a request gets does not depend on who else asks, on when they ask, or on how much memory there is."""

from __future__ import annotations

import functools
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import write_small_model

import lowbit
from lowbit import Engine
from lowbit.engine import State, engine, sequence
from lowbit.engine.shadow import Shadow

PREFIX = np.random.default_rng(1).integers(3, 280, 200).tolist()
STOPS = ("a", "b", "zq")

requests = st.fixed_dictionaries(
    {
        "start": st.sampled_from([0, 1, 63, 64, 65, 130, 200]),
        "tail": st.lists(st.integers(3, 280), min_size=1, max_size=90),
        "max_tokens": st.sampled_from([0, 1, 2, 7, 30]),
        "seed": st.integers(0, 3),
        "temperature": st.sampled_from([0, 0.8, 3.0]),
        "stop": st.sampled_from([(), ("a",), ("b", "zq")]),
        "repeat_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
        "speculate": st.booleans(),
        "salt": st.sampled_from(["", "other"]),
        "cancel_after": st.sampled_from([None, None, None, 0, 1, 5]),
        "steps_before": st.integers(0, 4),
    }
)


def prompt_of(request):
    return [1, *PREFIX[: request["start"]], *request["tail"]]


def sampling_of(request):
    names = ("max_tokens", "seed", "temperature", "stop", "repeat_penalty", "presence_penalty")
    return {name: request[name] for name in names}


@pytest.fixture(scope="module")
def models(path):
    """Models by the memory for keys and values, in blocks, and the type that these have."""
    return functools.cache(lambda kv_type, sparsity: lowbit.load(path, threads=1, kv_type=kv_type, sparsity=sparsity))


@pytest.fixture(scope="module")
def alone(path):
    """What one request gets of a model that nobody else has used."""
    found = {}

    def result(request, kv_type, sparsity):
        key = repr((prompt_of(request), sampling_of(request), kv_type, sparsity))
        if key not in found:
            fresh = lowbit.load(path, threads=1, kv_type=kv_type, sparsity=sparsity)
            found[key] = fresh.generate(prompt_of(request), **sampling_of(request))
        return found[key]

    return result


@settings(max_examples=320, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(requests, min_size=1, max_size=7),
    st.sampled_from([None, 6, 9, 40]),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([("f32", 0.0), ("f16", 0.0), ("int8", 0.0), ("f32", 0.5)]),
    st.sampled_from([0.02, 50.0]),
    st.sampled_from([1, 8, 512]),
    st.booleans(),
    st.sampled_from([1, engine.BURST_NS]),
)
def test_every_request_gets_what_it_gets_alone(
    models, alone, wanted, blocks, at_once, kind, step_ms, unread, backwards, burst
):
    # Soon some are set aside, because nobody reads them yet; and a burst is a whole text, or a single token.
    with mock.patch.object(sequence, "MOST_UNREAD", unread), mock.patch.object(engine, "BURST_NS", burst):
        run_schedule(models(*kind), lambda request: alone(request, *kind), wanted, blocks, at_once, step_ms, backwards)


def run_schedule(model, alone, wanted, blocks, at_once, step_ms, backwards):
    pool = model._decoder.pool
    pool.resize(blocks, blocks if blocks is not None else 5)
    engine = Engine(model, max_sequences=at_once, step_ms=step_ms, thread=False)
    streams = []
    for request in wanted:
        for _ in range(request["steps_before"]):
            engine._drive()
        streams.append(
            engine.submit(
                prompt_of(request), speculate=request["speculate"], cache_salt=request["salt"], **sampling_of(request)
            )
        )
    for request, stream in zip(wanted, streams):
        if request["cancel_after"] is not None:
            for _ in range(request["cancel_after"]):
                engine._drive()
            stream.cancel()
    for request, stream in list(zip(wanted, streams))[:: -1 if backwards else 1]:  # whoever comes last is read first
        if stream.state is State.CANCELLED:
            continue
        result, expected = stream.result(), alone(request)
        assert (result.tokens, result.text, result.finish_reason) == (
            expected.tokens, expected.text, expected.finish_reason,
        )  # fmt: skip
    engine.settle()
    assert pool.held == 0
    assert pool.sequences == ()
    assert pool.allocated <= (blocks or 5)


@pytest.fixture(scope="module")
def drafts(tmp_path_factory):
    """Small models that say the same, or nearly so."""
    folder = tmp_path_factory.mktemp("drafts")
    return functools.cache(lambda noise: write_small_model(folder / f"{noise}.gguf", 200, noise=noise))


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(requests, min_size=1, max_size=6),
    st.sampled_from([None, 9]),
    st.sampled_from([0.0, 0.01]),
    st.sampled_from([None, 4]),
    st.sampled_from([1, 512]),
    st.booleans(),
)
def test_any_schedule_with_a_draft_gives_every_text_as_it_is_alone(
    drafts, alone, path, wanted, blocks, noise, room, unread, backwards
):
    """Requests that arrive, are cancelled and set aside at random, and too little room for the draft."""
    model = lowbit.load(path, threads=1, draft=drafts(noise))
    model._draft.pool.resize(room, 5 if room is None else room)
    for request in wanted:
        request["speculate"] = request["speculate"] or None
    with (
        mock.patch.object(sequence, "MOST_UNREAD", unread),
        mock.patch.object(Shadow, "length", lambda shadow, most, row, token: (min(5, most), 1.5)),
    ):
        run_schedule(model, lambda request: alone(request, "f32", 0.0), wanted, blocks, 4, 50.0, backwards)
    assert model._draft.pool.sequences == ()


def test_a_reader_that_stays_away_keeps_nobody_waiting(load):
    with mock.patch.object(sequence, "MOST_UNREAD", 1), mock.patch.object(engine, "BURST_NS", 1):
        model = load()
        shared = Engine(model, max_sequences=1, thread=False)
        unread = shared.submit([1, 5], max_tokens=30, seed=1)
        for _ in range(10):
            shared._drive()
        assert unread.state is State.DECODE
        assert shared.submit([1, 6], max_tokens=30, seed=2).result().text
        assert unread.state is State.QUEUED
        assert unread.result().tokens == load().generate([1, 5], max_tokens=30, seed=1).tokens


@pytest.mark.parametrize("kv_type", ["f32", "int8"])
def test_scores_and_vectors_among_running_texts_are_what_they_are_alone(load, kv_type):
    model, fresh = load(kv_type=kv_type), load(kv_type=kv_type)
    engine = Engine(model, thread=False)
    streams = [engine.submit([1, *PREFIX[:n]], max_tokens=40, seed=n) for n in (3, 70, 150)]
    for _ in range(3):
        engine._drive()
    ids = [1, *PREFIX[:100]]
    found: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    for want, each in (("every", found), ("states", vectors)):
        request = model._scoring(np.array(ids, np.int32), lambda rows, each=each: each.append(rows.copy()), want)
        streams.append(engine.start(request))
    for stream in streams:
        stream.result()
    assert np.array_equal(np.concatenate(found), fresh.logits(ids))
    assert np.array_equal(np.concatenate(vectors)[-1:], fresh.embed([ids]))
    for n, stream in zip((3, 70, 150), streams):
        assert stream.result().tokens == fresh.generate([1, *PREFIX[:n]], max_tokens=40, seed=n).tokens
