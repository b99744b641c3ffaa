"""A folder that becomes GGUF keeps its tokenizer: the same ids for any text, and the same conversations."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit
from lowbit.chat.templates import render
from lowbit.convert import convert
from lowbit.errors import FormatError
from lowbit.formats import open_model
from lowbit.tokenizers import load_tokenizer
from lowbit.tokenizers.byte_alphabet import BYTE_TO_LETTER
from lowbit.tokenizers.splitting import LLAMA3, QWEN2

pytest.importorskip("tokenizers.models")

HERE = Path(__file__).parent


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


checkpoints = module("checkpoints_of_families", HERE.parent / "families/checkpoints.py")
llama_cpp_peer = module("llama_cpp_peer", HERE.parent / "peer/test_llama_cpp.py")
peer = llama_cpp_peer.peer

LETTERS = [BYTE_TO_LETTER[byte] for byte in range(256)]
MERGES = ["a b", "ab c", "Ġ a", "1 2", "12 3", "Ã ©", "h e", "l l", "he ll", "hell o"]
TOKENS = [*LETTERS, *("".join(merge.split(" ")) for merge in MERGES)]
N = len(TOKENS)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_level(regex=LLAMA3, **parts):
    """A tokenizer.json over bytes with a few merges, two control tokens and one that is found in any text."""
    steps = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}] if regex else []
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(TOKENS)}, "merges": MERGES, "ignore_merges": True}
    return {
        "added_tokens": [
            {"id": N, "content": "<|begin_of_text|>", "special": True},
            {"id": N + 1, "content": "<|im_end|>", "special": True},
            {"id": N + 2, "content": "<|im_start|>", "special": True, "rstrip": parts.pop("rstrip", False)},
            {"id": N + 3, "content": "<tool>", "special": False},
        ],
        "normalizer": parts.pop("normalizer", None),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*steps, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": not steps}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin_of_text|>"}}, {"Sequence": {"id": "A"}}],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {**model, **parts},
    }


def with_runs():
    """Tokens of runs of spaces, which are found before text is merged, and merges that make them in no one order."""
    root = with_scores("never")
    size = len(root["model"]["vocab"])
    runs = ["▁" * n for n in range(2, 5)]
    root["model"]["vocab"] |= {run: size + i for i, run in enumerate(runs)}
    root["model"]["merges"] += ["▁ ▁", "▁▁ ▁▁", "▁▁ ▁", "▁ ▁▁", "▁▁▁ ▁", "▁ ▁▁▁"]
    root["added_tokens"] += [{"id": size + i, "content": run, "special": False} for i, run in enumerate(runs)]
    return root


def with_scores(scheme="first"):
    """A tokenizer.json over text, as made from a SentencePiece model."""
    merges = ["a b", "▁ a", "▁ ab", "▁a b", "ab c", "▁ab c", "▁ abc"]
    order = {token: i for i, token in enumerate(["ab", "▁a", "▁ab", "abc", "▁abc"])}
    merges.sort(key=lambda merge: order[merge.replace(" ", "")])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", *order]
    return {
        "added_tokens": [{"id": i, "content": tokens[i], "special": True} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "post_processor": byte_level()["post_processor"]
        | {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if scheme != "never" else []),
            ],
        },
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges,
                  "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """`converted(files, vocab)` writes a model folder with these files, and converts it; return both paths."""

    def make(files, vocab=N + 8, case="llama1", expect=None):
        folder = tmp_path_factory.mktemp("model")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "VOCAB", vocab)
            checkpoints.write(case, folder)
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copy(content, folder / name)
            else:
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        done = convert(folder, folder / "out.gguf", "f16", "f16")
        assert (done.no_tokenizer is None) == (expect is None), done.no_tokenizer
        if expect is not None:
            assert expect in done.no_tokenizer
        return folder, folder / "out.gguf"

    return make


def equal(folder, file, texts):
    before, after = load_tokenizer(folder), load_tokenizer(file)
    for text in texts:
        for special in (False, True):
            ids = before.encode(text, parse_special=special)
            assert after.encode(text, parse_special=special) == ids, (text, special)
        assert after.decode(ids) == before.decode(ids)
    for name in ("bos_id", "eos_id", "eos_ids", "add_bos", "add_eos"):
        assert getattr(after, name) == getattr(before, name), name
    return after


def strings(n, seed=1):
    """Random texts of mixed scripts, spaces, digits, emoji and control characters."""
    rng = random.Random(seed)
    alphabet = [
        *"aabbcc  hello123",
        *" \n\t\r'.,!<>|_",
        *"éÄßžабвгд日本語中文العربيةहि",
        "🙂",
        "👩‍👧",
        "e\u0301",
        "\x00",
        "\u2028",
    ]
    names = ["<s>", "</s>", "<tool>", "<|im_end|>", "<|im_start|>", "▁", "don't", "WE'LL", "https://"]
    return ["".join(rng.choices([*alphabet, *names], k=rng.randrange(30))) for _ in range(n)]


KINDS = {
    "llama3": byte_level(),
    "qwen2": byte_level(QWEN2, normalizer={"type": "NFC"}, ignore_merges=False),
    "gpt2": byte_level(None, ignore_merges=False),
    "swallowing": byte_level(rstrip=True),
    "first": with_scores("first"),
    "always": with_scores("always"),
    "sentencepiece": {
        **with_scores("always"),
        "pre_tokenizer": None,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    },
    "never": with_scores("never"),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, converted):
    return converted({"tokenizer.json": KINDS[request.param]})


def test_random_texts_have_the_ids_of_the_folder(pair):
    equal(*pair, strings(300))


def test_any_text_has_the_ids_of_the_folder(pair):
    before, after = map(load_tokenizer, pair)

    @settings(max_examples=50, deadline=None)
    @given(st.text(), st.booleans())
    def check(text, special):
        assert after.encode(text, parse_special=special) == before.encode(text, parse_special=special)

    check()


def test_text_is_generated_alike(pair):
    before, after = (lowbit.load(path, threads=1, head="file", weights="file", kv_type="f32") for path in pair)
    outs = [m.generate("abc hello", max_tokens=8, temperature=0) for m in (before, after)]
    assert outs[0].prompt_tokens == outs[1].prompt_tokens
    assert outs[0].tokens == outs[1].tokens
    assert outs[0].text == outs[1].text


def test_conversations_are_written_alike(converted):
    messages = [{"role": "user", "content": " <|im_end|> abc "}, {"role": "assistant", "content": "a"},
                {"role": "user", "content": "x"}]  # fmt: skip
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    for files, source in (
        ({"tokenizer_config.json": {"chat_template": CHATML}}, CHATML),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": CHATML}]}}, CHATML),
        ({"chat_template.jinja": own, "tokenizer_config.json": {"chat_template": CHATML}}, own),
    ):
        paths = converted({"tokenizer.json": byte_level(), **files})
        metadata = [open_model(path).metadata for path in paths]
        assert [m["tokenizer.chat_template"] for m in metadata] == [source] * 2
        before, after = (render(messages, m, load_tokenizer(p)) for m, p in zip(metadata, paths))
        assert before == after
        model = lowbit.load(paths[1], threads=1)
        assert model.chat(messages, max_tokens=2, temperature=0).prompt_tokens == len(before)


@pytest.mark.parametrize("template", [7, {"a": 1}, "x" * (1 << 20) + "y"])
def test_a_template_that_is_none_is_refused(converted, template):
    with pytest.raises(FormatError, match="chat template"):
        converted({"tokenizer_config.json": {"chat_template": template}})


def test_a_template_outside_of_the_folder_is_not_read(converted, tmp_path):
    folder, _ = converted({"tokenizer.json": byte_level()})
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="out of the folder"):
        open_model(folder)


def test_ends_of_a_text_come_along(converted):
    ends = {"generation_config.json": {"eos_token_id": [N + 1, 3, 5]}}
    folder, file = converted({"tokenizer.json": byte_level(), **ends})
    assert equal(folder, file, ["abc"]).eos_ids == {N + 1, 3, 5}
    converted(
        {"tokenizer.json": byte_level(), "generation_config.json": {"eos_token_id": [N + 1, 3, 5, 7]}}, expect="eos_ids"
    )


@pytest.mark.parametrize("kind", ["llama3", "sentencepiece"])
def test_the_vocabulary_is_filled_up_to_that_of_the_model(converted, kind):
    folder, file = converted({"tokenizer.json": KINDS[kind]}, vocab=N + 20)
    known, tokenizer = load_tokenizer(folder).vocab_size, load_tokenizer(file)
    assert tokenizer.vocab_size == N + 20
    assert tokenizer.decode(range(known, N + 20)) == ""
    assert max(tokenizer.encode("[PAD270] [PAD280]")) < known


def test_a_config_that_names_a_bos_which_the_tokenizer_has_not_does_not_make_one(converted):
    root = byte_level(None, ignore_merges=False)
    root["added_tokens"], root["post_processor"] = [], None
    folder, file = converted({"tokenizer.json": root})
    assert open_model(folder).metadata["tokenizer.ggml.bos_token_id"] == 1
    equal(folder, file, ["abc", '"a"', "!"])


def test_more_tokens_than_the_model_has_are_refused(converted):
    with pytest.raises(FormatError, match=r"token texts for a vocabulary of 100"):
        converted({"tokenizer.json": byte_level()}, vocab=100)


SPREAD = with_scores()
SPREAD["model"]["merges"] = ["a b", "▁ a", "▁ ab", "ab c", "▁ab c", "▁ abc", "▁a b"]
FEWER = with_scores()
FEWER["model"]["merges"].remove("▁a b")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "the folder has none"),
        ({"tokenizer.json": byte_level(r"\p{N}{1,3}")}, "rule that has no name"),
        ({"tokenizer.json": byte_level(QWEN2)}, "rule that has no name"),  # with ignore_merges, which qwen2 has not
        ({"tokenizer.json": byte_level(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b"})},
         "changes text"),
        ({"tokenizer.json": SPREAD}, "two different ranks"),
        ({"tokenizer.json": FEWER}, "possible ways"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_gguf_has_no_words_for_is_left_out_and_said_so(converted, files, why):
    _, file = converted(files, expect=why)
    assert "tokenizer.ggml.model" not in open_model(file).metadata
    assert len(lowbit.load(file, threads=1).generate([1, 2], max_tokens=3, temperature=0).tokens) == 3


def test_the_command_says_why_there_is_no_tokenizer(converted, tmp_path, capsys):
    from lowbit import cli

    folder, _ = converted({}, expect="none")
    assert cli.main(["convert", str(folder), str(tmp_path / "out.gguf"), "--type", "f16"]) == 0
    told = capsys.readouterr()
    assert "without a tokenizer: the folder has none\n" in told.err
    assert str(tmp_path / "out.gguf") in told.out


def test_keys_that_make_another_tokenizer_are_not_written(converted, monkeypatch):
    """What GGUF cannot say is found by comparing, even if nobody thought of it."""
    from lowbit.tokenizers import export

    monkeypatch.setattr(export, "STRIP_KEYS", ())
    converted({"tokenizer.json": KINDS["swallowing"]}, expect="in another way")


def test_lowbits_own_keys_survive_another_conversion(converted, tmp_path):
    folder, file = converted({"tokenizer.json": KINDS["qwen2"]})
    convert(file, tmp_path / "again.gguf", "f16")
    equal(folder, tmp_path / "again.gguf", ["e\u0301", "a\u0301b"])


@pytest.mark.parametrize("files", [["llama2/tokenizer.model"], ["llama2/tokenizer.json"], ["llama3/tokenizer.model"]])
def test_real_tokenizers_have_the_ids_of_the_folder(converted, test_data, files):
    source = test_data / "tokenizers"
    vocab = 128256 if "llama3" in files[0] else 32002
    folder, file = converted({Path(name).name: source / name for name in files}, vocab=vocab)
    texts = strings(200)
    for name in ("llama-bpe", "llama-spm"):
        texts += (source / f"ggml-vocab-{name}.gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    equal(folder, file, [*texts, "a" * 3000])


def test_runs_of_spaces_are_written_as_llama_cpp_looks_for_them(converted):
    folder, file = converted({"tokenizer.json": with_runs()})
    tokens = open_model(file).metadata["tokenizer.ggml.tokens"]
    assert [token for token in tokens if not token.strip()] == [b"  ", b"   ", b"    "]
    equal(folder, file, [text for text in strings(300) if "▁" not in text])
    equal(folder, file, ["a" + " " * n + "b" for n in range(1, 14)])


def test_tokens_that_files_add_to_tokenizer_model_come_along(converted, test_data):
    files = {
        "tokenizer.model": test_data / "tokenizers/llama2/tokenizer.model",
        "added_tokens.json": json.dumps({"<|im_end|>": 32000, "<|im_start|>": 32001, "<a b>": 32002}),
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "add_bos_token": True},
    }
    folder, file = converted(files, vocab=32008)
    tokenizer = equal(folder, file, ["<|im_start|>user\nHi<|im_end|>", "x<a b> y", *strings(100)])
    assert (tokenizer.eos_id, tokenizer.encode("<a b>", False)[-1]) == (32000, 32002)


@pytest.mark.parametrize("name", ["qwen2", "gpt-2"])
def test_real_byte_level_vocabularies_come_back_from_tokenizer_json(converted, test_data, name):
    """GGUF to tokenizer.json, written here from the vocabulary's own keys, and back."""
    source = test_data / f"tokenizers/ggml-vocab-{name}.gguf"
    metadata = open_model(source).metadata
    texts = [token.decode("utf-8", "surrogateescape") for token in metadata["tokenizer.ggml.tokens"]]
    control = set(np.flatnonzero(metadata["tokenizer.ggml.token_type"] == 3).tolist())
    root = byte_level({"qwen2": QWEN2, "gpt-2": None}[name])
    root["model"] |= {
        "vocab": {t: i for i, t in enumerate(texts)},
        "merges": [m.decode() for m in metadata["tokenizer.ggml.merges"]],
        "ignore_merges": False,
    }
    root["added_tokens"] = [{"id": i, "content": texts[i], "special": True} for i in sorted(control)]
    root["post_processor"] = None
    _, file = converted({"tokenizer.json": root}, vocab=len(texts))
    given_file, made = load_tokenizer(source), load_tokenizer(file)
    assert open_model(file).metadata["tokenizer.ggml.pre"] == name
    for text in [*strings(100), *source.with_suffix(".gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")]:
        assert made.encode(text, add_bos=False) == given_file.encode(text, add_bos=False)


