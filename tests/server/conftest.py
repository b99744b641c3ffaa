"""The servers that the tests share."""

from __future__ import annotations

import pytest
from small_model import write_small_model

import lowbit

LONG_CONTEXT = 65536


@pytest.fixture(scope="session")
def server():
    """The embedded model."""
    from server_process import Server  # which skips the test where the extras are missing

    server = Server("--parallel", 8, "-t", 1)
    yield server
    status, said = server.stop()
    assert (status, said) == (0, ""), "after all that was asked, the server has ended in order and said nothing"


@pytest.fixture(scope="session")
def model():
    """The embedded model, as Python programs use it."""
    return lowbit.load(threads=1)


@pytest.fixture(scope="session")
def long_path(tmp_path_factory):
    """A model whose texts last as long as a test wants."""
    return write_small_model(tmp_path_factory.mktemp("server") / "long.gguf", LONG_CONTEXT)


@pytest.fixture(scope="session")
def long_server(long_path):
    """Two texts at a time, and two that wait."""
    from server_process import Server

    server = Server("-m", long_path, "--context", LONG_CONTEXT, "--parallel", 2, "--queue", 2, "-t", 1)
    yield server
    status, said = server.stop()
    assert (status, said) == (0, "")


@pytest.fixture
def endless():
    """A request whose text does not end by itself."""
    return {"prompt": "once upon", "ignore_eos": True, "seed": 1}


@pytest.fixture
def story():
    return [{"role": "user", "content": "Tell me a story about a cat."}]
