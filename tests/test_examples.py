"""Every example runs to its end and prints what it promises."""

from __future__ import annotations

import os
import pathlib
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
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *LAST_LINE,
        "train_demo.py",
        "openai_client.py",
    }  # the last one: tests/server


@pytest.mark.parametrize("name", LAST_LINE)
def test_example_runs(name):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, encoding="utf-8", timeout=1200, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert LAST_LINE[name] in done.stdout.splitlines()[-1]


def test_training_demo_tells_a_story_from_generated_and_from_given_text(tmp_path):
    pytest.importorskip("torch", reason="training needs the extra 'train'")
    environment = {key: value for key, value in os.environ.items() if key != "LOWBIT_TEST_DATA"}

    def run(out):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "train_demo.py"), str(out), "0.01"],
            capture_output=True, encoding="utf-8", timeout=1200, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("One day")
        assert "minutes; loss curve and samples" in done.stdout.splitlines()[-1]
        assert (out / "demo.gguf.train" / "loss.svg").exists()
        assert (out / "demo.gguf.train" / "samples.txt").read_text(encoding="utf-8").count("----") == 2
        return done.stderr

    generated = tmp_path / "generated"
    assert "stories.txt" in run(generated)
    given = tmp_path / "data" / "corpora" / "tinystories" / "train.txt"
    given.parent.mkdir(parents=True)
    (generated / "stories.txt").rename(given)
    environment["LOWBIT_TEST_DATA"] = str(tmp_path / "data")
    assert str(given) in run(tmp_path / "out")
