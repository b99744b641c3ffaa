"""Files with byte pair encoding: what each key does, and what is refused."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work import LITTLE, Work

from lowbit.errors import Foreign, FormatError, LowbitError, UnsupportedModelError
from lowbit.tokenizers import from_gguf_metadata, load_tokenizer
from lowbit.tokenizers.byte_alphabet import BYTE_TO_LETTER

pytest.importorskip("tokenizers.models")

MERGES = ["a b", "ab c", "Ġ a", "1 2", "12 3", "é é"]
LETTERS = [BYTE_TO_LETTER[byte] for byte in range(256)]
TOKENS = [*LETTERS, "ab", "abc", "Ġa", "12", "123", "éé"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def gguf(*extra, **keys):
    """Return metadata of kind gpt2: the bytes, a few merges, and extra (text, type) tokens."""
    tokens = [t.encode() for t in TOKENS] + [t if isinstance(t, bytes) else t.encode() for t, _ in extra]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": np.array([1] * len(TOKENS) + [kind for _, kind in extra], dtype=np.int32),
        "merges": [m.encode() for m in MERGES],
    }
    metadata |= keys
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value is not None}


def from_gguf(*extra, **keys):
    return from_gguf_metadata(gguf(*extra, **keys), "small.gguf")


N = len(TOKENS)


def test_small_vocabulary_merges_lowest_rank_first():
    tokenizer = from_gguf()
    assert [tokenizer.piece(i) for i in tokenizer.encode("abc aab 1234")] == ["abc", "Ġa", "ab", "Ġ", "123", "4"]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["x", "123", "4"]),
        ("llama-bpe", ["x", "123", "4"]),
        ("qwen2", ["x", "1", "2", "3", "4"]),
        ("starcoder", ["x", "1", "2", "3", "4"]),
        ("default", ["x", "123", "4"]),
    ],
)
def test_pre_names_the_splitting_rule(pre, pieces):
    tokenizer = from_gguf(pre=pre)
    assert [tokenizer.piece(i) for i in tokenizer.encode("x1234")] == pieces


RAW = [("<pad>", 3), ("<eos>", 3), ("<bos>", 3), ("</s>", 1), ("<|tool_response>", 4), ("<|channel>", 4)]
RAW += [(f"<0x{i:02X}>", 6) for i in range(256)] + [
    (t, 1) for t in ("▁", "a", "b", "é", "\n", "▁a", "ab", "\n\n", "▁▁")
]


def gemma4(merges=("▁ a", "a b", "\n \n", "▁ ▁"), **keys):
    metadata = {
        "model": "gemma4",
        "tokens": [t.encode() for t, _ in RAW],
        "token_type": np.array([kind for _, kind in RAW], dtype=np.int32),
        "merges": [m.encode() for m in merges],
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    return from_gguf_metadata({f"tokenizer.ggml.{name}": v for name, v in (metadata | keys).items()}, "small.gguf")


def test_gemma4_merges_text_with_bytes_for_what_has_no_token():
    tokenizer = gemma4()
    text = "ab  a é\n\n日a<|channel>b</s>"
    ids = tokenizer.encode(text)
    pieces = ["<bos>", "ab", "▁▁", "a", "▁", "é", "\n\n", "<0xE6>", "<0x97>", "<0xA5>", "a", "<|channel>", "b"]
    assert [tokenizer.piece(i) for i in ids[:13]] == ["<bos>", "ab", "▁", "▁a", *pieces[4:]]
    assert tokenizer.decode(ids) == text
    # Lines are cut apart before anything merges.
    assert [tokenizer.piece(i) for i in tokenizer.encode("\n\na", add_bos=False)] == ["\n\n", "a"]


def test_gemma4_begins_with_bos_though_its_file_denies_it():
    assert gemma4(add_bos_token=False).add_bos
    assert not from_gguf(add_bos_token=False).add_bos


def test_a_name_ends_a_text_unless_another_name_gives_it_another_meaning():
    # In Gemma </s> is a tag of HTML.
    assert {gemma4().piece(i) for i in gemma4().eos_ids} == {"<eos>", "<|tool_response>"}

    def ends(*names):
        tokenizer = from_gguf(*((name, 3) for name in names))
        return {tokenizer.piece(i) for i in tokenizer.eos_ids}

    assert ends("<|end|>", "<|im_end|>", "<|channel|>") == {"<|end|>", "<|im_end|>"}
    assert ends("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}
    assert ends("<|end|>", "<|calls|>", "<|flush|>") == {"<|calls|>", "<|flush|>"}
    assert ends("</s>", "[e~[", "<|fim_pad|>", "<|repo_name|>") == {"</s>", "[e~[", "<|fim_pad|>", "<|repo_name|>"}
    assert ends("</s>", "<eos>") == {"<eos>"}


def test_unknown_pre_is_refused_and_a_missing_one_follows_the_architecture():
    with pytest.raises(UnsupportedModelError, match=r"unknown rule, tokenizer\.ggml\.pre = 'nobody-knows'"):
        from_gguf(pre="nobody-knows")
    for architecture, name in (("bitnet-b1.58", "llama-bpe"), ("bitnet-25", "llama-bpe"), ("llama", "default")):
        missing = from_gguf_metadata(gguf(pre=None) | {"general.architecture": architecture}, "x.gguf")
        given_name = from_gguf(pre=name)
        assert missing.add_bos == given_name.add_bos
        for text in ("x.ab 'LL it's", "<a=b>~", "a\n\nb", "12 345,6"):
            assert missing.encode(text) == given_name.encode(text)


def test_whole_tokens_come_before_merges_where_the_rule_says_so():
    # No merge makes this token.
    assert from_gguf(("xyz", 1), pre="llama3").encode("xyz") == [N]
    assert N not in from_gguf(("xyz", 1), pre="smaug-bpe").encode("xyz")


def test_bos_and_eos_follow_the_keys():
    extra = [("<b>", 3), ("<e>", 3), ("<|im_end|>", 4), ("<t>", 3)]
    tokenizer = from_gguf(*extra, bos_token_id=N, eos_token_id=N + 1, eot_token_id=N + 3, pre="llama-bpe")
    assert tokenizer.encode("a")[0] == N
    assert tokenizer.encode("<b>a", parse_special=True).count(N) == 1
    assert tokenizer.eos_ids == {N + 1, N + 2, N + 3}
    assert not tokenizer.add_eos
    assert from_gguf(*extra, bos_token_id=N, add_bos_token=True).encode("a")[0] == N
    assert from_gguf(*extra, bos_token_id=N, add_bos_token=False, pre="llama-bpe").encode("") == []
    asked = from_gguf(*extra, eos_token_id=N + 1, add_eos_token=True)
    assert asked.add_eos
    assert asked.encode("a", add_eos=True)[-1] == N + 1


def test_control_tokens_never_come_from_text():
    # Not even where merges, or a rule that takes whole tokens, would make them.
    tokenizer = from_gguf(("abab", 3), ("xyz", 3), pre="llama3", merges=[m.encode() for m in [*MERGES, "ab ab"]])
    for text in ("abab", "xyz"):
        assert max(tokenizer.encode(text)) < N
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode(text, parse_special=True) == [N + (text == "xyz")]


def test_odd_tokens_are_harmless():
    extra = [("", 1), ("", 4), ("a b", 4), (b"\xff\xfe", 1), (b"\xf0\x9f", 4), ("日", 1), ("a", 1), ("gone", 5)]
    tokenizer = from_gguf(*extra)
    assert tokenizer.encode("a b") == [N + 2]
    assert tokenizer.encode("q") == [LETTERS.index("q")]
    for text in ("日", "gone", "\xff\xfe", "aab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(N + 3) == b"\xff\xfe"
    assert tokenizer.token_bytes(N + 4) == b"\xf0\x9f"
    assert tokenizer.token_bytes(N + 7) == b""
    for i in range(tokenizer.vocab_size):
        tokenizer.piece(i).encode()


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"merges": None}, "no merges"),
        ({"tokens": None}, "no tokens"),
        ({"merges": [1, 2]}, "array of strings"),
        ({"merges": [b"ab"]}, "merge 0 is not two tokens"),
        ({"merges": [b"a b c"]}, "merge 0 is not two tokens"),
        ({"merges": [b"a b", b"a zzz"]}, "merge 1 of 'a' and 'zzz'"),
        ({"merges": [b"a x"]}, "merge 0 of 'a' and 'x'"),
        ({"merges": [b"q" * 5000 + b" " + b"q" * 5000]}, "merge 0"),
        ({"token_type": np.ones(3, np.int32)}, "262 tokens, but 3 token types"),
        ({"token_type": np.ones(262, np.uint8)}, "int32 or uint32"),
        ({"token_type": np.full(262, 6, np.int32)}, "token 0 of a vocabulary with merges has type 6"),
        ({"token_type": np.full(262, 3, np.int32)}, "bytes have no token"),
        # Two letters have as many characters as the longest token here, but more bytes.
        (
            {"tokens": [*(t.encode() for t in LETTERS), b"ab"], "token_type": None, "merges": ["é é".encode()]},
            "merge 0",
        ),
        ({"pre": 7}, "wrong type"),
        ({"tokens": [], "token_type": None, "merges": []}, "0 tokens"),
    ],
)
def test_bad_gguf_vocabularies_are_refused(keys, match):
    with pytest.raises(FormatError, match=match) as caught:
        from_gguf(**keys)
    assert str(caught.value).startswith("small.gguf: ")
    assert "\n" not in str(caught.value)


LACKING = (0x01, 0xF1, ord("x"))


def without(lacking, merges=MERGES):
    """A GGUF tokenizer without some letters."""
    tokens = [t.encode() for t in TOKENS if t not in {LETTERS[i] for i in lacking}]
    return from_gguf_metadata(gguf(tokens=tokens, token_type=None, merges=[m.encode() for m in merges]), "small.gguf")


def pieces_of(tokenizer, text, **options):
    return [tokenizer.piece(i) for i in tokenizer.encode(text, **options)]


def test_in_gguf_a_byte_without_a_token_parts_what_merges_and_leaves_no_token():
    # As llama.cpp does it.
    tokenizer = without(LACKING)
    assert tokenizer.vocab_size == N - 3
    assert pieces_of(tokenizer, "abc") == ["abc"]
    assert pieces_of(tokenizer, "abxc axbc x") == ["ab", "c", "Ġa", "b", "c", "Ġ"]
    assert pieces_of(tokenizer, "a\x01b\U000411f1") == ["a", "b", LETTERS[0x81], LETTERS[0x87], LETTERS[0xB1]]
    assert tokenizer.encode("x\x01") == []
    for text in ("", "x", "axb", "\U000411f1"):
        assert max(tokenizer.encode(text, parse_special=True), default=0) < tokenizer.vocab_size


def test_a_whole_token_may_hold_a_byte_that_has_no_token():
    tokenizer = from_gguf_metadata(
        gguf(("xyz", 1), pre="llama3") | {"tokenizer.ggml.token_type": np.int32([*[1] * 120, 3, *[1] * (N - 120)])}, "x"
    )
    assert TOKENS[120] == "x"
    assert pieces_of(tokenizer, "xyz xy") == ["xyz", "Ġ", "y"]


@pytest.mark.parametrize("unk", [None, "Ġa"])
def test_in_tokenizer_json_a_byte_without_a_token_becomes_what_its_library_makes_of_it(tmp_path, unk):
    import tokenizers

    root = byte_level_json()
    for byte in LACKING:
        del root["model"]["vocab"][LETTERS[byte]]
    root["model"] |= {"unk_token": unk, "fuse_unk": True}
    tokenizer = load_tokenizer(write(tmp_path, root))
    root |= {"version": "1.0", "truncation": None, "padding": None, "decoder": None, "post_processor": None}
    for token in root["added_tokens"]:
        token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    library = tokenizers.Tokenizer.from_str(json.dumps(root))
    for text in ("abc", "axbxc", "a\x01\x01b", "xx", "\U000411f1 ax"):
        assert tokenizer.encode(text, add_bos=False) == library.encode(text).ids


def test_a_panic_of_the_library_is_a_format_error(monkeypatch):
    from tokenizers import models

    class PanicException(BaseException):
        pass

    def panic(*args, **options):
        raise PanicException("index\nout of \x1b range")

    tokenizer = from_gguf()
    monkeypatch.setattr(tokenizer, "_engine", type("Engine", (), {"encode": panic, "pre_tokenizer": None})())
    with pytest.raises(FormatError, match=r"small\.gguf: the library tokenizers refuses it: index out of \\x1b range"):
        tokenizer.encode("a")
    monkeypatch.setattr(models, "BPE", panic)
    with pytest.raises(FormatError, match="tokenizers refuses"):
        from_gguf()


@pytest.mark.parametrize("passing", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_the_system_asks_of_us_passes_the_guard(passing):
    with pytest.raises(passing), Foreign("library", "file"):
        raise passing


def byte_level_json():
    return {
        "added_tokens": [
            {"id": N, "content": "<|begin_of_text|>", "special": True},
            {"id": N + 1, "content": "<|eot_id|>", "special": True},
            {"id": N + 2, "content": "<tool>", "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin_of_text|>"}}, {"Sequence": {"id": "A"}}],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(TOKENS)}, "merges": MERGES},
    }


def changed(path, value):
    root = byte_level_json()
    part = root
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return root


def write(folder, root, name="tokenizer.json"):
    path = folder / name
    path.write_text(json.dumps(root))
    return path


def test_tokenizer_json_gives_the_ids_of_its_own_library(tmp_path):
    import tokenizers

    for pair_merges in (False, True):
        root = byte_level_json()
        if pair_merges:
            root["model"]["merges"] = [m.split(" ") for m in MERGES]
        tokenizer = load_tokenizer(write(tmp_path, root))
        root["post_processor"] = None
        for token in root["added_tokens"]:
            token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        root |= {"version": "1.0", "truncation": None, "padding": None}
        root["decoder"] = None
        library = tokenizers.Tokenizer.from_str(json.dumps(root))
        for text in ("abc aab 1234", "é日 <tool>ab\n\n", "<|eot_id|>a<tool><tool>"):
            assert tokenizer.encode(text, parse_special=True) == [N, *library.encode(text).ids]
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (N, True, {N + 1})
        assert N + 1 not in tokenizer.encode("<|eot_id|>")


def test_added_tokens_that_merging_makes_too_are_found_and_merged(tmp_path):
    import tokenizers

    tokens = ["<unk>", "▁", "a", "▁▁", "▁a", *(f"<0x{i:02X}>" for i in range(256))]
    root = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 3, "content": "▁▁", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": ["▁ ▁", "▁ a"],
                  "byte_fallback": True, "unk_token": "<unk>"},
    }  # fmt: skip
    tokenizer = load_tokenizer(write(tmp_path, root))
    library = tokenizers.Tokenizer.from_str(json.dumps(root))
    for text in ("a  a", "a▁▁a", "   ", "▁ ▁", "é▁▁▁ a"):
        assert tokenizer.encode(text) == library.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text).ids)
    assert tokenizer.encode("a  a") == [2, 3, 2]


def test_equal_ways_to_write_a_splitting_step_give_equal_ids(tmp_path):
    text = "it'll 1234\r\n\n  abc ?!\n x"
    expected = load_tokenizer(write(tmp_path, byte_level_json())).encode(text)
    for regex, behavior, invert in (
        (LLAMA3, "Removed", True),
        (LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n"), "Isolated", False),
    ):
        root = byte_level_json()
        step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
        root["pre_tokenizer"]["pretokenizers"][0] = step
        assert load_tokenizer(write(tmp_path, root)).encode(text) == expected
    # This one would lose all that is not a digit.
    root["pre_tokenizer"]["pretokenizers"][0] = (
        step
        | {"pattern": {"Regex": r"\p{N}"}}
        | {
            "behavior": "Removed",
            "invert": True,
        }
    )
    with pytest.raises(UnsupportedModelError, match="the pre-tokenizer is not supported"):
        load_tokenizer(write(tmp_path, root))


def test_names_that_swallow_white_space_do_so(tmp_path):
    root = byte_level_json()
    root["added_tokens"][2] |= {"lstrip": True, "rstrip": True}
    tokenizer = load_tokenizer(write(tmp_path, root))
    a = LETTERS.index("a")
    assert tokenizer.encode("a \n<tool> \t a", add_bos=False) == [a, N + 2, a]


def test_metaspace_first_puts_a_space_before_the_text_only(tmp_path):
    root = byte_level_json()
    names = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {t: i for i, t in enumerate([*names, "▁", "a", "▁a", "<unk>"])}
    root["model"] = {"type": "BPE", "vocab": vocab, "merges": ["▁ a"], "byte_fallback": True, "unk_token": "<unk>"}
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    root |= {"pre_tokenizer": meta, "decoder": meta}
    tokenizer = load_tokenizer(write(tmp_path, root))
    assert tokenizer.encode("a<tool>a a", add_bos=False) == [258, N + 2, 257, 258]
    assert tokenizer.decode(tokenizer.encode("a<tool>a é")) == "a<tool>a é"
    meta["prepend_scheme"] = "always"
    assert load_tokenizer(write(tmp_path, root)).encode("a<tool>a", add_bos=False) == [258, N + 2, 258]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "type"), "Unigram"),
        (("model", "dropout"), 0.1),
        (("model", "end_of_word_suffix"), "</w>"),
        (("normalizer",), {"type": "Lowercase"}),
        (("normalizer",), {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(a+)+$"}),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": ["a"]}),
        (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed"),
        (("pre_tokenizer",), {"type": "BertPreTokenizer"}),
        (("post_processor",), {"type": "RobertaProcessing"}),
        (("decoder",), {"type": "WordPiece"}),
        (("added_tokens", 2, "single_word"), True),
    ],
)
def test_unknown_parts_of_tokenizer_json_are_refused(tmp_path, path, value):
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json: .*not supported") as caught:
        load_tokenizer(write(tmp_path, changed(path, value)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), []),
        (("model", "vocab"), []),
        (("model", "vocab"), {"a": 1}),
        (("model", "vocab", "a"), 2**40),
        (("model", "vocab", "a"), -1),
        (("model", "vocab", "a"), "0"),
        (("model", "vocab", "a"), True),
        (("model", "vocab", "a"), 5),
        (("model", "vocab", "\ud800"), 500),
        (("model", "vocab", "x" * 5000), 500),
        (("model", "merges"), None),
        (("model", "merges"), [5]),
        (("model", "merges"), [""]),
        (("model", "merges"), ["a"]),
        (("model", "merges"), [["a", 1]]),
        (("model", "merges"), [["a", "b" * 100_000]]),
        (("model", "merges"), ["a x"]),
        (("model", "unk_token"), "nowhere"),
        (("model", "byte_fallback"), "yes"),
        (("added_tokens",), {}),
        (("added_tokens", 0), 5),
        (("added_tokens", 0, "id"), None),
        (("added_tokens", 0, "id"), 3),
        (("added_tokens", 0, "content"), ""),
        (("normalizer",), 5),
        (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}),
        (("pre_tokenizer", "pretokenizers"), 5),
    ],
)
def test_malformed_tokenizer_json_is_refused(tmp_path, path, value):
    with pytest.raises(FormatError, match=r"tokenizer\.json: ") as caught:
        load_tokenizer(write(tmp_path, changed(path, value)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "Regex", "x"]), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_any_replaced_part_is_refused_or_leaves_a_sound_tokenizer(tmp_path_factory, data):
    root = copy.deepcopy(byte_level_json())
    part, key = root, data.draw(st.sampled_from(sorted(root)))
    while isinstance(part[key], (dict, list)) and part[key] and data.draw(st.booleans()):
        part = part[key]
        key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
    part[key] = data.draw(JSON)
    message = ""
    try:
        tokenizer = load_tokenizer(write(tmp_path_factory.mktemp("t"), root))
    except LowbitError as error:
        message = str(error)
    assert "\n" not in message
    if not message:
        ids = tokenizer.encode("ab é 日 12<tool>")
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    "blob", [b"{", b"{" * 100_000, b'{"a":' * 100_000, b'{"model": ' + b"9" * 10_000 + b"}", b"{\xff}"]
)
def test_broken_json_is_refused_with_little_work(tmp_path, blob):
    (tmp_path / "tokenizer.json").write_bytes(blob)
    with Work() as work, pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    assert work.steps < LITTLE


def test_the_files_of_a_folder_name_bos_eos_and_ends(tmp_path):
    root = byte_level_json()
    root["post_processor"] = None
    root["added_tokens"].append({"id": N + 3, "content": "<start>", "special": True})
    write(tmp_path, root)
    assert load_tokenizer(tmp_path).bos_id == N
    write(tmp_path, {"bos_token": {"content": "<start>"}, "eos_token": "<|eot_id|>"}, "special_tokens_map.json")
    write(tmp_path, {"add_bos_token": True, "add_eos_token": True}, "tokenizer_config.json")
    write(tmp_path, {"eos_token_id": [N + 2, N + 1, 10**9, "x", None, True]}, "generation_config.json")
    write(tmp_path, {"eos_token_id": 7}, "config.json")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (N + 3, N + 1)
    assert tokenizer.encode("a") == [N + 3, LETTERS.index("a")]
    assert tokenizer.add_eos
    assert tokenizer.eos_ids == {7, N + 1, N + 2}
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(FormatError, match=r"generation_config\.json: is not a JSON object"):
        load_tokenizer(tmp_path)


def test_added_tokens_that_the_model_has_no_row_for_are_text(tmp_path):
    """Gemma 3 without eyes has 262144 rows, and in its tokenizer.json a token 262144 for images."""
    root = byte_level_json()
    root["added_tokens"].append({"id": N + 3, "content": "<image>", "special": True})
    write(tmp_path, root)
    assert load_tokenizer(tmp_path).encode("<image>", False, parse_special=True) == [N + 3]
    for config in ({"vocab_size": N + 3}, {"text_config": {"vocab_size": N + 3}}):
        write(tmp_path, config, "config.json")
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.vocab_size == N + 3
        assert tokenizer.decode(tokenizer.encode("<image>", False, parse_special=True)) == "<image>"
    # What begins or ends a text is missed by nobody but a broken model, and a larger vocabulary is another model's.
    write(tmp_path, {"eos_token": "<image>"}, "tokenizer_config.json")
    assert load_tokenizer(tmp_path).vocab_size == N + 4
    write(tmp_path, {"vocab_size": N - 1}, "config.json")
    assert load_tokenizer(tmp_path).vocab_size == N + 4


def test_mistrals_own_format_is_refused_by_its_name(tmp_path):
    vocab = [
        {"rank": 0, "token_bytes": "AA==", "token_str": "\0"}
    ] * 70000  # more objects than a tokenizer.json may have
    with pytest.raises(UnsupportedModelError, match=r"tekken\.json"):
        load_tokenizer(write(tmp_path, {"config": {"pattern": "x"}, "vocab": vocab}, "tekken.json"))


def test_rank_files_of_other_vocabularies_and_damaged_ones_are_refused(tmp_path, data):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))
    with pytest.raises(UnsupportedModelError, match="but for that of Llama 3"):
        load_tokenizer(path)
    blob = (data / "tokenizers/llama3/tokenizer.model").read_bytes()
    for old, new in ((b" 700\n", b" 701\n"), (b" 700\n", b"= 700\n"), (b"IQ== 0\n", b"Ig== 0\n"), (b" 9\n", b" -9\n")):
        path.write_bytes(blob.replace(old, new, 1))
        with pytest.raises(FormatError, match=r"tokenizer\.model: (line|its tokens repeat)"):
            load_tokenizer(path)


def test_a_folder_names_the_reserved_tokens_of_llama3(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes((data / "tokenizers/llama3/tokenizer.model").read_bytes())
    added = {"128008": {"content": "<|eom_id|>", "special": True}}
    write(tmp_path, {"eos_token": "<|eot_id|>", "added_tokens_decoder": added}, "tokenizer_config.json")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.piece(128_008) == "<|eom_id|>"
    assert tokenizer.eos_id == 128_009
    assert tokenizer.eos_ids == {128_001, 128_008, 128_009}


def test_without_the_tokenizers_library_the_error_says_what_to_install(tmp_path):
    write(tmp_path, byte_level_json())
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from lowbit.tokenizers import load_tokenizer\n"
        "from lowbit.errors import UnsupportedModelError\n"
        f"try: load_tokenizer({str(tmp_path)!r})\n"
        "except UnsupportedModelError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install tokenizers" in done.stdout
