"""Byte pair encoding against ids that llama.cpp and transformers wrote down, and against SentencePiece."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work import LITTLE, Work

from lowbit.tokenizers import bpe, load_tokenizer, tiktoken

pytest.importorskip("tokenizers.models")

WORDS = ["a", "the", "Hello", "1234", "it's", "I'LL", "é", "ß", "ñandú", "日本語", "생활", "नमस्ते", "ខ្មែរ", "العربية"]
WORDS += [
    "🦙",
    "👩\u200d👩\u200d👧",
    "😶\u200d🌫️",
    "▁",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|eot_id|>",
    "{}",
    "==",
    "\n\n",
]
WORDS += [" ", "  ", " world", *"\t\n\r\x00\x01\x07\x1b\x7f\x85\u200b\u2028\ufeff\ufffd\U0010ffff"]


def texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(1, 14))) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "golden"), [("llama3", "llama-bpe"), ("llama3-ranks", "llama-bpe"), ("qwen2", "qwen2"), ("gpt2", "gpt-2")]
)
def test_llama_cpp_vocabulary_tests(data, byte_level, name, golden):
    path = data / "tokenizers" / f"ggml-vocab-{golden}.gguf"
    inputs = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    outputs = path.with_name(path.name + ".out").read_text().split("\n")[:-1]
    assert len(inputs) == len(outputs) > 40
    for text, ids in zip(inputs, outputs, strict=True):
        assert byte_level[name].encode(text, add_bos=False) == list(map(int, ids.split())), text


EXTRA = [
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
    *("phi-3", "qwen2", "qwen35", "refact", "starcoder"),
]


@pytest.mark.parametrize("name", EXTRA)
def test_every_vocabulary_test_of_llama_cpp(name):
    folder = os.environ.get("LOWBIT_EXTRA_VOCABULARIES")
    if not folder:
        pytest.skip("LOWBIT_EXTRA_VOCABULARIES does not name llama.cpp's folder models")
    path = Path(folder) / f"ggml-vocab-{name}.gguf"
    tokenizer = load_tokenizer(path)
    separator = "\n__ggml_vocab_test__\n"
    inputs = path.with_name(path.name + ".inp").read_bytes().decode().removesuffix(separator).split(separator)
    outputs = path.with_name(path.name + ".out").read_text().split("\n")[:-1]
    assert len(inputs) == len(outputs) > 40
    for text, ids in zip(inputs, outputs, strict=True):
        assert tokenizer.encode(text, add_bos=False) == list(map(int, ids.split())), text
    if name == "falcon":
        assert [tokenizer.piece(i) for i in tokenizer.encode("in\x03g a\x03b")] == ["in", "g", "Ġa", "b"]


def _random_text(rng):
    limit = rng.choice([0x7F, 0x7FF, 0xFFFF, 0x10FFFF])
    points = [rng.randrange(1, limit + 1) for _ in range(rng.randrange(1, 20))]
    return "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)


def test_real_tokenizer_json_files_give_what_their_own_library_gives():
    from tokenizers import Tokenizer

    folder = os.environ.get("LOWBIT_TOKENIZER_JSON")
    if not folder:
        pytest.skip("LOWBIT_TOKENIZER_JSON does not name a folder with tokenizer.json files")
    rng = random.Random(5)
    samples = [*texts(1500, seed=5), *(_random_text(rng) for _ in range(1500))]
    paths = sorted(Path(folder).rglob("tokenizer.json"))
    assert paths
    for path in paths:
        tokenizer, library = load_tokenizer(path), Tokenizer.from_file(str(path))
        special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        for text in samples:
            if not any(name in text for name in special):  # from a text the library reads those, too
                ids = library.encode(text, add_special_tokens=False).ids
                assert tokenizer.encode(text, add_bos=False) == ids, (path, text)
                assert tokenizer.decode(ids) == library.decode(ids), (path, text)


def test_transformers_gpt2_reference_encoding(data, byte_level):
    case = json.loads((data / "tokenizers/reference_encodings/gpt2_encoded_tokens.json").read_text())
    gpt2 = byte_level["gpt2"]
    ids = gpt2.encode(case["text"])
    assert [gpt2.piece(i) for i in ids] == case["bpe_tokens"]
    assert ids == case["token_ids"]
    assert gpt2.decode(ids) == case["decoded_text"]


def test_transformers_llama2_reference_encodings(data):
    tokenizer = load_tokenizer(data / "tokenizers/llama2/tokenizer.json")
    cases = json.loads((data / "tokenizers/reference_encodings/tokenizer_tests.json").read_text())
    for case in cases["coreml-projects/Llama-2-7b-chat-coreml"]:
        assert tokenizer.encode(case["input"]) == case["encoded"]["input_ids"]
        assert tokenizer.decode(case["encoded"]["input_ids"]) == case["decoded_without_special"]


def test_both_files_of_llama2_agree_on_ten_thousand_texts(data, real):
    tokenizer, other = load_tokenizer(data / "tokenizers/llama2/tokenizer.json"), real["llama2-model"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.add_bos) == (1, 2, 0, True)
    for text in ["", *texts(10_000)]:
        ids = tokenizer.encode(text)
        assert ids == other.encode(text), text
        assert tokenizer.decode(ids) == other.decode(ids), text
        assert tokenizer.encode(text, parse_special=True) == other.encode(text, parse_special=True), text
    for i in range(32000):
        assert tokenizer.piece(i) == other.piece(i)
        if i:  # sentencepiece writes the unknown token as a sign of its own
            assert tokenizer.token_bytes(i) == other.token_bytes(i)
            assert tokenizer.token_bytes(i, first=True) == other.token_bytes(i, first=True)


def test_ranks_and_gguf_of_llama3_are_one_vocabulary(byte_level):
    ranks, gguf = byte_level["llama3-ranks"], byte_level["llama3"]
    assert [ranks.piece(i) for i in range(128_256)] == [gguf.piece(i) for i in range(128_256)]
    assert (ranks.bos_id, ranks.eos_id, ranks.eos_ids) == (gguf.bos_id, gguf.eos_id, gguf.eos_ids)
    assert ranks.eos_ids == {128_001, 128_009}
    for text in texts(3000, seed=1):
        assert ranks.encode(text) == gguf.encode(text), text
        assert ranks.encode(text, parse_special=True) == gguf.encode(text, parse_special=True), text


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_text_survives_encoding_and_decoding(byte_level, text):
    for tokenizer in byte_level.values():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        decoder = tokenizer.stream_decoder()
        pieces = [decoder.push(i) for i in ids]
        assert "".join(pieces) == text
        assert decoder.flush() == ""


@settings(deadline=None, max_examples=200)
@given(fractions=st.lists(st.floats(0, 1)))
def test_streamed_pieces_are_the_decoded_text(byte_level, fractions):
    for tokenizer in byte_level.values():
        ids = [int(x * (tokenizer.vocab_size - 1)) for x in fractions]
        decoder = tokenizer.stream_decoder()
        assert "".join([*(decoder.push(i) for i in ids), decoder.flush()]) == tokenizer.decode(ids)


@pytest.mark.measured
@pytest.mark.parametrize("name", ["llama3", "qwen2", "gpt2", "llama2"])
def test_a_hundred_thousand_equal_letters_are_little_work(data, byte_level, name):
    tokenizer = byte_level.get(name) or load_tokenizer(data / "tokenizers/llama2/tokenizer.json")
    for letter in "a \0'1\né日":
        with Work() as work:
            ids = tokenizer.encode(letter * 100_000)
        assert work.steps < LITTLE
        assert tokenizer.decode(ids) == letter * 100_000


def test_text_too_long_for_one_regular_expression_is_cut_where_pieces_begin(byte_level):
    llama3, gpt2 = byte_level["llama3"], byte_level["gpt2"]
    text = "once upon a time there was, \n\n 日本語   it's 12345.\n" * 30_000
    assert len(text) > 1_000_000
    for tokenizer in (llama3, gpt2):
        sentence = tokenizer.encode(text[: len(text) // 300], add_bos=False)
        assert tokenizer.encode(text, add_bos=False) == sentence * 300
    # Of spaces alone the library would take ten million, but not eleven.
    parts = list(bpe._cut(" " * 11_000_000))
    assert "".join(parts) == " " * 11_000_000
    assert max(map(len, parts)) <= 1_000_000


def test_special_tokens_are_parsed_only_on_request(byte_level):
    llama3 = byte_level["llama3"]
    chat = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    ids = llama3.encode(chat, parse_special=True)
    assert ids == [128_000, 128_006, 882, 128_007, 271, 13_347, 128_009]
    assert llama3.encode(chat[17:], parse_special=True) == ids
    plain = llama3.encode(chat)
    assert plain[0] == 128_000
    assert max(plain[1:]) < 128_000
    assert llama3.decode(plain) == chat
    assert llama3.decode(ids) == "user\n\nHi"
    assert llama3.encode("Hi", add_bos=False, add_eos=True) == [13_347, 128_001]


def test_user_defined_tokens_are_found_in_any_text(data, byte_level):
    qwen2 = byte_level["qwen2"]
    user_defined = [i for i in range(qwen2.vocab_size) if qwen2.piece(i).startswith("[PAD")]
    assert len(user_defined) > 200
    first, second = user_defined[:2]
    text = f"a{qwen2.piece(first)}{qwen2.piece(second)} b"
    assert qwen2.encode(text) == [64, first, second, 293]
    assert qwen2.decode(qwen2.encode(text)) == text
    # Merging makes </s>, too, in a vocabulary that does not end with it.
    assert qwen2.eos_ids == {151_643, 151_645}
    assert qwen2.decode(qwen2.encode("</s>")) == "</s>"


def test_pairwise_merges_of_the_ranks_are_those_of_the_gguf(data):
    from lowbit.formats import open_model

    metadata = open_model(str(data / "tokenizers/ggml-vocab-llama-bpe.gguf")).metadata
    tokens = [t.decode() for t in itertools.islice(metadata["tokenizer.ggml.tokens"], 128_000)]
    merges = [m.decode().replace(" ", "\0") for m in metadata["tokenizer.ggml.merges"]]
    assert ["\0".join(pair) for pair in tiktoken._merges(tokens)] == merges
