"""Ids that other programs wrote down: llama.cpp, llama2.c, transformers, SentencePiece itself."""

from __future__ import annotations

import itertools
import json
import random
import struct

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from work import LITTLE, Work

WORDS = [
    "a",
    "the",
    "Hello",
    "1234",
    "it's",
    "é",
    "ß",
    "ñandú",
    "日本語",
    "생활",
    "नमस्ते",
    "ខ្មែរ",
    "العربية",
    "🦙",
    "👩\u200d👩\u200d👧",
    "😶\u200d🌫️",
    "▁",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "{}",
    "==",
]
WORDS += [" ", "  ", " world", *"\t\n\r\x00\x07\x7f\u200b\u2028\ufeff\ufffd\U0010ffff"]


def texts(count, words, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(words, k=rng.randrange(1, 14))) for _ in range(count)]


def test_llama_cpp_vocabulary_tests(data, real):
    path = data / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    inputs = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    outputs = path.with_name(path.name + ".out").read_text().split("\n")[:-1]
    assert len(inputs) == len(outputs) > 40
    for name in ("llama2-gguf", "llama2-model"):
        for text, ids in zip(inputs, outputs, strict=True):
            assert real[name].encode(text, add_bos=False) == list(map(int, ids.split())), (name, text)


@pytest.mark.parametrize("name", ["llama2-gguf", "llama2-model"])
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [1]),
        ("I believe the meaning of life is", [1, 306, 4658, 278, 6593, 310, 2834, 338]),
        (
            "Simply put, the theory of relativity states that ",
            [1, 3439, 17632, 1925, 29892, 278, 6368, 310, 14215, 537, 5922, 393, 29871],
        ),
        ("Hello this is a test", [1, 15043, 445, 338, 263, 1243]),
    ],
)
def test_published_llama2_vectors(real, name, text, ids):
    assert real[name].encode(text) == ids


def test_transformers_llama2_reference_encodings(data, real):
    cases = json.loads((data / "tokenizers/reference_encodings/tokenizer_tests.json").read_text())
    cases = cases["coreml-projects/Llama-2-7b-chat-coreml"]
    assert len(cases) > 15
    for case in cases:
        for name in ("llama2-gguf", "llama2-model"):
            assert real[name].encode(case["input"]) == case["encoded"]["input_ids"]
            assert real[name].decode(case["encoded"]["input_ids"]) == case["decoded_without_special"]


def test_golden_prompt_of_the_tinystories_models(data, real):
    golden = json.loads((data / "models/golden.json").read_text())
    for name in ("tinystories-gguf", "tok512-bin", "tok512-model"):
        assert real[name].encode(golden["prompt_text"]) == golden["prompt_ids"]


def test_gguf_and_model_file_of_llama2_agree_on_thousands_of_texts(real):
    for text in texts(5000, WORDS):
        assert real["llama2-gguf"].encode(text) == real["llama2-model"].encode(text), text


def test_three_forms_of_one_vocabulary_agree(real):
    # tok512.model joins neighbouring spaces, which neither of the others can say; and only tokenizer.bin knows no ▁.
    words = [w.strip() for w in WORDS if w.strip(" \t\r\n\u2028") and "▁" not in w]
    rng = random.Random(1)
    for _ in range(2000):
        text = " ".join(rng.choices(words, k=rng.randrange(1, 9)))
        ids = real["tok512-bin"].encode(text)
        assert ids == real["tinystories-gguf"].encode(text) == real["tok512-model"].encode(text), text


def llama2c_encode(pieces, scores, text):
    """Encode as llama2.c's run.c does, without BOS."""
    index = {piece: i for i, piece in enumerate(pieces)}
    ids = [index[b" "]] if text else []
    for letter in text:
        ids += [index[letter.encode()]] if letter.encode() in index else [byte + 3 for byte in letter.encode()]
    while True:
        merges = [index.get(pieces[left] + pieces[right]) for left, right in itertools.pairwise(ids)]
        best = max(
            (i for i, m in enumerate(merges) if m is not None), key=lambda i: (scores[merges[i]], -i), default=-1
        )
        if best < 0:
            return ids
        ids[best : best + 2] = [merges[best]]


def test_tokenizer_bin_gives_the_ids_of_llama2_c(data, real):
    blob, at, pieces, scores = (data / "models/tok512.bin").read_bytes(), 4, [], []
    while at < len(blob):
        score, size = struct.unpack_from("<fI", blob, at)
        pieces.append(blob[at + 8 : at + 8 + size])
        scores.append(score)
        at += 8 + size
    assert len(pieces) == 512
    for text in ["", " ", "▁", "a▁ ▁b", *texts(1000, [w for w in WORDS if w != "\x00"], seed=2)]:
        assert real["tok512-bin"].encode(text, add_bos=False) == llama2c_encode(pieces, scores, text), text


def test_decoding_matches_sentencepiece(data, real):
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(str(data / "tokenizers/llama2/tokenizer.model"))
    rng = random.Random(3)
    for _ in range(3000):
        # No control tokens: sentencepiece lets one break a character apart, while for us it is not there at all.
        ids = [rng.choice([0, *range(3, 259), *rng.sample(range(259, 32000), 300)]) for _ in range(rng.randrange(8))]
        assert real["llama2-model"].decode(ids) == processor.DecodeIds(ids), ids


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_text_survives_encoding_and_decoding(real, text):
    for name in ("llama2-gguf", "llama2-model", "tinystories-gguf", "tok512-bin"):
        # In SentencePiece ▁ is a space; llama2.c's file keeps them apart.
        expected = text if name == "tok512-bin" else text.replace("▁", " ")
        assert real[name].decode(real[name].encode(text)) == expected


@pytest.mark.measured
def test_a_hundred_thousand_equal_letters_are_little_work(tokenizer):
    for text in ("a" * 100_000, " " * 100_000, "\x00" * 100_000):
        with Work() as work:
            tokenizer.encode(text)
        assert work.steps < LITTLE
