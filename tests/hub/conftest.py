"""A hub on this machine, an empty cache, and commands in this process or, as the library reads both once, in others."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fake_hub.py

import fake_hub

from lowbit import cli


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub", reason="fetching models needs huggingface_hub")
    with fake_hub.running() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Folder of the cache, for this process and for those that it starts."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home" / "hub"


@pytest.fixture
def start(hub, cache):
    """Start Python with an argument list; what is still running at the end is killed."""
    running = []

    def start(*argv, **environment):
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if os.name != "nt":
            options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
        running.append(subprocess.Popen([sys.executable, *argv], env=env, text=True, **options))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run(hub, cache, monkeypatch, capsys):
    """Run a command of lowbit in this process, which is quicker; the library has been told where the hub is."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def run(*argv):
        status = cli.main(list(argv))
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(argv, status, captured.out, captured.err)

    return run


@pytest.fixture
def lowbit_command(start):
    """Run a command of lowbit; returns the process with `stdout` and `stderr` read."""

    def run(*argv, **environment):
        process = start("-m", "lowbit", *argv, **environment)
        out, err = process.communicate(timeout=1200)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    return run
