"""Vocabularies trained from text, and read from files."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.errors import FormatError, LowbitError
from lowbit.tokenizers import from_gguf_metadata, load_tokenizer
from lowbit.train.vocabulary import read_vocabulary, train_vocabulary, write_vocabulary


def test_trained_vocabulary_has_its_size_and_encodes_any_text(vocabulary, tokenizer):
    assert tokenizer.vocab_size == 512
    assert len(vocabulary["tokenizer.ggml.tokens"]) == 512
    for text in ["Once upon a time", "  two  spaces\n\n\ttab", "日本語 and ½ 🙂", "\u0000\u007f"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [0, 511, 8193])
def test_vocabulary_size_out_of_range_is_refused(stories, size):
    with pytest.raises(FormatError, match="512 to 8192"):
        train_vocabulary(stories, size)


def test_vocabulary_larger_than_the_text_allows_is_refused():
    with pytest.raises(FormatError, match=r"does not allow a vocabulary of 4096.*the least is 512: give it more text"):
        train_vocabulary(["A short text."], 4096)


def test_text_without_line_breaks_counts_too(stories):
    assert "▁upon".encode() in train_vocabulary([" ".join(stories)], 512)["tokenizer.ggml.tokens"]


def test_written_vocabulary_reads_back_the_same(tmp_path, vocabulary, tokenizer):
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, vocabulary)
    again = read_vocabulary(path)
    assert again.keys() == vocabulary.keys()
    for key, value in vocabulary.items():
        assert np.array_equal(again[key], value), key
    text = "Once upon a time, Lily saw a big tree.\n"
    assert load_tokenizer(path).encode(text) == from_gguf_metadata(again, "x").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\n\x05hello", b"neither"])
def test_file_without_a_vocabulary_is_refused(tmp_path, content):
    path = tmp_path / "vocabulary.model"
    path.write_bytes(content)
    with pytest.raises(LowbitError, match=r"vocabulary\.model"):
        read_vocabulary(path)


def test_sentencepiece_file_and_gguf_give_the_same_tokens(test_data):
    models = test_data / "models"
    from_proto, from_gguf = (
        read_vocabulary(models / "tok512.model"),
        read_vocabulary(models / "tinystories-3m.TQ2_0.gguf"),
    )
    text = "One day, a dog named Spot went to the park.\n\nHe was happy!"
    assert from_gguf_metadata(from_proto, "a").encode(text) == from_gguf_metadata(from_gguf, "b").encode(text)
