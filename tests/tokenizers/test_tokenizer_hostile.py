"""A bad vocabulary is refused with one line that names the file, or is used safely. It never crashes."""

from __future__ import annotations

import os
import random
import struct

import numpy as np
import pytest
from work import LITTLE, Work

from lowbit.errors import FormatError, LowbitError, UnsupportedModelError
from lowbit.tokenizers import from_gguf_metadata, load_tokenizer


def refuse(metadata, match, error=FormatError):
    with pytest.raises(error, match=match) as caught:
        from_gguf_metadata(metadata, "bad.gguf")
    assert str(caught.value).startswith("bad.gguf: ")
    assert "\n" not in str(caught.value)


def changed(metadata, name, change):
    return metadata | {f"tokenizer.ggml.{name}": change(metadata[f"tokenizer.ggml.{name}"])}


@pytest.mark.parametrize("kind", ["bert", "t5", "", "x" * 10**6])
def test_unknown_kinds_are_named(small, kind):
    refuse(small(model=kind), f"kind '{kind[:10]}.*not supported, only llama", UnsupportedModelError)


@pytest.mark.parametrize("name", ["model", "tokens", "scores"])
def test_missing_keys_are_refused(small, name):
    refuse(small(**{name: None}), name if name != "model" else "no tokenizer")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 7),
        ("tokens", "abc"),
        ("tokens", np.zeros(266, np.float32)),
        ("tokens", [1, 2, 3]),
        ("scores", 1.0),
        ("scores", [0.0] * 266),
        ("scores", np.zeros(266, np.uint8)),
        ("scores", np.zeros(266, np.int64)),
        ("token_type", np.ones(266, np.uint8)),
        ("token_type", np.ones(266, np.float32)),
        ("token_type", "normal"),
        ("bos_token_id", "1"),
        ("bos_token_id", True),
        ("eos_token_id", 2.0),
        ("add_bos_token", 1),
        ("add_space_prefix", "yes"),
    ],
)
def test_values_of_the_wrong_type_are_refused(small, name, value):
    refuse(small(**{name: value}), "tokenizer")


@pytest.mark.parametrize("name", ["scores", "token_type"])
@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a[:0], lambda a: np.append(a, a[-1:])])
def test_arrays_of_another_length_than_the_tokens_are_refused(small, name, change):
    refuse(changed(small(), name, change), "266 tokens, but")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(small, value):
    metadata = small()
    metadata["tokenizer.ggml.scores"][265] = value
    refuse(metadata, "token 265 has a score")


@pytest.mark.parametrize("value", [-1, 7, 2**31 - 1])
def test_token_types_must_be_known(small, value):
    refuse(small(("x", value)), f"type {value}")


@pytest.mark.parametrize(
    "text", ["<0x-1>", "<0x1>", "<0x+1>", "<0x 1>", "<0x001>", "<0xGG>", "a", "", "<0x41>\n", "<0x٤١>"]
)
def test_byte_tokens_have_exactly_two_hex_digits(small, text):
    refuse(small((text, 6)), "token 266 is a byte")


def test_sizes_are_limited(small):
    refuse(small(("x" * 5000, 1)), "longer than 4096 bytes")
    refuse(small(tokens=[], scores=np.zeros(0, np.float32), token_type=np.zeros(0, np.int32)), "0 tokens")
    n = 2**20 + 1
    refuse(small(tokens=[b"a"] * n, scores=np.zeros(n, np.float32), token_type=np.ones(n, np.int32)), f"{n} tokens")


def test_special_ids_out_of_range_are_ignored(small):
    tok = small.tokenizer(bos_token_id=10**9, eos_token_id=2**32 - 1, unknown_token_id=-5)
    assert (tok.bos_id, tok.eos_id, tok.unk_id) == (1, 2, 0)


