"""A crafted file loads or raises one clear error, with little work and within twice its size and 32 MB of memory."""

from __future__ import annotations

import pytest
import seeds
from bounds import Loader, can_measure
from crafted import CRAFTED, vocabulary
from targets import MAX_MESSAGE, TARGETS
from work import LITTLE

ALLOWED = 32 << 20
CASES = [pytest.param(kind, name, id=f"{kind}: {name}") for kind, files in CRAFTED.items() for name in files]

pytestmark = [
    pytest.mark.skipif(not can_measure(), reason="the system does not tell a peak of memory (/proc/self/clear_refs)"),
    pytest.mark.measured,
]


@pytest.fixture(scope="module")
def loader():
    loader = Loader()
    yield loader
    loader.close()


def write(folder, kind, content):
    """Put a crafted file, or several, into the folder; return what to open, and the size of all."""
    files = content if isinstance(content, dict) else {TARGETS[kind].file: content}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder if TARGETS[kind].beside else folder / TARGETS[kind].file, sum(map(len, files.values()))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_crafted_files_cost_little_work_and_memory(loader, tmp_path, kind, name):
    content = CRAFTED[kind][name]
    path, size = write(tmp_path, kind, content() if callable(content) else content)
    result = loader.load(kind, path)
    if result["error"] is not None:
        error, message = result["error"]
        assert error in ("FormatError", "UnsupportedModelError"), message[:MAX_MESSAGE]
        assert str(tmp_path) in message
        assert message.isprintable()
        assert len(message) < MAX_MESSAGE
    assert result["steps"] < LITTLE
    assert result["bytes"] < 2 * size + ALLOWED


def test_what_native_code_takes_is_measured(loader, tmp_path):
    # SentencePiece builds tables of a vocabulary of its own; were they not seen, nothing here would prove anything.
    many = [("STRING", [f"word{i}" for i in range(50_000)]), ("F32", [0.0] * 50_000), ("I32", [1] * 50_000)]
    names = ("tokens", "scores", "token_type")
    content = vocabulary(**{f"tokenizer.ggml.{n}": (getattr(seeds, kind), v) for n, (kind, v) in zip(names, many)})
    path, _ = write(tmp_path, "gguf_tokenizer", content)
    result = loader.load("gguf_tokenizer", path)
    assert result["error"] is None
    assert result["bytes"] > 4 << 20
