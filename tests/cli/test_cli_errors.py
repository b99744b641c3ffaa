"""Bad input ends with exit status 2 and one line that says why; standard output stays empty."""

from __future__ import annotations

import importlib.util
import sys

import pytest

import lowbit


def assert_one_clear_line(out, *fragments):
    assert out.status == 2
    assert out.out == ""
    assert out.err.startswith("lowbit: error: ")
    assert out.err.count("\n") == 1
    assert out.err.endswith("\n")
    for fragment in fragments:
        assert fragment in out.err


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["-n", "-2"], ["--max-tokens", "-2"]),
        (["-n", "many"], ["-n", "many"]),
        (["--temperature", "-0.5"], ["temperature", "-0.5"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--temperature", "warm"], ["--temperature", "warm"]),
        (["--top-k", "-1"], ["top_k", "-1"]),
        (["--top-p", "0"], ["top_p", "0.0"]),
        (["--top-p", "1.5"], ["top_p", "1.5"]),
        (["--min-p", "-0.1"], ["min_p", "-0.1"]),
        (["--min-p", "2"], ["min_p", "2.0"]),
        (["--repeat-penalty", "0"], ["repeat_penalty", "0.0"]),
        (["--repeat-penalty", "inf"], ["repeat_penalty", "inf"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--seed", "18446744073709551616"], ["seed", "18446744073709551616"]),
        (["--stop", ""], ["stop"]),
        (["--threads", "0"], ["--threads", "'0'"]),
        (["--context", "-5"], ["--context", "'-5'"]),
        (["--sparsity", "half"], ["--sparsity", "half"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_invalid_generate_option_is_named(run, model, arguments, fragments):
    assert_one_clear_line(run("generate", "Once", *arguments), *fragments)
    assert not hasattr(model, "path"), "bad options are noticed before a model is loaded"


@pytest.mark.parametrize("origin", ["x", "localhost:3000", "http://", "http://a b"])
def test_what_is_no_origin_is_refused(run, model, origin):
    assert_one_clear_line(run("serve", "--cors", origin), "--cors", repr(origin))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["chatter"], "chatter"),
        (["tokenize", "a", "b"], "unrecognized arguments: b"),
        (["-m", "model.gguf", "-p", "Once"], "lowbit chat -m"),
    ],
)
def test_wrong_command_line_is_explained(run, model, arguments, fragment):
    assert_one_clear_line(run(*arguments), fragment, "--help")


@pytest.mark.parametrize(("command", "what"), [("generate", "prompt"), ("tokenize", "text"), ("perplexity", "text")])
def test_nothing_to_read_is_an_error(run, model, command, what):
    assert_one_clear_line(run(command), f"no {what}")


@pytest.mark.parametrize("command", ["generate", "tokenize", "perplexity"])
def test_input_that_is_not_utf8_is_an_error(run, model, command):
    assert_one_clear_line(run(command, stdin=b"abc\xff"), "standard input", "not UTF-8", "byte 3")


def test_argument_that_is_not_utf8_is_an_error(run, model):
    assert_one_clear_line(run("generate", "abc\udcff"), "prompt", "not UTF-8")


@pytest.mark.parametrize("ids", ["1 x", "1.5", "-1"])
def test_token_ids_must_be_whole_numbers(run, model, ids):
    assert_one_clear_line(run("tokenize", "--decode", stdin=ids.encode()), "token ids", repr(ids.split()[-1]))


def test_token_id_outside_the_vocabulary_is_an_error(run, model):
    assert_one_clear_line(run("tokenize", "--decode", "3 257"), "257")


@pytest.mark.parametrize(("arguments", "stdin"), [([], b""), (["--separator", "."], b" . .")])
def test_perplexity_of_nothing_is_an_error(run, model, arguments, stdin):
    assert_one_clear_line(run("perplexity", *arguments, stdin=stdin), "no text to score")


def test_perplexity_of_an_empty_separator_is_an_error(run, model):
    assert_one_clear_line(run("perplexity", "--separator", "", stdin=b"abc"), "separator")


def test_perplexity_of_a_missing_file_names_it(run, model, tmp_path):
    assert_one_clear_line(run("perplexity", str(tmp_path / "no.txt")), "no.txt", "No such file")


def test_info_takes_one_file(run, model):
    assert_one_clear_line(run("info", "a.gguf", "-m", "b.gguf"), "one model file")


@pytest.mark.parametrize("counts", ["0", "1,", "1,two", "-1"])
def test_bench_thread_counts_are_checked(run, counts):
    assert_one_clear_line(run("bench", f"--threads={counts}"), "threads", "at least 1")


def test_bench_draws_what_is_profiled(run, monkeypatch):
    assert_one_clear_line(run("bench", "--plot", "a.svg"), "--plot", "--profile")
    if importlib.util.find_spec("matplotlib"):
        assert_one_clear_line(run("bench", "--profile", "--plot", "a.txt"), "a.txt", "SVG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_one_clear_line(run("bench", "--profile", "--plot", "a.svg"), "matplotlib", "pip install")


def test_bench_takes_a_file_or_a_shape(run):
    assert_one_clear_line(run("bench", "-m", "a.gguf", "--random", "13M"), "not allowed with")


@pytest.mark.parametrize(
    "error",
    [
        lowbit.FormatError("a.gguf: bad\nmagic"),
        lowbit.UnsupportedModelError("a.gguf: bad magic"),
        lowbit.MemoryBudgetError("a.gguf: bad magic"),
        lowbit.ContextLengthError("a.gguf: bad magic"),
        lowbit.UnsupportedISAError("a.gguf: bad magic"),
        ValueError("a.gguf: bad magic"),
        FileNotFoundError(2, "bad magic", "a.gguf"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_while_loading_becomes_one_line(run, monkeypatch, error):
    def load(*args, **options):
        raise error

    monkeypatch.setitem(vars(lowbit), "load", load)
    assert_one_clear_line(run("generate", "Once", "-m", "a.gguf"), "a.gguf: bad magic")


def test_control_characters_of_a_message_are_escaped(run, monkeypatch):
    def load(*args, **options):
        raise lowbit.FormatError("key \x1b[31m\udcff")

    monkeypatch.setitem(vars(lowbit), "load", load)
    assert_one_clear_line(run("generate", "Once"), r"key \x1b[31m\udcff")


def test_a_defect_of_lowbit_itself_is_not_disguised(run, model, monkeypatch):
    monkeypatch.setattr(model, "stream", lambda prompt, **sampling: [][0])
    with pytest.raises(IndexError):
        run("generate", "Once")