@pytest.mark.parametrize(
    "extra",
    [
        [("", 1)],
        [("", 3), ("", 4), ("", 5)],
        [(b"\xff\xfe", 1), (b"\xe2\x96", 1), (b"\x81", 4), (b"\xc3", 3)],
        [("a", 1), ("a", 1), ("a", 4), ("▁a", 5)],
        [("<unk>", 2), ("<unk>", 2), ("<s>", 3), ("<s>", 1)],
        [("<0x41>", 6), ("<0x41>", 1), ("<0x41>", 4), ("<0xaf>", 6)],
        [("a\0b", 1), ("\0", 4), ("\0\0", 4), ("c\0", 5)],
        [("a", 3), ("é", 3), ("日", 3)],
        [("日", 2)],
        [("</s>", 1), ("</s", 1), ("</", 1), ("\x02266", 1), ("\x0226", 1), ("\x022", 1), ("ÿ266", 3)],
        [("a" * n, 5) for n in range(2, 600)],
        [(" ", 1), (" a", 4), ("▁▁▁", 4)],
    ],
    ids=lambda extra: repr(extra[:2])[:40],
)
def test_odd_tokens_neither_crash_nor_lose_text(small, extra):
    tok = small.tokenizer(*extra)
    assert tok.vocab_size == small.first_extra + len(extra)
    for text in (
        "ab é",
        "A\0b",
        "日a",
        "<0x41>",
        "<unk><s>",
        "a" * 700,
        "\x02",
        "\x02266",
        "ÿ266",
        "</s>",
        "a\0b\0\0",
        "   ",
    ):
        ids = tok.encode(text)
        assert max(ids) < tok.vocab_size
        # Control tokens never come from text, even where their name is a single character.
        assert not set(ids[1:]) & (tok.control_ids | {0})
        assert tok.decode(ids) == text
        tok.encode(text, parse_special=True)
    for i in range(tok.vocab_size):
        tok.piece(i)
        tok.token_bytes(i)


def test_tokens_that_are_not_utf8_decode_to_their_bytes(small):
    tok = small.tokenizer((b"\xf0\x9f", 1), (b"\xa6\x99", 1))
    n = small.first_extra
    assert tok.decode([n, n + 1]) == "🦙"
    assert tok.decode([n]) == "\ufffd\ufffd"
    assert tok.piece(n) == "\ufffd"


def test_the_last_of_equal_tokens_is_used(small):
    tok = small.tokenizer(("q", 1), ("q", 1))
    assert tok.encode("q", False)[-1] == small.first_extra + 1


@pytest.mark.parametrize("keep", [0, 1, 255])
def test_without_all_bytes_unknown_characters_become_the_unknown_token(small, keep):
    metadata = small()
    rows = [i for i in range(266) if not 3 <= i < 259 - keep]
    metadata["tokenizer.ggml.tokens"] = [metadata["tokenizer.ggml.tokens"][i] for i in rows]
    for name in ("scores", "token_type"):
        metadata = changed(metadata, name, lambda a: a[rows])
    tok = from_gguf_metadata(metadata, "few.gguf")
    ids = tok.encode("a日", add_bos=False)
    assert ids[-1] == 0
    assert tok.decode(ids) == "a \N{DOUBLE QUESTION MARK} "


@pytest.mark.parametrize(("unknown", "expected"), [(None, [0]), (5, [5]), (1, [])])
def test_an_unknown_token_that_the_types_do_not_name(small, unknown, expected):
    # 1 is BOS: text must not become a control token, so what is unknown is left out.
    metadata = small(bytes_at_3=False, unknown_token_id=unknown)
    metadata["tokenizer.ggml.token_type"][0] = 1
    tok = from_gguf_metadata(metadata, "x.gguf")
    assert tok.encode("a日", False) == [*tok.encode("a", False), *expected]


def write_bin(path, rows, longest=7):
    blob = struct.pack("<I", longest)
    for text, score in rows:
        blob += struct.pack("<fI", score, len(text)) + text
    path.write_bytes(blob)
    return path


def rows_of_a_bin():
    rows = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    rows += [(b"<0x%02X>" % i, 0.0) for i in range(256)]
    return [*rows, (b" ", -1.0), (b"a", -2.0), (b" a", -3.0)]


def test_tokenizer_bin_is_known_by_its_content(tmp_path):
    # Ten as the longest token makes the file begin like a SentencePiece model.
    tok = load_tokenizer(write_bin(tmp_path / "tokenizer.model", rows_of_a_bin(), longest=10))
    assert tok.vocab_size == 262
    assert tok.encode("a") == [1, 261]
    assert tok.encode("</s>a", parse_special=True) == [1, 2, 261]
    assert load_tokenizer(tmp_path).encode("a") == [1, 261]


