"""The example runs against a server, and prints what it promises."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "openai_client.py"


def test_example_runs(server):
    pytest.importorskip("openai", reason="this test needs the extra 'test-server'")
    pytest.importorskip("llguidance", reason="constraints need the extra 'serve'")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), server.url], capture_output=True, encoding="utf-8", timeout=1200, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the model calls feed {'animal': " in done.stdout.splitlines()[-1]
