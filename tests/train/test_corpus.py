"""Files to documents, documents to windows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lowbit.errors import FormatError
from lowbit.tokenizers import from_gguf_metadata
from lowbit.train.corpus import IGNORED, Rows, asked_for, encode, plain_text, read_documents
from lowbit.train.vocabulary import train_vocabulary


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
        ("question.jsonl", b'{"messages": [{"role": "user", "content": "Hi"}]}', "line 1"),
        (
            "unanswered.jsonl",
            b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "?"}]}',
            "line 1",
        ),
        ("robot.jsonl", b'{"messages": [{"role": "robot", "content": "Hi"}]}', "line 1"),
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


def test_every_document_begins_and_ends_with_its_mark(documents, tokenizer, stories):
    assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in documents)
    assert tokenizer.decode(documents[7].tolist()) == stories[7]
    assert encode(stories[:1], tokenizer, end=False)[0].tolist() == documents[0][:-1].tolist()


CONVERSATION = (("user", "Tell me a story about a ball."), ("assistant", "Tom found a red ball.\n\nHe was happy."))


def test_a_conversation_is_read_and_written_as_the_chat_template_says(tmp_path, stories):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": role, "content": text} for role, text in CONVERSATION]
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    assert read_documents([path]) == [CONVERSATION]
    assert plain_text(CONVERSATION) == CONVERSATION[0][1] + "\n" + CONVERSATION[1][1]
    tokenizer = from_gguf_metadata(train_vocabulary(stories, 512, chat=True), "test")
    (ids,) = encode([CONVERSATION], tokenizer)
    pieces = [tokenizer.piece(int(i)) for i in ids]
    marks = [piece for piece in pieces if piece.startswith("<|")]
    assert marks == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert ids[-1] == tokenizer.eos_id
    before, answer = (
        tokenizer.decode(part.tolist()) for part in np.split(ids, [len(ids) - pieces[::-1].index(marks[2])])
    )
    assert before.strip().startswith("user\nTell me a story about a ball.")
    # the answer begins as a text alone does, with the space that its first word has in the vocabulary
    assert answer.strip() == "assistant\n " + CONVERSATION[1][1]


def test_what_an_answer_was_asked_for_is_marked_where_it_says_it_first(stories):
    tokenizer = from_gguf_metadata(train_vocabulary(stories, 512, chat=True), "test")
    conversations = [(("user", f"Tell me a story about a {noun}."), CONVERSATION[1]) for noun in ["dog"] * 30 + ["ball"]]
    documents = encode([*stories[:3], *conversations], tokenizer)
    marks = asked_for(documents, tokenizer)
    assert [len(mark) for mark in marks] == [len(ids) for ids in documents]
    assert not any(mark.any() for mark in marks[:-1])  # "dog" is not in the answer, and in most of the requests
    assert tokenizer.decode(documents[-1][marks[-1]].tolist()).strip() == "ball"
    twice = encode([(("user", "A ball."), ("assistant", "The ball and the ball."))], tokenizer)
    (mark,) = asked_for([*documents, *twice], tokenizer)[-1:]
    place = np.flatnonzero(mark)
    rest = tokenizer.decode(twice[0][place[-1] + 1 :].tolist())
    assert rest.split() == ["and", "the", "ball."]
    rows = Rows(documents, 200, seed=0, marks=marks)
    batch = rows.batch(0, 4 * len(documents))
    assert {tokenizer.decode([int(t)]).strip() for t in batch.targets[batch.asked]} == {
        tokenizer.decode([int(t)]).strip() for t in documents[-1][marks[-1]]
    }
    plain = from_gguf_metadata(train_vocabulary(stories, 512), "test")
    assert not any(mark.any() for mark in asked_for(encode([CONVERSATION] * 3, plain), plain))


def documents_of(batch, row):
    """The documents of a row, as (tokens, targets)."""
    for first in np.unique(batch.first[row]):
        places = batch.first[row] == first
        if (batch.targets[row][places] != IGNORED).any():
            yield batch.tokens[row][places], batch.targets[row][places]


def test_row_depends_on_seed_and_index_alone(documents):
    one, two = Rows(documents, 64, seed=3), Rows(documents, 64, seed=3)
    ahead = [one.batch(i, 1) for i in range(0, 400, 7)]
    back = [two.batch(i, 1) for i in reversed(range(0, 400, 7))][::-1]
    for a, b in zip(ahead, back, strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert (one.batch(5, 3).tokens[1] == one.batch(6, 1).tokens[0]).all()
    other = Rows(documents, 64, seed=4)
    assert (one.batch(0, 9).tokens != other.batch(0, 9).tokens).any()


@pytest.mark.parametrize("length", [16, 64, 500])
def test_an_epoch_shows_every_document_once_and_each_token_follows_its_own(documents, length):
    rows = Rows(documents, length, seed=0)
    first = 0
    for epoch in range(2):
        count = 0
        while rows.epoch_of(first + count) < epoch + 1:
            count += 1
        batch = rows.batch(first, count)
        seen = []
        for row in range(count):
            for tokens, targets in documents_of(batch, row):
                assert (tokens[1:] == targets[:-1]).all()
                seen.append((*tokens.tolist(), int(targets[-1])))
        parts = [ids[i : i + length + 1].tolist() for ids in documents for i in range(0, len(ids) - 1, length)]
        assert sorted(seen) == sorted(map(tuple, parts))
        assert (batch.targets != IGNORED).mean() > (0.95 if length > 100 else 0.7)
        first += count


def test_weights_say_how_often_a_document_comes(documents):
    weights = [0.0, 0.25, 1.0, 2.5, *[1.0] * (len(documents) - 4)]
    rows = Rows(documents, 128, seed=0, weights=weights)
    epochs, seen, row = 8, [0] * 4, 0
    starts = [tuple(ids[:20].tolist()) for ids in documents[:4]]
    assert len({*starts, *(tuple(ids[:20].tolist()) for ids in documents[4:])}) == len(documents)
    while rows.epoch_of(row) < epochs:
        for tokens, _ in documents_of(rows.batch(row, 1), 0):
            for i, start in enumerate(starts):
                seen[i] += tuple(tokens[:20].tolist()) == start
        row += 1
    assert seen == [0, 2, 8, 20]


def test_an_empty_corpus_is_refused(documents):
    with pytest.raises(FormatError, match="nothing to learn"):
        Rows([], 16, seed=0)
    with pytest.raises(FormatError, match="nothing to learn"):
        Rows(documents[:2], 16, seed=0, weights=[0, 0])
