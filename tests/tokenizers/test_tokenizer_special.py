"""BOS, control tokens and other tokens that are not plain text."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from lowbit.tokenizers import from_gguf_metadata, load_tokenizer
from lowbit.tokenizers.vocabulary import Texts


def test_bos_comes_first_exactly_once(real):
    llama = real["llama2-gguf"]
    hello = llama.encode("Hello", add_bos=False)
    assert hello[0] != 1
    assert llama.encode("Hello") == llama.encode("Hello", add_bos=True) == [1, *hello]
    assert llama.encode("<s>Hello", parse_special=True) == [1, *hello]
    assert llama.encode("<s>Hello", add_bos=False, parse_special=True) == [1, *hello]
    assert llama.encode("<s><s>Hello", parse_special=True) == [1, 1, *hello]
    assert llama.encode("") == [1]
    assert llama.encode("", add_bos=False) == []


def test_add_bos_token_key_sets_the_default(small):
    assert small.tokenizer(add_bos_token=True).encode("a")[0] == 1
    assert small.tokenizer().encode("a")[0] == 1
    assert 1 not in small.tokenizer(add_bos_token=False).encode("a")


@pytest.mark.parametrize("text", ["<s>", "</s>", "a</s>b", "<unk>", "<0x41>", "\n<s>\n"])
def test_user_text_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text, add_bos=False)
    assert not set(ids) & {0, 1, 2}
    # tok512.model joins and trims spaces, but adds none.
    assert tokenizer.decode(ids).replace(" ", "") == text


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Ids of llama.cpp with parse_special: a space is put before text at the start and after each special token.
        ("</s>Hi<s> there</s>", [2, 6324, 1, 29871, 727, 2]),
        ("the<unk>", [278, 0]),
        (" <unk>▁\n", [259, 0, 259, 13]),
        ("<0x0A>", [529, 29900, 29916, 29900, 29909, 29958]),
        ("</s </s>", [1533, 29879, 29871, 2]),
    ],
)
def test_parse_special_splits_out_special_tokens(real, text, ids):
    for name in ("llama2-gguf", "llama2-model"):
        assert real[name].encode(text, add_bos=False, parse_special=True) == ids


def test_longest_special_token_wins(small):
    n = small.first_extra
    tok = small.tokenizer(("<x", 3), ("<x>", 3), ("<xy>z", 4))
    a = tok.encode("a", add_bos=False)
    assert tok.encode("a<x>a<xa", False, True) == [*a, n + 1, *a, n, *a]
    # A user-defined token is text: it hides the control token in it, and no space is put after it.
    assert (
        tok.encode("a<xy>za", False, True) == tok.encode("a<xy>za", False) == [*a, n + 2, tok.encode("ba", False)[-1]]
    )
    assert tok.decode(tok.encode("a<xy>za")) == "a<xy>za"


def test_spaces_of_user_defined_tokens_are_those_of_the_text(small):
    """llama.cpp's converter writes Gemma's runs of spaces as spaces, older files as the vocabulary does."""
    for runs in (("  ", "   "), ("▁▁", "▁▁▁")):
        tok = small.tokenizer(*((run, 4) for run in runs), add_space_prefix=False)
        pieces = [tok.piece(i) for i in tok.encode("a   b  \n a    b", False)]
        assert pieces == ["a", "▁▁▁", "b", "▁▁", "<0x0A>", "▁a", "▁▁▁", "▁", "b"]
        assert tok.decode(tok.encode("  a   b ")) == "  a   b "


def test_scores_of_zeros_give_way_to_merges(small):
    """So are files whose converter read a tokenizer.json: its order is in the merges alone."""
    keys = {"add_space_prefix": False, "scores": np.zeros(small.first_extra + 1, np.float32)}
    for merges, pieces in (([b"b c", b"a b"], ["a", "bc"]), ([b"a b", b"b c"], ["ab", "c"]), (None, ["ab", "c"])):
        tok = small.tokenizer(("bc", 1), merges=merges, **keys)
        assert [tok.piece(i) for i in tok.encode("abc", False)] == pieces


def test_text_without_special_names_is_the_same_with_parse_special(real):
    llama = real["llama2-gguf"]
    for text in ("", " ", "a < b", "<s", "s>", "</", "I <3 you </ s>"):
        assert llama.encode(text, parse_special=True) == llama.encode(text)


def test_end_ids_are_the_named_ones_and_known_end_markers(small):
    n = small.first_extra
    extra = [("<|im_end|>", 1), ("<turn>", 3), ("<pad>", 3), ("<|eot_id|>", 4)]
    tok = small.tokenizer(*extra, eot_token_id=n + 1, eom_token_id=10**6)
    assert tok.eos_id == 2
    assert tok.eos_ids == {2, n, n + 1, n + 3}
    # Whatever type the file gives them, text cannot become them.
    assert not tok.eos_ids & set(tok.encode("<|im_end|><|eot_id|></s>"))
    assert tok.encode("<|im_end|><|eot_id|></s>", False, True) == [n, n + 3, 2]


def test_a_folder_adds_tokens_to_a_sentencepiece_model(data, tmp_path):
    """ChatML on Llama's vocabulary has its names in files beside tokenizer.model, and may have no tokenizer.json."""
    shutil.copy(data / "models/tok512.model", tmp_path / "tokenizer.model")
    plain = load_tokenizer(tmp_path)
    added = {"<|im_end|>": 512, "<|im_start|>": 513, "<tool>": 514, "<far>": 600, "": 515, "<x>": "y", "\ud800": -1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tok = load_tokenizer(tmp_path)
    assert tok.vocab_size == 515
    assert tok.eos_ids == {2, 512}
    assert tok.encode("<|im_start|>a<|im_end|>", False, True) == [513, *plain.encode("a", False), 512]
    assert set(tok.encode("<tool><|im_start|><|im_end|>")) & {512, 513, 514} == {514}
    assert tok.encode("Once upon", False) == plain.encode("Once upon", False)
    decoder = {"512": {"content": "<|im_end|>", "special": False}, "514": {"content": "<tool>", "special": True}}
    settings = {"eos_token": "<|im_end|>", "bos_token": "\ud800", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = load_tokenizer(tmp_path)
    assert (tok.bos_id, tok.eos_id, 514 in tok.encode("<tool>")) == (1, 512, False)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 514}))
    assert load_tokenizer(tmp_path).vocab_size == 514


