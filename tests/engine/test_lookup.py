"""Proposals from what was said before: the longest match is found, memory is bounded, and no text changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit import Engine
from lowbit._kernels.lookup import Earlier, EarlierTexts, Lookup
from lowbit._kernels.suffixes import BYTES_PER_TOKEN, Suffixes

texts = st.lists(st.integers(0, 3), min_size=1, max_size=120)
FREE = 0.01
"""What a row costs where everything is worth to be proposed."""


def longest_end(text, known):
    """Of the longest end of `text` that ends within `known`: its length, and all places where it ends there."""
    best, places = 0, []
    for end in range(1, len(known) + 1):
        n = 0
        while n < min(end, len(text)) and known[end - 1 - n] == text[-1 - n]:
            n += 1
        if n > best:
            best, places = n, []
        if n and n == best:
            places.append(end)
    return best, places


@given(texts)
def test_the_longest_end_that_occurred_before_is_found(text):
    suffixes = Suffixes(len(text))
    for n in range(1, len(text) + 1):
        suffixes.extend(text[n - 1 : n])
        length, places = longest_end(text[:n], text[: n - 1])
        found, end = suffixes.before()
        assert found == length
        assert not length or end in places


@given(st.lists(texts, min_size=2, max_size=4), texts)
def test_the_longest_end_of_another_text_is_found(parts, text):
    suffixes = Suffixes(sum(map(len, parts)))
    for part in parts:
        suffixes.extend(part)
    length, places = longest_end(text, [token for part in parts for token in part])
    found, end = suffixes.find(text)
    assert found == length
    assert not length or end in places


def test_what_was_said_last_is_proposed():
    text = [1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 1, 2, 3]
    assert Lookup(64).proposal(np.array(text, np.int32), 3, FREE) == [9, 8, 1]


def test_a_text_that_repeats_itself_is_expected_to_go_on():
    text = [7, *[1, 2, 3] * 4]
    assert Lookup(64).proposal(np.array(text, np.int32), 8, FREE) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_the_longer_match_is_taken_whoever_has_it():
    earlier = Earlier(100)
    earlier.remember(np.array([5, 6, 7, 8, 9], np.int32))
    lookup = Lookup(64, earlier)
    assert lookup.proposal(np.array([7, 1, 5, 6, 7], np.int32), 2, FREE) == [8, 9]
    own = Lookup(64, earlier)
    assert own.proposal(np.array([4, 6, 7, 3, 4, 6, 7], np.int32), 2, FREE) == [3, 4]


def test_an_earlier_text_ends_where_it_ended():
    earlier = Earlier(100)
    for text in ([5, 6, 7], [1, 2, 3]):
        earlier.remember(np.array(text, np.int32))
    assert Lookup(64, earlier).proposal(np.array([4, 5, 6], np.int32), 8, FREE) == [7]


def test_earlier_texts_are_found_that_end_while_another_is_written():
    earlier, lookup = Earlier(100), None
    lookup = Lookup(64, earlier)
    text = np.array([1, 5, 6, 7], np.int32)
    assert lookup.proposal(text[:3], 4, FREE) == []
    earlier.remember(np.array([4, 5, 6, 7, 8], np.int32))
    assert lookup.proposal(text, 4, FREE) == [8]


digits = st.integers(0, 9)


@given(st.lists(st.lists(digits, min_size=1, max_size=90), max_size=30), st.lists(digits, min_size=3))
def test_earlier_texts_stay_within_their_room_and_cursors_hold(earlier_texts, text):
    """Also while the older ones go, whose nodes a running text has followed."""
    earlier = Earlier(64)
    lookup, made = Lookup(len(text), earlier), np.array(text, np.int32)
    for i, one in enumerate(earlier_texts):
        earlier.remember(np.array(one, np.int32))
        assert earlier.n_tokens <= 2 * earlier.capacity
        n = min(len(text), 3 + i)
        for token in lookup.proposal(made[:n], 8, FREE):
            assert 0 <= token <= 9


def test_a_text_that_is_known_takes_no_room():
    earlier = Earlier(1000)
    text = np.random.default_rng(0).integers(0, 9, 200).astype(np.int32)
    earlier.remember(text)
    size = earlier.n_tokens
    for _ in range(50):
        earlier.remember(text)
    assert earlier.n_tokens == size
    earlier.remember(np.concatenate([text, text[:10]]))
    assert earlier.n_tokens < size + 100


def test_few_salts_are_remembered_and_each_for_itself():
    known = EarlierTexts(1000)
    for i in range(20):
        known.of(b"%d" % i).remember(np.array([i, 100, 101], np.int32))
        assert len(known) <= 4
    found = Lookup(8, known.of(b"19"))
    assert found.proposal(np.array([1, 2, 100], np.int32), 4, FREE) == [101]
    assert Lookup(8, known.of(b"new")).proposal(np.array([1, 2, 100], np.int32), 4, FREE) == []
    assert EarlierTexts(0).of(b"") is None


def test_a_token_takes_a_bounded_number_of_bytes():
    """A node and a half and two edges on average; whatever the text, not more than there is memory for."""
    assert BYTES_PER_TOKEN <= 104
    rng = np.random.default_rng(1)
    repetitive = [[0] * 3000, [0, 1] * 1500, [*[0] * 1500, *[1] * 1500]]
    for text in (*repetitive, rng.integers(0, 2, 3000), rng.integers(0, 9**9, 3000)):
        suffixes = Suffixes(3000)
        suffixes.extend(int(token) for token in text)
        assert suffixes.n_tokens == 3000
    with pytest.raises(ValueError, match="3000"):
        suffixes.extend([1])


def test_what_is_wrong_is_not_proposed_for_long():
    """Each proposal is refused; a row costs a fifth of a pass."""
    text, lookup, proposed = [1, 2, 3, 4], Lookup(4000), 0
    for i in range(200):
        text += [1, 2, 3, 1000 + i]
        found = lookup.proposal(np.array(text[:-1], np.int32), 8, 0.2)
        proposed += len(found)
        lookup.note(0, len(found))
    assert 0 < proposed < 100


SETTINGS = [{"temperature": 0}, {"temperature": 0.8, "seed": 4}, {"temperature": 3.0, "seed": 1, "repeat_penalty": 1.2}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_earlier_requests_change_no_text_and_save_passes(load, options):
    prompt = [1, 20, 30, 40]
    want = load().generate(prompt, max_tokens=120, **options)
    model = load()
    with Engine(model) as engine:
        for _ in range(3):
            found = engine.submit(prompt, max_tokens=120, speculate=True, **options).result()
            assert (found.tokens, found.text, found.finish_reason) == (want.tokens, want.text, want.finish_reason)
        stats = engine.stats()
    assert stats["accepted_tokens"] > len(want.tokens)  # the second and third time nearly all
    assert stats["accepted_tokens"] <= stats["proposed_tokens"]


def test_another_salt_knows_nothing(load):
    prompt, options = [1, 20, 30, 40], {"max_tokens": 60, "temperature": 0.8, "seed": 4, "speculate": True}
    model = load()
    engine = Engine(model, thread=False)
    engine.submit(prompt, cache_salt="a", **options).result()
    before = engine.stats()["accepted_tokens"]
    engine.submit(prompt, cache_salt="b", **options).result()
    without = engine.stats()["accepted_tokens"] - before
    engine.submit(prompt, cache_salt="a", **options).result()
    assert engine.stats()["accepted_tokens"] - before - without > without + 30


def test_nothing_is_remembered_of_requests_that_did_not_ask_for_it(load):
    model = load()
    model.generate([1, 20, 30], max_tokens=50, seed=1)
    assert len(model._decoder.texts) == 0
