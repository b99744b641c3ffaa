"""Every example, and the Python of the documentation, runs to its end and prints what it promises."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

LAST_LINE = {
    "generate.py": "stopped by length",
    "stream.py": "",
    "perplexity.py": "bits/byte",
    "kernels.py": ": True",
}


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(LAST_LINE)


@pytest.mark.parametrize("name", LAST_LINE)
def test_example_runs(name):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert LAST_LINE[name] in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_python_on_the_page_runs(page, capsys):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})  # one program, since later blocks use the names of earlier ones
    assert capsys.readouterr().out