def test_gguf_py_reads_the_keys(converted):
    gguf = pytest.importorskip("gguf")
    for kind in ("llama3", "sentencepiece"):
        _, file = converted({"tokenizer.json": KINDS[kind], "tokenizer_config.json": {"chat_template": CHATML}})
        fields = gguf.GGUFReader(str(file)).fields
        ours = open_model(file).metadata
        assert fields["tokenizer.chat_template"].contents() == CHATML
        for key, value in ours.items():
            if key.startswith("tokenizer.") and key in fields:
                read = fields[key].contents()
                if isinstance(value, list):
                    assert [text.encode() for text in read] == value
                else:
                    assert (np.asarray(read) == value).all()
        assert fields.keys() >= ours.keys()


TOKENIZE = r"""
import ctypes, json, sys
import llama_cpp as lib

@lib.llama_log_callback
def quiet(level, text, data):
    pass

lib.llama_log_set(quiet, ctypes.c_void_p(0))
path, texts = json.loads(sys.stdin.read())
model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
assert model, "llama.cpp refuses the file"
vocab = lib.llama_model_get_vocab(model)
told = []
for text in texts:
    raw = text.encode()
    room = (lib.llama_token * (len(raw) + 8))()
    count = lib.llama_tokenize(vocab, raw, len(raw), room, len(room), True, False)
    told.append(list(room[:count]))
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    "kind", ["llama3", "gpt2", "sentencepiece", "runs", "llama2/tokenizer.json", "llama2/tokenizer.model"]
)
def test_llama_cpp_loads_the_file_and_splits_text_alike(converted, peer, request, kind):
    if "/" in kind:
        path = request.getfixturevalue("test_data") / "tokenizers" / kind
        folder, file = converted({path.name: path}, vocab=32002)
    else:
        folder, file = converted({"tokenizer.json": with_runs() if kind == "runs" else KINDS[kind]})
    texts = [text for text in strings(300, seed=7) if text and "<" not in text and "\x00" not in text]
    texts = [text for text in texts if kind != "runs" or "▁" not in text]
    done = subprocess.run(
        [peer, "-c", TOKENIZE], input=json.dumps([str(file), texts]), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-800:]
    tokenizer = load_tokenizer(folder)
    for text, ids in zip(texts, json.loads(done.stdout)):
        assert ids == tokenizer.encode(text), text
