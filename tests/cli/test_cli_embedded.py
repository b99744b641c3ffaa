"""The commands as a user runs them, in a process of their own, with the embedded model."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

import lowbit
from lowbit.assets import EMBEDDED_MODEL

PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def embedded():
    return lowbit.load()


@pytest.fixture
def embedded_file(tmp_path):
    """Return a function that writes a damaged copy of the embedded model and returns its path."""
    data = pathlib.Path(EMBEDDED_MODEL).read_bytes()

    def write(change):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(change(data))
        return str(path)

    return write


def assert_one_clear_line(done, *fragments):
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert done.stdout == b""
    assert message.startswith("lowbit: error: ")
    assert message.count("\n") == 1
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_streamed_text_equals_that_of_the_api(lowbit_command, embedded, temperature):
    done = lowbit_command("generate", PROMPT, "-n", "24", "--seed", "5", "--temperature", str(temperature))
    out = embedded.generate(PROMPT, max_tokens=24, seed=5, temperature=temperature)
    assert done.returncode == 0
    assert done.stdout.decode() == out.text + "\n"
    assert b" | load " in done.stderr


def test_json_equals_the_generation_of_the_api(lowbit_command, embedded):
    done = lowbit_command("generate", PROMPT, "-n", "24", "--seed", "5", "--json")
    out = embedded.generate(PROMPT, max_tokens=24, seed=5)
    value = json.loads(done.stdout)
    assert done.stderr == b""
    assert (value["text"], value["tokens"]) == (out.text, out.tokens)
    assert (value["prompt_tokens"], value["finish_reason"]) == (out.prompt_tokens, out.finish_reason)
    assert value["timings"]["decode_tps"] > 0


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_text_does_not_depend_on_threads(lowbit_command, embedded, threads):
    done = lowbit_command("generate", PROMPT, "-n", "16", "--seed", "5", "-t", threads)
    assert done.stdout.decode() == embedded.generate(PROMPT, max_tokens=16, seed=5).text + "\n"


@pytest.mark.parametrize("isa", lowbit.isa.available())
def test_text_does_not_depend_on_the_instruction_set(lowbit_command, embedded, isa):
    done = lowbit_command("generate", PROMPT, "-n", "16", "--seed", "5", LOWBIT_ISA=isa)
    assert done.stdout.decode() == embedded.generate(PROMPT, max_tokens=16, seed=5).text + "\n"


def test_stop_string_ends_the_text_and_is_not_part_of_it(lowbit_command, embedded):
    text = embedded.generate(PROMPT, max_tokens=24, temperature=0).text
    stop = text[len(text) // 2 :][:3]
    done = lowbit_command("generate", PROMPT, "-n", "24", "--temperature", "0", "--stop", stop)
    assert done.stdout.decode() == text[: text.index(stop)] + "\n"


def test_no_tokens_give_an_empty_text(lowbit_command):
    done = lowbit_command("generate", PROMPT, "-n", "0", "-q")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"", b"")


def test_info_without_a_file_describes_this_machine(lowbit_command):
    done = lowbit_command("info", "--json")
    info = json.loads(done.stdout)
    assert info["version"] == lowbit.__version__
    assert info["isa"] in info["available_isas"]
    assert info["embedded_model"]["parameters"] > 0
    done = lowbit_command("info")
    assert done.returncode == 0
    assert not re.search(b"^ *skipping *$", done.stdout, re.MULTILINE)  # which is no heading


def test_info_of_a_file_is_that_of_the_api(lowbit_command, embedded, embedded_file):
    path = embedded_file(lambda data: data)
    info = json.loads(lowbit_command("info", path, "--json").stdout)
    assert info["types"] == embedded.info()["types"]
    assert lowbit_command("info", path).stdout.startswith(b"path ")


def test_tokens_of_a_text_decode_to_it(lowbit_command, embedded):
    ids = lowbit_command("tokenize", PROMPT, "--ids").stdout
    assert [int(i) for i in ids.split()] == embedded.tokenizer.encode(PROMPT)
    assert lowbit_command("tokenize", "--decode", stdin=ids).stdout.decode() == PROMPT + "\n"


def test_perplexity_equals_that_of_the_api(lowbit_command, embedded):
    text = "Once upon a time there was a cat. "
    done = lowbit_command("perplexity", "--json", stdin=text.encode())
    score = embedded.perplexity(text)
    value = json.loads(done.stdout)
    assert value["tokens"] == score.tokens
    for name in ("nats_per_token", "bits_per_byte", "perplexity"):
        assert value[name] == pytest.approx(getattr(score, name))


def test_bench_reports_every_figure_for_each_thread_count(lowbit_command):
    done = lowbit_command("bench", "-p", "4", "-n", "2", "-t", "1,2", "--repeat", "1", "--json")
    results = json.loads(done.stdout)
    assert [result["threads"] for result in results] == [1, 2]
    for result in results:
        assert result["isa"] in lowbit.isa.available()
        for name in ("prefill_tps", "decode_tps", "weight_bytes_per_token", "decode_gbps", "memory_read_gbps"):
            assert result[name] > 0
        assert result["rss_mb"] > 1
        assert result["load_seconds"] >= 0


def test_bench_profile_accounts_for_all_of_the_time(lowbit_command):
    done = lowbit_command("bench", "-p", "4", "-n", "2", "-t", "1", "--repeat", "1", "--profile", "--json")
    [result] = json.loads(done.stdout)
    assert list(result["profile"]["read_gbps"]) == ["1", "2", "4", "8", "16"]
    assert min(result["profile"]["read_gbps"].values()) > 0
    assert result["profile"]["peak_gmacs"] > 0
    for part in ("prefill", "decode"):
        operations = {operation["operation"]: operation for operation in result["profile"][part]}
        assert {"embedding", "attn_qkv", "attention", "ffn_down", "output"} <= set(operations)
        assert sum(operation["share"] for operation in operations.values()) == pytest.approx(1)
        assert operations["ffn_down"]["gbps"] > 0
        assert operations["ffn_down"]["gmacs"] > 0


def test_bench_decodes_texts_of_a_batch_in_the_same_steps(lowbit_command):
    done = lowbit_command(
        "bench", "--batch", "3", "-p", "4", "-n", "2", "-t", "1", "--repeat", "1", "--profile", "--json"
    )
    [head] = [o for o in json.loads(done.stdout)[0]["profile"]["decode"] if o["operation"] == "output"]
    assert head["calls"] == 2
    assert head["us_per_token"] == pytest.approx(head["calls"] * head["us_per_call"] / (3 * 2))


def test_bench_profile_prints_tables_and_draws(lowbit_command, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    plot = tmp_path / "profile.svg"
    done = lowbit_command("bench", "-p", "4", "-n", "2", "-t", "1", "--repeat", "1", "--profile", "--plot", str(plot))
    assert done.stdout.count(b"ffn_gate_up") == 2
    assert b"GB/s in so many streams" in done.stdout
    assert "<svg" in plot.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["generate", PROMPT, "-m"], ["info"], ["tokenize", PROMPT, "-m"], ["bench", "-m"]])
class TestBadFile:
    def test_missing(self, lowbit_command, command, tmp_path):
        done = lowbit_command(*command, str(tmp_path / "missing.gguf"))
        assert_one_clear_line(done, "missing.gguf", "o such file")

    def test_folder(self, lowbit_command, command, tmp_path):
        assert_one_clear_line(lowbit_command(*command, str(tmp_path)), tmp_path.name)

    def test_empty(self, lowbit_command, command, embedded_file):
        assert_one_clear_line(lowbit_command(*command, embedded_file(lambda data: b"")), "damaged.gguf")

    @pytest.mark.parametrize("kept", [3, 4, 20, 100])
    def test_truncated_header(self, lowbit_command, command, embedded_file, kept):
        done = lowbit_command(*command, embedded_file(lambda data: data[:kept]))
        assert_one_clear_line(done, "damaged.gguf")

    @pytest.mark.parametrize(
        "start", [b"\x89PNG\r\n\x1a\n", b"\x7fELF\x02\x01\x01\x00", b"PK\x03\x04", b"some text, not a model\n"]
    )
    def test_wrong_kind(self, lowbit_command, command, embedded_file, start):
        done = lowbit_command(*command, embedded_file(lambda data: start + data[64:]))
        assert_one_clear_line(done, "damaged.gguf")

    def test_version_of_the_future(self, lowbit_command, command, embedded_file):
        done = lowbit_command(*command, embedded_file(lambda data: b"GGUF\x63\0\0\0" + data[8:]))
        assert_one_clear_line(done, "damaged.gguf", "99")


@pytest.mark.parametrize("command", [["generate", PROMPT, "-m"], ["info"], ["bench", "-m"]])
def test_file_whose_last_byte_is_missing_is_refused(lowbit_command, command, embedded_file):
    done = lowbit_command(*command, embedded_file(lambda data: data[:-64]))
    assert_one_clear_line(done, "damaged.gguf")


def test_text_longer_than_the_context_is_scored_in_windows(lowbit_command):
    arguments = ("perplexity", "--separator", "|", "--context", "8")
    done = lowbit_command(*arguments, "--stride", "2", "--json", stdin=b"a b|" + b"word " * 50)
    assert done.returncode == 0
    assert json.loads(done.stdout)["texts"] == 2
    done = lowbit_command(*arguments, "--stride", "9", stdin=b"a b|" + b"word " * 50)
    assert_one_clear_line(done, "standard input", "text 1 of 2", "stride must be a whole number from 1 to 8")


def test_unknown_architecture_is_named(lowbit_command, embedded, embedded_file):
    family = embedded.config.family.encode()
    other = b"z" * len(family)
    done = lowbit_command("generate", PROMPT, "-m", embedded_file(lambda data: data.replace(family, other)))
    assert_one_clear_line(done, "damaged.gguf", other.decode())


def test_prompt_longer_than_the_context_is_an_error(lowbit_command):
    done = lowbit_command("generate", "--context", "8", "-", stdin=b"word " * 200)
    assert_one_clear_line(done, "context", "8")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--max-ram", "64 apples"], "64 apples"),
        (["--max-ram", "0"], "max_ram"),
        (["--max-ram", "1k"], "at least"),
        (["--sparsity", "1.5"], "sparsity"),
        (["--context", "100000"], "100000"),
    ],
)
def test_impossible_model_option_is_an_error(lowbit_command, arguments, fragment):
    assert_one_clear_line(lowbit_command("generate", PROMPT, *arguments), fragment)


@pytest.mark.parametrize("arguments", [["generate", PROMPT], ["info"], ["bench"]])
def test_unknown_instruction_set_is_an_error(lowbit_command, arguments):
    assert_one_clear_line(lowbit_command(*arguments, LOWBIT_ISA="itanium"), "itanium")


def test_unknown_random_shape_is_an_error(lowbit_command):
    assert_one_clear_line(lowbit_command("bench", "--random", "12"), "12", "0.7B")


def test_logprobs_come_with_json_alone(lowbit_command, embedded):
    arguments = ["generate", PROMPT, "-n", "4", "--temperature", "0", "--logprobs", "2"]
    told = json.loads(lowbit_command(*arguments, "--json").stdout)
    out = embedded.generate(PROMPT, max_tokens=4, temperature=0, logprobs=2)
    assert [(one["token"], one["piece"], one["logprob"]) for one in told["logprobs"]] == [
        (one.token, one.piece, one.logprob) for one in out.logprobs
    ]
    assert [[t["token"] for t in one["top"]] for one in told["logprobs"]] == [
        [token for token, _, _ in one.top] for one in out.logprobs
    ]
    assert lowbit_command(*arguments).returncode == 2
    assert b"at most 100" in lowbit_command("generate", PROMPT, "--json", "--logprobs", "101").stderr
