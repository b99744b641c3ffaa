"""A path is opened by what the file holds, and everything else is refused in one line."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zipfile

import gguf_craft as craft
import pytest

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.tokenizers import load_tokenizer


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(craft.tiny())
    assert open_model(path).format == "gguf"
    assert open_model(str(path)).path == str(path)


def test_missing_file_is_a_format_error_caused_by_the_os_error(tmp_path):
    with pytest.raises(FormatError, match="no such file") as caught:
        open_model(tmp_path / "absent.gguf")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    "content",
    [b"", b"G", b"GGUF", b"Once upon a time" * 10, bytes(100), bytes(28), b"\xff" * 300],
    ids=["empty", "one byte", "magic only", "text", "zeros", "28 zeros", "ones"],
)
def test_what_is_no_model_is_a_format_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path}:")


def test_a_file_is_named_although_the_complaint_begins_with_the_same_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "is").write_bytes(b"GGUF" + bytes(28))
    with pytest.raises((FormatError, UnsupportedModelError), match=r"^is: is GGUF version 0"):
        open_model("is")


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.ENOMEM, MemoryError), (errno.EACCES, FormatError), (errno.EIO, FormatError)]
)
@pytest.mark.parametrize("call", ["mmap.mmap", "builtins.open"])
def test_what_the_system_refuses_is_a_format_error_and_lack_of_memory_a_memory_error(
    tmp_path, monkeypatch, number, raised, call
):
    path = tmp_path / "model.gguf"
    path.write_bytes(craft.tiny())

    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(raised) as caught:
        open_model(path)
    assert type(caught.value) is raised
    if call == "builtins.open":
        with pytest.raises(raised):
            load_tokenizer(path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_to_itself_is_a_format_error(tmp_path):
    path = tmp_path / "model.gguf"
    path.symlink_to(path)
    for load in (open_model, load_tokenizer):
        with pytest.raises(FormatError, match=r"model\.gguf: "):
            load(path)


def test_folder_is_a_format_error(tmp_path):
    with pytest.raises(FormatError, match="folder"):
        open_model(tmp_path)


def test_safetensors_alone_are_refused_by_name(tmp_path):
    header = b'{"__metadata__":{}}'
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        open_model(tmp_path / "model.safetensors")


def test_pickles_are_refused_by_name_and_never_run(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"w": 1}, protocol=2))
    with zipfile.ZipFile(tmp_path / "zipped.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    for name in ("bare.pt", "zipped.bin"):
        with pytest.raises(UnsupportedModelError, match="pickle"):
            open_model(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="regular"):
        open_model(tmp_path / "pipe")
