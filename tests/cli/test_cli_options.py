"""Every option of every command reaches the model, and what the model returns reaches the user."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType

import pytest

import lowbit
from lowbit.sampling import SamplingParams


def test_generate_prints_the_text_and_reports_on_standard_error(run, model):
    out = run("generate", "Once")
    assert out.status == 0
    assert out.out == "".join(model.pieces) + "\n"
    assert "prompt 5 tokens, 10.0 tok/s" in out.err
    assert "decode 4 tokens, 2.0 tok/s" in out.err
    assert f"seed {model.sampling['seed']}" in out.err
    assert out.err.startswith(r"[A\x1b[0m | load 0.25 s | ")
    assert out.err.count("\n") == 1
    assert (model.prompt, model.path, model.options) == ("Once", None, {})


def test_generate_without_options_uses_the_defaults_of_the_api(run, model):
    run("generate", "Once")
    expected = vars(SamplingParams()).copy()
    del expected["seed"]
    expected["max_tokens"] = 256
    assert {name: model.sampling[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["-n", "7"], "max_tokens", 7),
        (["-n", "-1"], "max_tokens", 2**31 - 1),
        (["--max-tokens", "7"], "max_tokens", 7),
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--top-k", "3"], "top_k", 3),
        (["--top-p", "0.25"], "top_p", 0.25),
        (["--min-p", "0.125"], "min_p", 0.125),
        (["--repeat-penalty", "1.5"], "repeat_penalty", 1.5),
        (["--seed", "18446744073709551615"], "seed", 2**64 - 1),
        (["--stop", "x"], "stop", ("x",)),
        (["--stop", r"\n\\"], "stop", ("\n\\",)),
        (["--stop", "x", "--stop", "yz"], "stop", ("x", "yz")),
    ],
)
def test_sampling_options_reach_the_model(run, model, arguments, name, value):
    assert run("generate", "Once", *arguments).status == 0
    assert model.sampling[name] == value


@pytest.mark.parametrize("command", [["generate", "Once"], ["perplexity", "-"]])
@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["-t", "1"], "threads", 1),
        (["--threads", "1"], "threads", 1),
        (["--max-ram", "64MB"], "max_ram", "64MB"),
        (["--sparsity", "0.5"], "sparsity", 0.5),
        (["--context", "128"], "context", 128),
    ],
)
def test_model_options_reach_load(run, model, command, arguments, name, value):
    assert run(*command, "-m", "a.gguf", *arguments, stdin=b"text").status == 0
    assert (model.path, model.options) == ("a.gguf", {name: value})


def test_generate_quiet_leaves_standard_error_empty(run, model):
    assert run("generate", "Once", "--quiet").err == ""


def test_generate_greedy_reports_no_seed(run, model):
    assert "seed" not in run("generate", "Once", "--temperature", "0").err


@pytest.mark.parametrize("arguments", [["-"], []])
def test_generate_reads_its_prompt_from_a_pipe_without_the_last_line_end(run, model, arguments):
    assert run("generate", *arguments, stdin="Ein Öl\n\n".encode()).status == 0
    assert model.prompt == "Ein Öl\n"


def test_generate_json_is_one_object_and_nothing_else(run, model):
    out = run("generate", "Once", "--json", "--seed", "9")
    value = json.loads(out.out)
    assert out.err == ""
    assert value["text"] == "".join(model.pieces)
    assert value["tokens"] == [1, 2, 3, 4]
    assert (value["prompt_tokens"], value["finish_reason"], value["seed"]) == (5, "length", 9)
    assert value["timings"]["decode_tps"] == 2.0


def test_generate_picks_a_new_seed_each_time(run, model):
    seeds = {json.loads(run("generate", "Once", "--json").out)["seed"] for _ in range(4)}
    assert len(seeds) > 1


def test_tokenize_prints_a_row_per_token(run, model):
    out = run("tokenize", "-m", "a.gguf", "ab")
    assert out.out == "256  '<s>'\n97   'a'\n98   'b'\n"
    assert out.err == "[3 tokens, 2 bytes]\n"


def test_tokenize_ids_prints_bare_ids(run, model):
    assert run("tokenize", "--ids", "ab").out == "256 97 98\n"


def test_tokenize_json_holds_ids_and_pieces(run, model):
    assert json.loads(run("tokenize", "--json", "ab").out) == {"ids": [256, 97, 98], "pieces": ["<s>", "a", "b"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"add_bos": None, "parse_special": False}),
        (["--bos"], {"add_bos": True, "parse_special": False}),
        (["--no-bos", "--parse-special"], {"add_bos": False, "parse_special": True}),
    ],
)
def test_tokenize_options_reach_the_tokenizer(run, model, arguments, expected):
    run("tokenize", "ab", *arguments)
    assert model.tokenizer.options == expected


@pytest.mark.parametrize("written", ["256 97 98", "256,97,98", "[256, 97, 98]"])
def test_tokenize_decodes_ids_however_they_are_separated(run, model, written):
    assert run("tokenize", "--decode", written).out == "ab\n"
    assert json.loads(run("tokenize", "--decode", "--json", written).out) == {"ids": [256, 97, 98], "text": "ab"}


def test_tokenize_output_of_ids_decodes_to_the_text_again(run, model):
    ids = run("tokenize", "--ids", "-", stdin=b"Once upon").out
    assert run("tokenize", "--decode", stdin=ids.encode()).out == "Once upon\n"


def test_perplexity_scores_a_file_as_one_text(run, model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"abc\n\ndefgh")
    out = json.loads(run("perplexity", str(file), "--json").out)
    assert model.scored == ["abc\n\ndefgh"]
    assert out["nats_per_token"] == 1
    assert out["bits_per_byte"] == pytest.approx(1 / math.log(2))
    assert out["perplexity"] == pytest.approx(math.e)
    assert (out["tokens"], out["bytes"], out["texts"]) == (10, 10, 1)


@pytest.mark.parametrize(
    ("separator", "text"),
    [(r"\n\n", b"abc\n\n\n\ndefgh\n"), ("<|end|>", b"abc<|end|>\ndefgh<|end|>"), (r"\\n", rb"abc\ndefgh\n")],
)
def test_perplexity_weighs_pieces_by_their_tokens(run, model, separator, text):
    out = json.loads(run("perplexity", "--separator", separator, "--json", stdin=text).out)
    assert model.scored == ["abc", "defgh"]
    assert out["nats_per_token"] == pytest.approx((3 * 1 + 5 * 2) / 8)
    assert out["bits_per_byte"] == pytest.approx((3 * 1 + 5 * 2) / 8 / math.log(2))
    assert out["texts"] == 2


def test_perplexity_prints_a_table(run, model):
    lines = run("perplexity", stdin=b"abc").out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["nats_per_token", "1.0000"],
        ["bits_per_byte", "1.4427"],
        ["perplexity", "2.718"],
    ]


@pytest.mark.parametrize("arguments", [["a.gguf"], ["-m", "a.gguf"]])
def test_info_prints_a_row_per_fact(run, model, arguments):
    rows = [line.split(maxsplit=1) for line in run("info", *arguments).out.splitlines()]
    assert ["parameters", "1,234,567"] in rows
    assert ["types", "TQ2_0 x 4, F32 x 9"] in rows
    assert ["name", r"A\x1b[0m"] in rows, "control characters of a file must not reach the terminal"
    assert model.path == "a.gguf"


@pytest.fixture
def benchmark_calls(monkeypatch):
    """Replace the benchmark by one that notes its arguments and returns a made-up row per thread count."""
    calls = []

    def run(progress, **arguments):
        calls.append(arguments)
        progress(1, 2)
        figures = {
            "isa": "portable",
            "prefill_tps": 1234.56,
            "decode_tps": 78.9,
            "weight_bytes_per_token": 876_000_000,
            "decode_gbps": 35.25,
            "memory_read_gbps": 40.5,
            "load_seconds": 0.125,
            "rss_mb": 900.4,
        }
        return [{"threads": threads, **figures} for threads in arguments["threads"]]

    fake = ModuleType("lowbit.benchmark")
    fake.run = run
    monkeypatch.setitem(sys.modules, "lowbit.benchmark", fake)
    monkeypatch.setitem(vars(lowbit), "benchmark", fake)
    return calls


def test_bench_measures_the_embedded_model_on_one_and_two_threads_by_default(run, benchmark_calls):
    assert run("bench").status == 0
    assert benchmark_calls == [
        {
            "path": None,
            "random": None,
            "prompt_tokens": 128,
            "decode_tokens": 32,
            "threads": (1, 2),
            "context": None,
            "repeat": 3,
            "sparsity": 0.0,
            "profile": False,
            "batch": 1,
            "pack": "auto",
            "kv_type": "auto",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["-m", "a.gguf"], "path", "a.gguf"),
        (["--random", "13M"], "random", "13M"),
        (["-p", "16"], "prompt_tokens", 16),
        (["-n", "4"], "decode_tokens", 4),
        (["-t", "1,2,4"], "threads", (1, 2, 4)),
        (["--context", "256"], "context", 256),
        (["--repeat", "1"], "repeat", 1),
        (["--sparsity", "0.5"], "sparsity", 0.5),
        (["--batch", "16"], "batch", 16),
        (["--pack", "dense"], "pack", "dense"),
        (["--kv-type", "f16"], "kv_type", "f16"),
    ],
)
def test_bench_options_reach_the_benchmark(run, benchmark_calls, arguments, name, value):
    assert run("bench", *arguments).status == 0
    assert benchmark_calls[0][name] == value


def test_bench_json_is_a_list_with_an_object_per_thread_count(run, benchmark_calls):
    results = json.loads(run("bench", "-t", "1,2", "--json").out)
    assert [result["threads"] for result in results] == [1, 2]
    assert results[0]["weight_bytes_per_token"] == 876_000_000


def test_bench_prints_a_row_per_thread_count(run, benchmark_calls):
    title, *rows = run("bench", "-t", "1,2").out.splitlines()
    assert "prefill tok/s" in title
    assert len(rows) == 2
    assert rows[1].split() == ["2", "portable", "1,234.6", "78.9", "876,000,000", "35.25", "40.50", "0.12", "900"]


def test_info_json_is_the_dict_of_the_api(run, model):
    assert json.loads(run("info", "a.gguf", "--json").out) == model.info()


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_what_the_text_must_be_reaches_the_model(run, model, tmp_path, command, monkeypatch):
    from lowbit import chat

    monkeypatch.setattr(chat.session, "find_template", lambda *args: chat.TEMPLATES["plain"])
    monkeypatch.setattr(chat.session, "render", lambda *args: [1])
    (tmp_path / "schema.json").write_text('{"type": "null"}')
    (tmp_path / "rules.gbnf").write_text('root ::= "a"')
    for arguments, name, value in (
        (["--json-schema", '{"type": "null"}'], "json_schema", '{"type": "null"}'),
        (["--json-schema", str(tmp_path / "schema.json")], "json_schema", '{"type": "null"}'),
        (["--regex", "a+"], "regex", "a+"),
        (["--grammar", str(tmp_path / "rules.gbnf")], "grammar", 'root ::= "a"'),
    ):
        done = run(command, *(["Once"] if command == "generate" else []), *arguments, stdin=b"Hi\n")
        assert done.status == 0
        assert model.sampling[name] == value
    refused = run(command, "--regex", "a", "--grammar", str(tmp_path / "rules.gbnf"), stdin=b"Hi\n")
    assert refused.status == 2
    assert "--regex and --grammar" in refused.err
    assert run(command, "--grammar", str(tmp_path / "none"), stdin=b"Hi\n").status != 0
