"""What people type who come from elsewhere: it works, or one line says how it is spelled here."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import lowbit as package
from lowbit import cli
from lowbit.formats.gguf_writer import GGUFWriter

GREEDY = ("--temp", 0, "-q")


@pytest.fixture
def run(capsys):
    """Run a command in this process; return exit status, standard output and standard error."""

    def run(*argv):
        status = cli.main([str(word) for word in argv])
        return status, *capsys.readouterr()

    return run


def test_a_bare_command_shows_the_help(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out == run("--help")[1] == run("help")[1]
    assert 'lowbit generate "Once upon a time"' in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_is_its_help(run, command):
    assert run("help", command) == run(command, "--help") != run("help")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chatt"], "did you mean chat?"),
        (["help", "genrate"], "did you mean generate?"),
        (["generate", "--temperatur=1", "--max-tokn", "3"], "did you mean --max-tokens?"),
        (["generate", "--n-predict", "3"], "did you mean --max-tokens?"),
        (["generate", "--ctx-size", "3"], "did you mean --context?"),
        (["chat", "--chat-template", "chatml"], "did you mean --template?"),
        (["tokenize", "Once", "upon"], "needs quotes"),
        ([__file__], f"lowbit chat -m {__file__}"),
        (["generate", "-n", "-2"], "-1 for no limit"),
        (["generate", "a", "-p", "b"], "one prompt"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(run, arguments, hint):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert hint in err
    assert err.count("\n") == 1


def test_a_prompt_is_an_argument_words_an_option_or_a_file(run, tmp_path):
    (tmp_path / "prompt.txt").write_text("Once upon a time\n")
    first = run("generate", "Once upon a time", "-n", 8, *GREEDY)
    assert first[0] == 0
    for spelled in (
        ["Once", "upon", "a", "time"],
        ["-p", "Once upon a time"],
        ["-f", tmp_path / "prompt.txt"],
        ["-c", 100, "-s", 3, "Once upon a time"],
    ):
        assert run("generate", "-n", 8, *GREEDY, *spelled) == first


def test_a_text_ends_as_the_model_says_or_at_256_tokens_or_with_the_context(run):
    def made(*options):
        value = json.loads(run("generate", "Once", "--json", *options)[1])
        return len(value["tokens"]), value["finish_reason"], value["prompt_tokens"]

    letters = ("--seed", 1, "--temp", 100, "--top-k", 0, "--top-p", 1)  # no text, which goes on and on
    assert made(*letters)[:2] in ((256, "length"), (made(*letters)[0], "stop"))
    tokens, reason, prompt = made("-c", 20, "-n", -1, *letters)
    assert reason in ("context", "stop")
    assert reason == "stop" or tokens + prompt == 21, "the last token is not read any more"
    assert made("-n", -1, "--seed", 1)[1] in ("stop", "context")


def test_what_ended_a_text_is_said(run):
    told = {ending: run("generate", "Once upon a time", "--seed", 1, *ending)[2] for ending in (("-n", 3), ("-c", 12))}
    assert "cut at 3 tokens]" in told["-n", 3]
    assert "ended by the context of 12 tokens]" in told["-c", 12]


def test_finish_reason_tells_a_full_context_from_enough_tokens():
    model = package.load(context=16)
    full, enough = (model.generate("Once upon a time", max_tokens=n, seed=1) for n in (10**6, 3))
    assert (full.finish_reason, full.prompt_tokens + len(full.tokens)) == ("context", 17)
    assert (enough.finish_reason, len(enough.tokens)) == ("length", 3)
    exact = model.generate("Once upon a time", max_tokens=len(full.tokens), seed=1)
    assert (exact.tokens, exact.finish_reason) == (full.tokens, "length")


def test_a_text_may_go_on_where_the_context_is_full(run, tmp_path):
    asked = ("generate", "Once upon a time", "-c", 16, "-n", 60, "-s", 1, "--context-shift")
    want = package.load(context=16).generate("Once upon a time", max_tokens=60, seed=1, context_shift=True)
    status, out, err = run(*asked)
    assert (status, out) == (0, want.text + "\n")
    assert f"the end was made without the first {want.left_out} tokens" in err
    assert json.loads(run(*asked, "--json")[1])["left_out"] == want.left_out > 16
    for refused in (run(*asked, "--regex", "a+"), run("generate", "Once", "-c", 3, "--context-shift")):
        assert (refused[0], refused[2].count("\n")) == (2, 1)


def test_a_stop_string_may_be_a_line_end(run):
    whole = run("generate", "Tell me a story", "-n", 200, "-s", 1, "-q")[1]
    assert "\n\n" in whole.strip("\n"), "this seed writes paragraphs"
    assert (
        run("generate", "Tell me a story", "-n", 200, "-s", 1, "-q", "--stop", r"\n")[1]
        == whole.partition("\n")[0] + "\n"
    )


def test_more_threads_than_cores_are_as_many_as_there_are(run):
    few, many = (run("generate", "Once", "-n", 5, *GREEDY, "-t", n) for n in (1, 1000))
    assert few[:2] == many[:2]
    assert "1000 threads are more than there are cores" in many[2]
    assert many[2].count("\n") == 1


def test_home_is_expanded_where_a_shell_does_not(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "text.txt").write_text("Once upon a time")
    os.link(package.load().info()["path"], tmp_path / "model.gguf")
    assert run("generate", "-m", "~/model.gguf", "-f", "~/text.txt", "-n", 2, "-q")[0] == 0
    assert run("perplexity", "~/text.txt", "--model=~/model.gguf")[0] == 0
    assert run("info", "~/model.gguf")[0] == 0


def test_info_describes_a_vocabulary_without_a_model(run, tmp_path):
    path = tmp_path / "vocabulary.gguf"
    with GGUFWriter(path, "gpt2") as writer:
        writer.add_metadata("tokenizer.ggml.model", "llama")
        writer.add_metadata("tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "a"])
        writer.add_metadata("tokenizer.ggml.scores", np.zeros(4, np.float32))
        writer.add_metadata("tokenizer.ggml.token_type", np.int32([2, 3, 3, 1]))
    status, out, _ = run("info", path, "--json")
    told = json.loads(out)
    assert (status, told["tokenizer"]["tokens"], told["parameters"]) == (0, 4, 0)
    assert "without a model" in run("info", path)[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_commands_options_and_where_files_are_named(run, shell):
    pytest.importorskip("shtab", reason="completion needs the extra 'completion'")
    status, out, err = run("completion", shell)
    assert (status, err) == (0, "")
    for word in ("generate", "perplexity", "max-tokens", "max-ram"):
        assert word in out


def test_completion_without_its_library_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert run("completion", "bash") == (
        2,
        "",
        'lowbit: error: completion needs shtab: pip install "lowbit[completion]"\n',
    )


@pytest.mark.parametrize(("command", "tokens"), [("generate", 256), ("chat", 1024)])
def test_the_help_tells_the_default_that_is(run, command, tokens):
    assert f"(default: {tokens})" in " ".join(run(command, "--help")[1].split())
