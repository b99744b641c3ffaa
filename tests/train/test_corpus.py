"""Files to documents, documents to windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lowbit.errors import FormatError
from lowbit.train.corpus import Windows, encode, read_documents


@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n\n\n", "\n \n\t\n\n", "\f", "\n<|endoftext|>\n"])
def test_documents_end_at_each_separator(tmp_path, separator):
    path = tmp_path / "corpus.txt"
    path.write_text(f"One.\n\nStill one.{separator}Two.\n", encoding="utf-8")
    assert read_documents([path]) == ["One.\n\nStill one.", "Two."]


def test_windows_line_ends_and_byte_order_mark_are_no_text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nStill one.\r\n\r\n\r\nTwo.")
    assert read_documents([path]) == ["One.\n\nStill one.", "Two."]


def test_jsonl_gives_one_document_per_line_and_a_path_counts_each_time(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ["a\n\n\nb", " ", "c"]), encoding="utf-8")
    assert read_documents([path, path]) == ["a\n\n\nb", "c", "a\n\n\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "no text"),
        ("blank.txt", b" \n<|endoftext|>\n", "no text"),
        ("binary.txt", bytes(range(256)), "not UTF-8"),
        ("nul.txt", b"text\0text", "NUL"),
        ("list.jsonl", b'{"text": "fine"}\n["text"]\n', "line 2"),
        ("number.jsonl", b'{"text": 3}\n', "line 1"),
        ("deep.jsonl", b"[" * 100_000, "line 1"),
        ("empty.jsonl", b'{"text": ""}\n', "no text"),
    ],
)
def test_bad_corpus_is_refused_with_its_name(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=reason) as caught:
        read_documents([path])
    assert name in str(caught.value)


def test_missing_corpus_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"nothing\.txt"):
        read_documents([tmp_path / "nothing.txt"])


def test_every_document_begins_with_bos(documents, tokenizer, stories):
    assert all(ids[0] == tokenizer.bos_id for ids in documents)
    assert tokenizer.decode(documents[7].tolist()) == stories[7]


def test_window_depends_on_seed_and_index_alone(documents):
    one, two = Windows(documents, 16, seed=3), Windows(documents, 16, seed=3)
    far = 2 * one.per_epoch + 5
    for index in (far, 0, 1, far):
        assert (one[index] == two[index]).all()
    two[0], two[far + 1]
    assert (one[far] == two[far]).all()
    other = Windows(documents, 16, seed=4)
    assert any((one[i] != other[i]).any() for i in range(10))


def test_an_epoch_shows_every_token_once(documents):
    windows = Windows(documents, 16, seed=0)
    for epoch in range(2):
        start = epoch * windows.per_epoch
        seen = np.concatenate([windows[start + i][:-1] for i in range(windows.per_epoch)])
        left_out = windows.tokens - len(seen)
        assert 0 < left_out <= 16 + 1
        everything = np.bincount(np.concatenate(documents), minlength=512)
        assert (everything - np.bincount(seen, minlength=512)).sum() == left_out
        assert (everything >= np.bincount(seen, minlength=512)).all()


def test_targets_are_the_inputs_one_to_the_right(documents):
    windows = Windows(documents, 16, seed=0)
    assert windows.batch(0, 3).shape == (3, 17)
    assert windows[0][-1] == windows[1][0]


def test_corpus_shorter_than_a_window_is_refused(tokenizer):
    with pytest.raises(FormatError, match="too short"):
        Windows(encode(["Hi."], tokenizer), 256, seed=0)