def test_llama2_c_models_end_at_bos(real):
    assert real["tok512-bin"].eos_ids == {1, 2}
    assert real["tinystories-gguf"].eos_ids == real["tok512-model"].eos_ids == {2}


def test_prefix_space_follows_the_key(small):
    with_prefix, without = small.tokenizer(), small.tokenizer(add_space_prefix=False)
    assert [with_prefix.piece(i) for i in with_prefix.encode("ab", False)] == ["▁", "ab"]
    assert [without.piece(i) for i in without.encode("ab", False)] == ["ab"]
    assert with_prefix.decode(with_prefix.encode(" a")) == without.decode(without.encode(" a")) == " a"
    # Only the space that encoding put there is dropped.
    assert with_prefix.decode(with_prefix.encode("a")) == without.decode(without.encode("a")) == "a"


def test_extra_whitespace_is_removed_only_by_request(small):
    assert small.tokenizer().decode(small.tokenizer().encode("  a   b ")) == "  a   b "
    removing = small.tokenizer(remove_extra_whitespaces=True)
    assert removing.decode(removing.encode("  a   b ")) == "a b"


def test_decoding_skips_control_tokens_and_one_leading_space(real):
    llama = real["llama2-model"]
    space_the, two_spaces = llama.encode("the", False)[0], 259
    assert llama.piece(space_the) == "▁the"
    assert llama.piece(two_spaces) == "▁▁"
    assert llama.decode([1, space_the, 2, space_the, 1]) == "the the"
    assert llama.decode([two_spaces, space_the]) == "  the"
    assert llama.decode([3 + 0x20, space_the]) == "  the"
    assert llama.decode([3 + 0xE2, 3 + 0x96, 3 + 0x81, 3 + 0xFF, 3 + 0x80]) == "▁\ufffd\ufffd"
    assert llama.token_bytes(space_the) == b" the"
    assert llama.token_bytes(space_the, first=True) == b"the"
    assert llama.token_bytes(3 + 0xE2) == b"\xe2"
    assert llama.piece(3 + 0xE2) == "<0xE2>"
    assert llama.token_bytes(2) == b""
    assert llama.piece(2) == "</s>"


def test_ids_may_be_numpy_integers(real):
    ids = np.array(real["llama2-gguf"].encode("Hello, world"), dtype=np.int32)
    assert real["llama2-gguf"].decode(ids) == "Hello, world"


@pytest.mark.parametrize("token", [-1, 32000, 2**40])
def test_ids_outside_the_vocabulary_are_refused(real, token):
    for method in (lambda i: real["llama2-gguf"].decode([i]), real["llama2-gguf"].piece):
        with pytest.raises(ValueError, match=f"token id {token} is outside"):
            method(token)
    with pytest.raises(ValueError, match="outside"):
        real["llama2-gguf"].stream_decoder().push(token)


def test_unpaired_surrogates_count_as_replacement_characters(real):
    assert real["llama2-gguf"].encode("a\ud800b") == real["llama2-gguf"].encode("a\ufffdb")
    assert real["llama2-gguf"].encode("\ud83e\udd99") == real["llama2-gguf"].encode("🦙")


def test_text_must_be_str(small):
    with pytest.raises(TypeError, match="must be str, not bytes"):
        small.tokenizer().encode(b"a")


def test_missing_types_are_told_from_the_texts(small):
    metadata = small()
    guessed = from_gguf_metadata(small(token_type=None), "x.gguf")
    given = from_gguf_metadata(metadata, "x.gguf")
    for text in ("ab é</s>", "\x00日"):
        assert guessed.encode(text) == given.encode(text)
        assert guessed.decode(guessed.encode(text)) == text


@pytest.mark.parametrize("texts", [[], [b""], [b"a", b"", "é".encode(), b"\xff\x00", b"a"]])
def test_texts_in_one_piece_of_memory_are_a_list(texts):
    packed = Texts(texts)
    assert len(packed) == len(texts)
    assert list(packed) == texts
    assert packed[::-1] == texts[::-1]
    assert [packed[i] for i in range(-len(texts), len(texts))] == texts + texts
    for i in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            packed[i]
