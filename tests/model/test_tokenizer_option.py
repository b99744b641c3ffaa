"""Another tokenizer than the model's own: it is used in its place, and must fit the vocabulary."""

from __future__ import annotations

import json

import pytest

import lowbit
from lowbit import cli

TOKENS = 286
"""Of the fixture `vocabulary`."""


def test_a_model_without_a_tokenizer_reads_text_with_another(write_llama, vocabulary):
    path = write_llama(vocab=TOKENS)
    with pytest.raises(lowbit.UnsupportedModelError, match="no tokenizer"):
        lowbit.load(path).generate("abc")
    model = lowbit.load(path, tokenizer=vocabulary)
    ids = lowbit.load_tokenizer(vocabulary).encode("abc")
    expected = lowbit.load(path).generate(ids, temperature=0, max_tokens=4).tokens
    assert model.generate("abc", temperature=0, max_tokens=4).tokens == expected
    assert model.info()["warnings"] == []


def test_the_model_s_own_tokenizer_is_not_even_read(test_data, tmp_path):
    own = lowbit.load(test_data / "models/stories260K.bin")
    other = lowbit.load(test_data / "models/stories260K.bin", tokenizer=test_data / "models/tok512.model")
    assert (
        other.generate("Once", temperature=0, max_tokens=8).tokens
        == own.generate("Once", temperature=0, max_tokens=8).tokens
    )
    alone = tmp_path / "stories.bin"
    alone.write_bytes((test_data / "models/stories260K.bin").read_bytes())
    (tmp_path / "tokenizer.bin").write_bytes(b"damaged")
    with pytest.raises(lowbit.LowbitError):
        lowbit.load(alone)
    assert lowbit.load(alone, tokenizer=test_data / "models/tok512.bin").tokenizer.vocab_size == 512


def test_a_folder_will_do(write_llama, test_data, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes((test_data / "models/tok512.model").read_bytes())
    assert lowbit.load(write_llama(vocab=512), tokenizer=str(folder) + "/").tokenizer.vocab_size == 512


def test_a_larger_tokenizer_is_refused_and_named(write_llama, vocabulary):
    with pytest.raises(lowbit.FormatError) as caught:
        lowbit.load(write_llama(vocab=256), tokenizer=vocabulary)
    assert str(caught.value) == f"{vocabulary}: holds {TOKENS} tokens, but the model has 256"


def test_a_smaller_tokenizer_gets_a_warning(write_llama, vocabulary):
    [warning] = lowbit.load(write_llama(vocab=512), tokenizer=vocabulary).info()["warnings"]
    assert f"{TOKENS} tokens" in warning
    assert "512" in warning


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b'{"model": 1}'])
def test_what_is_no_tokenizer_is_named_once(write_llama, tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(lowbit.LowbitError) as caught:
        lowbit.load(write_llama(), tokenizer=path)
    assert str(caught.value).startswith(f"{path}: ")


def test_commands_take_it(write_llama, vocabulary, tmp_path, capsys):
    path, text = str(write_llama(vocab=TOKENS, name="model.gguf")), tmp_path / "text.txt"
    text.write_text("abc abc", encoding="utf-8")
    option = ["-m", path, "--tokenizer", str(vocabulary)]
    ids = lowbit.load_tokenizer(vocabulary).encode("abc")
    assert cli.main(["tokenize", "abc", "--ids", *option]) == 0
    assert capsys.readouterr().out.split() == list(map(str, ids))
    assert cli.main(["tokenize", "abc", "--ids", "--tokenizer", str(vocabulary)]) == 0
    assert capsys.readouterr().out.split() == list(map(str, ids))
    assert cli.main(["info", "--json", *option]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"]["tokens"] == TOKENS
    assert cli.main(["generate", "abc", "-n", "2", *option]) == 0
    assert cli.main(["perplexity", str(text), *option]) == 0
    out = tmp_path / "thresholds.json"
    assert cli.main(["calibrate", "--text", str(text), "--target", "0.4", "-o", str(out), *option]) == 0
    assert len(json.loads(out.read_text("utf-8"))["layers"]) == 3


@pytest.mark.parametrize("command", [["generate", "a"], ["tokenize", "a"], ["info"], ["perplexity", "TEXT"]])
def test_a_tokenizer_that_does_not_fit_is_one_line_and_status_2(write_llama, vocabulary, tmp_path, capsys, command):
    text = tmp_path / "text.txt"
    text.write_text("abc", encoding="utf-8")
    command = [str(text) if word == "TEXT" else word for word in command]
    assert cli.main([*command, "-m", str(write_llama(vocab=128)), "--tokenizer", str(vocabulary)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tokens, but the model has 128" in error
