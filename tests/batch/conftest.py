"""A batch that nobody disturbed."""

from __future__ import annotations

import pytest
from batches import Folder, answers_of, write_lines


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """All kinds of lines, answered in the order of their file."""
    folder = Folder(tmp_path_factory.mktemp("whole"))
    write_lines(folder.input, 200, 12, 1)
    status, said = folder.run("--order", "file")
    assert status == 3, said  # its last line is wrong
    assert len(answers_of(folder.output)) == 199
    return folder
