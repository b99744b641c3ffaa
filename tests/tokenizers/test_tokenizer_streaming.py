"""Pieces of text in the making, joined, are the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work import LITTLE, Work

from lowbit.tokenizers import StopBuffer

# Bytes and specials are a small part of a vocabulary, but all of the trouble.
IDS = st.lists(
    st.one_of(st.integers(0, 258), st.integers(0, 511), st.sampled_from([410, 259, 260, 3 + 0xE2, 3 + 0x20]))
)


def stream(tokenizer, ids):
    decoder = tokenizer.stream_decoder()
    return [decoder.push(i) for i in ids] + [decoder.flush()]


@settings(deadline=None, max_examples=300)
@given(ids=IDS)
def test_joined_pieces_are_the_decoded_text(real, ids):
    for tokenizer in real.values():
        scaled = [i if i < 259 else 259 + (i - 259) * (tokenizer.vocab_size - 259) // 253 for i in ids]
        for tokens in (ids, scaled):
            assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens)


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(alphabet=st.one_of(st.characters(codec="utf-8", exclude_characters="▁"), st.sampled_from("🦙日é  \n")))
)
def test_pieces_of_sound_text_hold_no_broken_character(real, text):
    for name in ("llama2-gguf", "tinystories-gguf", "tok512-bin"):
        pieces = stream(real[name], real[name].encode(text))
        assert "".join(pieces) == text
        assert pieces[-1] == ""


def test_a_character_is_held_back_until_it_is_whole(real):
    llama = real["llama2-model"]
    assert stream(llama, [3 + b for b in "é🦙".encode()]) == ["", "é", "", "", "", "🦙", ""]
    assert stream(llama, [3 + b for b in "🦙".encode()[:3]]) == ["", "", "", "\ufffd\ufffd\ufffd"]
    # What cannot become a character any more is not held back.
    assert stream(llama, [3 + 0xF0, 3 + 0x41]) == ["", "\ufffdA", ""]
    assert stream(llama, [3 + 0xE0, 3 + 0x80])[:2] == ["", "\ufffd\ufffd"]


def test_a_decoder_keeps_spaces_between_words(real):
    llama = real["llama2-model"]
    assert stream(llama, llama.encode("to be or")) == ["", "to", " be", " or", ""]
    assert stream(llama, llama.encode("  to be")) == ["", " ", " to", " be", ""]


def feed(stops, parts):
    buffer = StopBuffer(stops)
    shown = []
    for part in parts:
        text, stopped = buffer.push(part)
        shown.append(text)
        if stopped:
            return "".join(shown), True
    return "".join([*shown, buffer.flush()]), False


def first_stop(stops, text):
    """Cut at the stop string that is complete first, looking at one more character at a time."""
    for end in range(len(text) + 1):
        cut = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if cut:
            return text[: min(cut)], True
    return text, False


@settings(max_examples=1000)
@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    parts=st.lists(st.text("ab\nc", max_size=5), max_size=8),
)
def test_stops_cut_the_same_place_however_text_is_split(stops, parts):
    text = "".join(parts)
    assert feed(stops, parts) == feed(stops, [text]) == feed(stops, list(text)) == first_stop(stops, text)


@settings(max_examples=300)
@given(stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), text=st.text("abc", max_size=12))
def test_only_the_beginning_of_a_stop_is_held_back(stops, text):
    shown, stopped = StopBuffer(stops).push(text)
    held = text[len(shown) :]
    if not stopped and held:
        assert any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_is_shown_after_a_stop():
    buffer = StopBuffer(["\n\n", "END"])
    assert buffer.push("one\n") == ("one", False)
    assert buffer.push("two E") == ("\ntwo ", False)
    assert buffer.push("ND three") == ("", True)
    assert buffer.push("four") == ("", True)
    assert buffer.flush() == ""


def test_without_stops_all_text_is_shown_at_once():
    buffer = StopBuffer([])
    assert buffer.push("abc") == ("abc", False)
    assert buffer.flush() == ""


@pytest.mark.parametrize("stops", ["abc", [""], ["a", ""]])
def test_stops_must_be_a_sequence_of_non_empty_strings(stops):
    with pytest.raises(ValueError, match="stops must be"):
        StopBuffer(stops)


def test_a_long_stop_does_not_slow_the_stream():
    buffer = StopBuffer(["a" * 1000 + "b"])
    with Work() as work:
        for _ in range(2000):
            buffer.push("aaa")
    assert work.steps < LITTLE
