"""Output files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from lowbit import cli
from lowbit.replacing import Replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete_and_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with Replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail():
        with Replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="gone") as caught:
        Replacing(tmp_path / "gone" / "out")
    assert caught.value.filename == str(tmp_path / "gone" / "out")
    with pytest.raises(OSError, match="Is a directory") as caught:
        Replacing(tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs links and modes of Unix")
def test_a_link_stays_one_and_the_mode_as_it_was(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    with Replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    with Replacing(tmp_path / "fresh") as file:
        file.write(b"new")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_written_as_it_comes():
    with pytest.raises(OSError, match="/dev/full"), Replacing("/dev/full") as file:
        file.write(bytes(1 << 16))
    with Replacing("/dev/null") as file:
        file.write(b"anything")
    assert not os.path.isfile("/dev/null")


class FullDisk(io.BytesIO):
    """Takes nothing."""

    def write(self, data):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", ["calibrate", "/save"])
def test_what_a_command_wrote_before_outlives_a_full_disk(tmp_path, monkeypatch, capsys, command):
    out, text = tmp_path / "out.json", tmp_path / "text.txt"
    out.write_text("old")
    text.write_text("Once upon a time there was a dog. " * 20)

    def fill(self, of=Replacing.__enter__):
        of(self)
        return FullDisk()

    monkeypatch.setattr(Replacing, "__enter__", fill)
    if command == "calibrate":
        assert cli.main(["calibrate", "--text", str(text), "--target", "0.4", "-o", str(out)]) == 2
    else:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"/save {out}\n".encode())))
        assert cli.main(["chat"]) == 0
    assert f"{out}: No space left on device\n" in capsys.readouterr().err
    assert out.read_text() == "old"
    assert names(tmp_path) == ["out.json", "text.txt"]
