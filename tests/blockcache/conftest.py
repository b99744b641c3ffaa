"""A file of random bytes, and the same from an object; lets the tests of this folder import `block_sources`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from block_sources import SIZE, Memory


@pytest.fixture(scope="session")
def content():
    """Bytes of the file."""
    return np.random.default_rng(1).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def path(tmp_path, content):
    """The file."""
    file = tmp_path / "blocks.bin"
    file.write_bytes(content)
    return file


@pytest.fixture
def memory(content):
    """The same content, from an object that counts its reads and fails on demand."""
    return Memory(content)
