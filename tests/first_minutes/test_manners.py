"""What pleased new users, and must not be lost: no file needed, one-line errors, and the manners of Unix."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

import lowbit as package
from lowbit import cli
from lowbit.assets import EMBEDDED_MODEL

COMMAND = [sys.executable, "-m", "lowbit"]
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs signals and pipes of Unix")
INTERRUPTED = """
import signal, sys
from lowbit import cli, model
from lowbit.loading import load

class Batches:
    made = 0

def note():
    Batches.made += 1
    if Batches.made == 1:
        signal.raise_signal(signal.SIGINT)  # as if it came while this one is computed

def step(self, *arguments, of=model.Engine._step):
    note()
    return of(self, *arguments)

class Decoder(load.Decoder):
    def read(self, *arguments, **options):
        note()
        return super().read(*arguments, **options)

    def observe(self, *arguments):
        note()
        return super().observe(*arguments)

signal.signal(signal.SIGINT, signal.default_int_handler)
model.Engine._step, load.Decoder = step, Decoder
status = cli.main(sys.argv[1:])
print(status, Batches.made)
"""


def test_no_file_is_needed_and_a_seed_gives_the_text_of_the_api(lowbit):
    want = package.load().generate("Once upon a time", max_tokens=30, seed=7)
    done = lowbit("generate", "Once upon a time", "-n", 30, "--seed", 7, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, want.text + "\n", "")


def test_json_is_read_by_jq(lowbit):
    value = lowbit("generate", "Once", "-n", 3, "--json", "--logprobs", 2)
    assert json.loads(value.stdout)["finish_reason"] == "length"
    if shutil.which("jq"):
        done = subprocess.run(["jq", "-r", ".text"], input=value.stdout, capture_output=True, text=True, check=True)
        assert done.stdout == json.loads(value.stdout)["text"] + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "-m", "/no/such/model.gguf"],
        ["generate", "Once", "-m", os.devnull],
        ["generate", "Once", "--temperature", "hot"],
        ["generate", "-f", "/no/such/prompt.txt"],
        ["chat", "Hi", "-m", "/no/such/model.gguf"],
        ["chat", "Hi", "--template", "nonsense"],
        ["perplexity", "/no/such/text.txt"],
        ["info", "/no/such/model.gguf"],
        ["convert", "/no/such/model.gguf", "/no/such/folder/out.gguf", "--type", "f16"],
        ["calibrate", "--text", "/no/such/text.txt", "--target", "0.4", "-o", "/no/such/folder/out.json"],
        ["nonsense"],
    ],
)
def test_an_error_is_one_line_and_status_2(capsys, arguments):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lowbit: error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "-n", "1"],
        ["calibrate", "--text", "{text}", "--target", "0.4", "-o", "{folder}/out.json"],
        ["quantize", EMBEDDED_MODEL, "{folder}/out.gguf", "--text", "{text}", "--tokens", "9"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_more_threads_than_cores_are_said_and_not_taken(tmp_path, capsys, arguments):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a dog.")
    words = [word.format(text=text, folder=tmp_path) for word in arguments]
    assert cli.main([*words, "-t", "1000"]) == 0
    assert "1000 threads are more than there are cores" in capsys.readouterr().err


@POSIX
@pytest.mark.parametrize("arguments", [["generate", "Once", "-n", "40"], ["info"], ["chat", "Tell me a story"], []])
def test_a_closed_pipe_ends_quietly_with_141(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([*COMMAND, *arguments], stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=1200)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr
    assert b"Broken" not in done.stderr


@POSIX
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "word " * 300, "-n", "40", "-q"],
        ["generate", "word " * 300, "-n", "40", "--json"],
        ["generate", "Once", "-n", "400", "-q", "-c", "64", "--context-shift"],
        ["chat", "word " * 300],
        ["perplexity", "{text}"],
        ["bench", "-t", "1"],
        ["cache", "warm", "--text", "{short}", "--kv-disk", "{folder}/kv"],
        ["calibrate", "--text", "{text}", "--target", "0.4", "-o", "{folder}/out.json"],
        ["quantize", EMBEDDED_MODEL, "{folder}/out.gguf", "--policy", "dynamic", "--bits", "8", "--text", "{text}"],
    ],
    ids=lambda arguments: " ".join([arguments[0], *(word for word in arguments if word.startswith("--"))]),
)
def test_ctrl_c_ends_with_130_after_the_batch_that_is_computed(lowbit, tmp_path, arguments):
    text = tmp_path / "text.txt"
    text.write_text("word " * 3000)
    short = tmp_path / "short.txt"
    short.write_text("word " * 300)
    arguments = [word.format(text=text, short=short, folder=tmp_path) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, check=False, timeout=1200
    )
    status, batches = map(int, done.stdout.split()[-2:])
    assert (status, batches <= 2) == (130, True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    "environment",
    [{"HOME": None}, {"HOME": "/no/such/home"}, {"LANG": "C", "LC_ALL": "C"}, {"COLUMNS": "40"}, {"TERM": None}],
    ids=str,
)
def test_it_runs_in_a_bare_environment(lowbit, environment):
    done = lowbit("generate", "Schön — 日本", "-n", 4, "-q", "--temp", 0, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == package.load().generate("Schön — 日本", max_tokens=4, temperature=0).text + "\n"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["generate", "Once", "-q"], ["info"], ["chat", "Hi"], ["info", "--json"]])
def test_a_full_disk_is_told_in_one_line(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=1200)
    assert (done.returncode, done.stderr) == (2, b"lowbit: error: No space left on device\n")


@POSIX
def test_ctrl_c_at_a_terminal_ends_a_text_with_130(terminal):
    screen = terminal("generate", "Once upon a time", "-s", 1, slow=True)
    screen.until(" there")
    screen.type("\x03")
    assert screen.ends() == 130


@POSIX
def test_ctrl_c_while_it_starts_ends_with_130(terminal):
    screen = terminal("chat")
    screen.process.send_signal(signal.SIGINT)
    assert screen.ends() in (130, -signal.SIGINT)  # the latter before Python can handle it