@pytest.mark.parametrize("vocab_size", [0, 1, 261, 263, -1])
def test_tokenizer_of_another_size_than_the_model_is_refused(tmp_path, vocab_size):
    path = write_bin(tmp_path / "t.bin", rows_of_a_bin())
    assert load_tokenizer(path, vocab_size=262).vocab_size == 262
    with pytest.raises(FormatError, match=f"holds 262 tokens, but the model has {vocab_size}"):
        load_tokenizer(path, vocab_size=vocab_size)


def test_every_cut_of_a_tokenizer_bin_is_refused_or_a_smaller_vocabulary(tmp_path):
    blob = write_bin(tmp_path / "t.bin", rows_of_a_bin()).read_bytes()
    whole = 0
    for size in list(range(60)) + list(range(len(blob) - 60, len(blob))):
        (tmp_path / "t.bin").write_bytes(blob[:size])
        try:
            whole += load_tokenizer(tmp_path / "t.bin").vocab_size < 262
        except FormatError:
            continue
    # Only the cuts between tokens can pass, and only past the bytes.
    assert whole <= 3


@pytest.mark.parametrize("size", [2**32 - 1, 2**31, 5000, 100])
def test_tokenizer_bin_with_wrong_lengths_is_refused(tmp_path, size):
    blob = write_bin(tmp_path / "t.bin", rows_of_a_bin()).read_bytes()
    (tmp_path / "t.bin").write_bytes(blob + struct.pack("<fI", 0.0, size) + b"x")
    with pytest.raises(FormatError, match="claims"):
        load_tokenizer(tmp_path / "t.bin")


def test_tokenizer_bin_without_the_bytes_is_refused(tmp_path):
    rows = rows_of_a_bin()
    rows[100] = (b"x", 0.0)
    with pytest.raises(FormatError, match="not the bytes"):
        load_tokenizer(write_bin(tmp_path / "t.bin", rows))


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (b"", FormatError),
        (b"GGUF", FormatError),
        (b"\n", FormatError),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", FormatError),
        (b"\n\xff\xff\xff\xff\x0f", FormatError),
        (b"\n\x00", FormatError),
        (b"\n\x02\n\x05", FormatError),
        (b"\n\x03\n\x01a", FormatError),
        (b"\x80\x02ctorch", FormatError),
        (b'{"model": {}}', UnsupportedModelError),
        (b"IQ== 0\nIg== 1\n", UnsupportedModelError),
        (b"just words\n", FormatError),
    ],
)
def test_files_that_are_no_sound_tokenizer_are_refused(tmp_path, blob, error):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(blob)
    with pytest.raises(error, match=r"tokenizer\.model") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_without_a_tokenizer_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FormatError, match=tmp_path.name):
            load_tokenizer(path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer\.json: has no model"):
        load_tokenizer(tmp_path)


def test_damaged_sentencepiece_models_never_crash(tmp_path, data):
    blob = (data / "models/tok512.model").read_bytes()
    rng = random.Random(4)
    path = tmp_path / "tokenizer.model"
    outcomes = {True: 0, False: 0}
    for _ in range(400):
        bad = bytearray(blob)
        for _ in range(rng.randrange(1, 6)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad if rng.random() < 0.7 else bad[: rng.randrange(len(bad))])
        message = ""
        with Work() as work:
            try:
                tok = load_tokenizer(path)
            except LowbitError as error:
                message = str(error)
            else:
                ids = tok.encode("Once upon a time 日本 🦙 </s>")
                tok.decode(ids)
                assert not set(ids[1:]) & tok.control_ids
        outcomes[not message] += 1
        assert "\n" not in message
        assert work.steps < LITTLE
    assert min(outcomes.values()) > 20


def test_many_control_tokens_do_not_slow_parsing(small):
    tok = small.tokenizer(*((f"<|reserved_{i}|>", 3) for i in range(20_000)))
    with Work() as work:
        ids = tok.encode("<|reserved_7|>a<" * 5000, add_bos=False, parse_special=True)
    assert work.steps < LITTLE
    assert ids.count(small.first_extra + 7) == 5000


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer_config.json", "config.json"])
def test_links_do_not_lead_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    write_bin(folder / "tokenizer.bin", rows_of_a_bin())
    (folder / name).touch()
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(FormatError, match=f"model: {name} is a link that leads out"):
        load_tokenizer(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.model")
    with pytest.raises(FormatError, match="regular"):
        load_tokenizer(tmp_path / "tokenizer.model")
