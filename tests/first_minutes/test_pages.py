"""What the pages promise runs as it stands: every Python block alone, and our side of every row for users of others."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import lowbit
from lowbit import cli
from lowbit.assets import EMBEDDED_MODEL

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
ELSEWHERE = ("lowbit serve", "lowbit pull")
"""Commands that do not end, or that ask the hub: tests/server and tests/hub run them."""


def blocks():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
            yield pytest.param(block, id=f"{page}-{i}")


def rows():
    """(what others type, our commands and expressions) of each row of the tables."""
    text = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
    for line in re.findall(r"^\| `(.*)\|$", text, re.MULTILINE):
        there, here = line.split(" | ")
        yield there, re.findall(r"`([^`]+)`", here)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages name, as the working directory; the embedded model stays loaded."""
    path = tmp_path_factory.mktemp("pages")
    shutil.copyfile(EMBEDDED_MODEL, path / "model.gguf")
    shutil.copyfile(EMBEDDED_MODEL, path / "small.gguf")
    os.utime(path / "model.gguf", (1e9, 1e9))  # old enough for its weights to be shared
    for name in ("prompt.txt", "stories.txt"):
        (path / name).write_text("Once upon a time there was a little dog.\n", encoding="utf-8")
    (path / "rules.gbnf").write_text("root ::= [a-z ]+\n", encoding="utf-8")
    (path / "commands.txt").write_text("/system Be brief.\nHello\n/reset\n/save story.json\n/bye\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("checkpoints", ROOT / "tests/families/checkpoints.py")
    checkpoints = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checkpoints)
    checkpoints.write("llama3", path / "model-folder")
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = path / "home" / "hub" / "models--owner--name"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit, encoding="utf-8")
    os.link(path / "model.gguf", cached / "snapshots" / commit / "model.gguf")
    before, home = Path.cwd(), os.environ.get("HF_HOME")
    os.chdir(path)
    os.environ["HF_HOME"] = str(path / "home")
    held = lowbit.load(), lowbit.load("model.gguf")
    yield path
    del held
    os.chdir(before)
    os.environ.pop("HF_HOME")
    if home is not None:
        os.environ["HF_HOME"] = home


def run(command, monkeypatch):
    """Run one of our commands as the shell would; its exit status."""
    words = shlex.split(command)[1:]
    given = b""
    if "<" in words:
        words, given = words[: words.index("<")], Path(words[-1]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    return cli.main(words)


@pytest.fixture(scope="module")
def thresholds(folder):
    assert cli.main(["calibrate", "-m", "model.gguf", "--text", "stories.txt", "--target", "0.4"]) == 0


@pytest.mark.parametrize("block", list(blocks()))
def test_a_python_block_runs_alone_as_pasted(block, folder, thresholds):
    if any(word in block for word in ("json_schema", "tools=", "regex=")):
        pytest.importorskip("llguidance", reason="constraints need the extra 'serve'")
    if "from ray import" in block:
        pytest.skip("tests/cluster runs this block, which needs a cluster")
    exec(compile(block, "block", "exec"), {"__name__": "pasted"})


def test_there_is_a_row_for_each_of_fifty_things():
    found = list(rows())
    assert len({there for there, _ in found}) == len(found) >= 50
    assert all(ours for _, ours in found)


def test_our_side_of_every_row_runs(folder, monkeypatch, capsys):
    names = {"lowbit": lowbit, "model": lowbit.load(), "messages": [{"role": "user", "content": "Hello"}]}
    constrained = importlib.util.find_spec("llguidance") is not None
    for there, ours in rows():
        if not constrained and re.search(r"json.schema|grammar", there + ours[0]):
            continue
        if not ours[0].startswith("lowbit "):
            exec(ours[0], names)
        elif ours[0].startswith(ELSEWHERE):
            cli._parser().parse_args(shlex.split(ours[0])[1:])
        else:
            assert run(ours[0], monkeypatch) == 0, (ours[0], capsys.readouterr().err)
