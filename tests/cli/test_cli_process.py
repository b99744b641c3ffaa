"""How a process behaves: what it imports, Ctrl-C, broken pipes, and terminals that know only ASCII."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import lowbit


def modules_after(*argv):
    """Return the names of all modules that a command imports."""
    code = (
        "import json, sys; from lowbit.cli import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, *sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    status, *modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["bench", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    modules = modules_after(*arguments)
    assert not {"numpy", "sentencepiece", "tqdm", "lowbit.model", "lowbit._kernels", "subprocess"} & modules
    assert len(modules) < 145  # each command is one


def test_version_is_printed(lowbit_command):
    done = lowbit_command("--version")
    assert done.stdout.split() == [b"lowbit", lowbit.__version__.encode()]
    assert done.returncode == 0


def test_help_names_every_command(lowbit_command):
    from lowbit.cli import COMMANDS

    done = lowbit_command("--help")
    assert done.returncode == 0
    assert done.stderr == b""
    for command in COMMANDS:
        assert f"\n    {command} ".encode() in done.stdout.replace(b"\n", b" \n")


def test_any_text_can_be_printed_where_the_locale_knows_only_ascii(model, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    from lowbit.cli import main

    assert main(["generate", "Once", "--quiet"]) == 0
    assert raw.getvalue().decode("utf-8") == "".join(model.pieces) + os.linesep


def test_closed_standard_output_is_no_error(model, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    from lowbit.cli import main

    assert main(["generate", "Once", "--quiet"]) == 0


def test_interrupt_ends_with_130_and_a_new_line(run, model, monkeypatch):
    def stream(prompt, **sampling):
        yield "some"
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "stream", stream)
    out = run("generate", "Once")
    assert (out.status, out.out, out.err) == (130, "some", "\n")


def help_into(file):
    """Print the help into a file; argparse itself hides write errors when nothing is buffered."""
    return subprocess.run(
        [sys.executable, "-m", "lowbit", "--help"],
        stdout=file,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        timeout=1200,
        check=False,
    )


def test_broken_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = help_into(pipe)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_reported_in_one_line():
    with open("/dev/full", "wb") as full:
        done = help_into(full)
    assert (done.returncode, done.stderr) == (2, b"lowbit: error: No space left on device\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_interrupt_of_a_process_shows_no_traceback(tmp_path):
    fifo = tmp_path / "text"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-m", "lowbit", "perplexity", str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )
    with open(fifo, "wb"):  # returns when the command has opened it too, and waits for the text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=1200)
    assert (process.returncode, out, err) == (130, b"", b"\n")


def test_generate_imports_only_what_it_needs():
    modules = modules_after("generate", "Once", "-n", "1", "--quiet")
    optional = {"tqdm", "tokenizers", "safetensors", "jinja2", "matplotlib", "psutil", "torch", "pytest"}
    assert not optional & modules
    assert "lowbit.reference" not in modules


@pytest.mark.parametrize("name", ["lowbit.cli", "lowbit.commands.common", "argparse", "numpy"])
def test_interrupt_while_modules_are_imported_ends_with_130(name):
    """Ctrl-C comes when this module is about to be imported, after the installed command has begun."""
    code = f"""
import sys
from importlib import metadata

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt

[command] = metadata.entry_points(group="console_scripts", name="lowbit")
sys.modules.pop("argparse", None)
sys.meta_path.insert(0, CtrlC())
sys.argv = ["lowbit", "info"]
sys.exit(command.load()())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 130
    assert done.stderr.strip() == ""
