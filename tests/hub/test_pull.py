"""`lowbit pull`, and `hf:` names in other commands, against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from fake_hub import until

from lowbit.assets import EMBEDDED_MODEL

TINY = Path(EMBEDDED_MODEL).read_bytes()
LARGE = random.Random(1).randbytes(30 << 20)
"""The library writes 10 MiB at a time, and what was not written has to come again."""
WRITTEN = 10 << 20
NAME = "hf:owner/tiny"


def blob(cache, name, data):
    return cache / f"models--{name.removeprefix('hf:').replace('/', '--')}" / "blobs" / hashlib.sha256(data).hexdigest()


def test_a_model_is_fetched_once_and_then_runs_without_the_hub(hub, lowbit_command, cache):
    hub.add("owner/tiny", {"tiny-TQ2_0.gguf": TINY, "tiny-F16.gguf": b"no", "README.md": b"read me"})
    first = lowbit_command("pull", NAME)
    assert first.returncode == 0, first.stderr
    path = Path(first.stdout.strip())
    assert path.read_bytes() == TINY
    assert path.name == "tiny-TQ2_0.gguf"
    assert hub.files_asked() == [("tiny-TQ2_0.gguf", None)], "nothing else was fetched"
    assert lowbit_command("pull", NAME).stdout == first.stdout
    assert len(hub.files_asked()) == 1
    before = len(hub.asked)
    hub.close()
    for command in (["generate", "Once", "-n", "3", "-q", "--seed", "1"], ["info"], ["tokenize", "Once"]):
        embedded = lowbit_command(*command)
        out = lowbit_command(*command, "-m", NAME, HF_HUB_OFFLINE="1")
        assert out.returncode == 0, out.stderr
        if command[0] != "info":
            assert out.stdout == embedded.stdout
    assert len(hub.asked) == before, "what is here is run without asking"


def test_what_is_not_here_is_fetched_when_a_command_names_it(hub, run):
    hub.add("owner/tiny", {"a/tiny-q8_0.gguf": TINY, "tiny-Q4_0.gguf": b"no"})
    text = ["generate", "Once", "-n", "3", "-q", "--seed", "1"]
    out = run(*text, "-m", f"{NAME}:Q8_0")
    assert out.stdout == run(*text).stdout
    assert hub.files_asked() == [("a/tiny-q8_0.gguf", None)]
    assert run("info", f"{NAME}:a/tiny-q8_0.gguf").returncode == 0
    assert len(hub.files_asked()) == 1


def test_the_python_call_takes_the_name_too(hub, start):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    code = "import sys, lowbit; print(lowbit.load('hf:owner/tiny').info()['path'])"
    path, err = start("-c", code).communicate(timeout=1200)
    assert path.strip().endswith("tiny.gguf"), err


def test_the_library_finds_what_lowbit_fetched_and_lowbit_what_the_library_fetched(hub, start, lowbit_command):
    repository = hub.add("owner/tiny", {"tiny.gguf": TINY, "config.json": b"{}"})
    repository.small.add("config.json")
    out = lowbit_command("pull", NAME)
    code = (
        "from huggingface_hub import hf_hub_download as f; print(f('owner/tiny', 'tiny.gguf', local_files_only=True))"
    )
    assert start("-c", code).communicate(timeout=1200)[0] == out.stdout
    repository = hub.add("owner/other", {"other.gguf": TINY})
    code = """
import os
from huggingface_hub import constants
folder = os.path.join(constants.HF_HUB_CACHE, "models--owner--other")
os.makedirs(folder + "/refs"); os.makedirs(folder + "/blobs"); os.makedirs(folder + "/snapshots/" + "d" * 40)
open(folder + "/refs/main", "w").write("d" * 40)
open(folder + "/blobs/x", "wb").write(b"GGUF")
os.symlink("../../blobs/x", folder + "/snapshots/" + "d" * 40 + "/other.gguf")
from huggingface_hub import try_to_load_from_cache
print(try_to_load_from_cache("owner/other", "other.gguf"))
from lowbit.hub import local_path
print(local_path("hf:owner/other"))
"""
    paths = start("-c", code).communicate(timeout=1200)[0].split()
    assert len(paths) == 2
    assert paths[0] == paths[1]


def test_a_newer_version_comes_with_pull_alone(hub, run):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    old = run("pull", NAME).stdout
    hub.add("owner/tiny", {"tiny.gguf": TINY + b"\0", "same.bin": TINY}, commit="d" * 40)
    assert json.loads(run("info", NAME, "--json").stdout)["path"] == old.strip()
    new = run("pull", NAME).stdout
    assert Path(new.strip()).read_bytes() == TINY + b"\0"
    assert new.replace("d" * 40, "c" * 40) == old
    fetched = len(hub.files_asked())
    run("pull", f"{NAME}:same.bin")
    assert len(hub.files_asked()) == fetched, "the same content under another name is not fetched again"


def test_a_folder_comes_whole_and_small_files_have_gits_checksum(hub, run, cache):
    files = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": TINY, "x.bin": b"pickle"}
    repository = hub.add("owner/tiny", files)
    repository.small |= {"config.json", "tokenizer.json"}
    out = run("pull", NAME)
    folder = Path(out.stdout.strip())
    del files["x.bin"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [name for name, _ in hub.files_asked()][-1] == "model.safetensors"
    repository.digests["config.json"] = "0" * 40
    hub.repositories["owner/tiny"].commit = "e" * 40
    out = run("pull", NAME)
    assert out.returncode == 2
    assert "config.json is damaged" in out.stderr


def test_a_connection_that_ends_is_taken_up_where_it_ended(hub, run):
    repository = hub.add("owner/large", {"large.gguf": LARGE})
    repository.cut = [15 << 20]
    out = run("pull", "hf:owner/large")
    if out.returncode:  # old versions of the library do not try again by themselves
        assert "the next attempt goes on from there" in out.stderr
        out = run("pull", "hf:owner/large")
    assert Path(out.stdout.strip()).read_bytes() == LARGE, out.stderr
    assert hub.files_asked() == [("large.gguf", None), ("large.gguf", f"bytes={WRITTEN}-")]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT] if os.name != "nt" else [])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_attempt_that_was_ended_goes_on_where_it_ended(hub, start, lowbit_command, cache, end, ranges):
    repository = hub.add("owner/large", {"large.gguf": LARGE})
    repository.pause, repository.ranges = threading.Event(), ranges
    begun = blob(cache, "hf:owner/large", LARGE)
    begun = begun.with_name(begun.name + ".incomplete")
    process = start("-m", "lowbit", "pull", "hf:owner/large")
    until(lambda: begun.exists() and begun.stat().st_size >= WRITTEN)
    process.send_signal(end)
    process.communicate(timeout=1200)
    repository.pause.set()
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert "(unfinished" in lowbit_command("models").stdout
    offline = lowbit_command("info", "-m", "hf:owner/large", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE" in offline.stderr
    had = begun.stat().st_size
    assert had in range(WRITTEN, len(LARGE))
    out = lowbit_command("pull", "hf:owner/large")
    assert Path(out.stdout.strip()).read_bytes() == LARGE, out.stderr
    assert hub.files_asked()[1:] == [("large.gguf", f"bytes={had}-")]
    assert not begun.exists()


def test_a_file_with_another_checksum_is_deleted_and_never_opened(hub, run, cache):
    repository = hub.add("owner/tiny", {"tiny.gguf": TINY})
    repository.digests["tiny.gguf"] = "0" * 64
    for _ in range(2):
        out = run("generate", "Once", "-m", NAME)
        assert out.returncode == 2
        assert out.stderr.count("\n") == 1
        assert "hf:owner/tiny: tiny.gguf is damaged" in out.stderr
    assert not list(cache.rglob("*.gguf"))
    assert not list((cache / "models--owner--tiny" / "blobs").iterdir())
    assert hub.files_asked() == [("tiny.gguf", None)] * 2, "the second attempt began anew"


def test_a_file_too_large_for_plain_http_is_left_to_the_library_and_checked_too(hub, run, cache, monkeypatch):
    monkeypatch.setattr("lowbit.hub.LARGEST_BY_HTTP", 0)
    repository = hub.add("owner/tiny", {"tiny.gguf": TINY})
    assert Path(run("pull", NAME).stdout.strip()).read_bytes() == TINY
    repository.digests["tiny.gguf"], repository.commit = "0" * 64, "d" * 40
    assert "damaged" in run("pull", NAME).stderr
    assert not [path for path in cache.rglob("tiny.gguf") if "d" * 40 in str(path)]


def test_the_beginning_of_another_file_is_found_out(hub, run, cache):
    hub.add("owner/large", {"large.gguf": LARGE})
    begun = blob(cache, "hf:owner/large", LARGE)
    begun.parent.mkdir(parents=True)
    begun = begun.with_name(begun.name + ".incomplete")
    begun.write_bytes(bytes(1000))
    assert "damaged" in run("pull", "hf:owner/large").stderr
    begun.write_bytes(bytes(len(LARGE) + 1))
    assert run("pull", "hf:owner/large").returncode == 0


@pytest.mark.parametrize("size", [len(TINY) - 1, len(TINY) + 1])
def test_a_file_of_another_size_is_refused(hub, run, cache, size):
    hub.add("owner/tiny", {"tiny.gguf": TINY}).sizes["tiny.gguf"] = size
    out = run("pull", NAME)
    assert out.returncode == 2
    assert not list(cache.rglob("tiny.gguf"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"size": None}, "no size"), ({"lfs": {"sha256": "../../x", "size": 3, "pointerSize": 1}}, "no checksum"),
     ({"lfs": None, "blobId": None}, "no checksum"), ({"size": -1, "lfs": None}, "no size")],
)  # fmt: skip
def test_an_entry_without_size_or_checksum_is_refused(hub, run, cache, entry, said):
    repository = hub.add("owner/tiny", {"tiny.gguf": TINY})
    true = repository.entry("tiny.gguf")
    if "size" in entry:
        true.pop("lfs")
    repository.entry = lambda name: {**true, **entry}
    out = run("pull", NAME)
    assert out.returncode == 2
    assert said in out.stderr
    assert not hub.files_asked()


@pytest.mark.parametrize("commit", ["../../../x", "", "c" * 39, "C" * 40])
def test_a_commit_that_is_none_is_refused(hub, run, tmp_path, commit):
    hub.add("owner/tiny", {"tiny.gguf": TINY}, commit=commit)
    out = run("pull", NAME)
    assert out.returncode == 2
    assert "names no commit" in out.stderr
    assert not list(tmp_path.rglob("*.gguf"))


def test_files_whose_names_lead_elsewhere_are_not_written(hub, run, tmp_path):
    hub.add("owner/tiny", {"../../../../evil.gguf": TINY, "/tmp/evil-lowbit.gguf": TINY, "a\\..\\evil.gguf": TINY})
    out = run("pull", NAME)
    assert out.returncode == 2
    assert "neither a GGUF file" in out.stderr
    assert not list(tmp_path.rglob("evil*"))
    assert not hub.files_asked()


@pytest.mark.parametrize(
    ("refuse", "said"),
    [((401, "GatedRepo"), "agree to its terms"), ((403, "GatedRepo"), "agree to its terms"),
     ((401, "RepoNotFound"), "no such model"), ((404, "RepoNotFound"), "no such model"), ((403, None), "HF_TOKEN"),
     ((418, None), "answers 418")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["refuse", "refuse_files"])
def test_a_refusal_is_one_line_that_says_what_to_do(hub, run, refuse, said, where):
    setattr(hub.add("owner/tiny", {"tiny.gguf": TINY}), where, refuse)
    out = run("pull", NAME)
    assert out.returncode == 2
    assert out.stderr.startswith("lowbit: error: hf:owner/tiny: ")
    assert said in out.stderr
    assert out.stderr.count("\n") == 1


def test_what_the_repository_lacks_is_said(hub, run):
    hub.add("owner/tiny", {"tiny-Q8_0.gguf": TINY, "tiny-F16.gguf": TINY})
    assert "there is F16, Q8_0" in run("pull", f"{NAME}:Q4_0").stderr
    hub.add("owner/tiny", {"pytorch_model.bin": TINY, "config.json": b"{}"})
    assert "pickles" in run("pull", NAME).stderr
    assert "no such model" in run("pull", "hf:owner/missing").stderr


def test_the_token_goes_to_the_hub(hub, lowbit_command):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    lowbit_command("pull", NAME, HF_TOKEN="hf_secret")
    assert {authorization for _, _, authorization in hub.asked} == {"Bearer hf_secret"}


def test_offline_the_cache_is_used_and_otherwise_it_is_said_what_to_do(hub, lowbit_command):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    out = lowbit_command("pull", NAME, HF_HUB_OFFLINE="1")
    assert out.returncode == 2
    assert "HF_HUB_OFFLINE" in out.stderr
    assert "models--owner--tiny" in out.stderr
    assert not hub.asked
    path = lowbit_command("pull", NAME).stdout
    assert lowbit_command("pull", NAME, HF_HUB_OFFLINE="1").stdout == path


def test_a_hub_that_cannot_be_reached_is_one_line(lowbit_command):
    out = lowbit_command("pull", NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert out.returncode == 2
    assert "http://127.0.0.1:9 cannot be reached" in out.stderr
    assert out.stderr.count("\n") == 1


def test_two_processes_fetch_a_file_once(hub, start, cache):
    repository = hub.add("owner/tiny", {"tiny.gguf": TINY})
    repository.pause = threading.Event()
    both = [start("-m", "lowbit", "pull", NAME) for _ in range(2)]
    until(lambda: len(hub.asked_for("/api/")) == 2 and hub.files_asked())
    repository.pause.set()
    paths = {process.communicate(timeout=1200)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert Path(paths.pop().strip()).read_bytes() == TINY
    assert len(hub.files_asked()) == 1


@pytest.mark.skipif(os.name == "nt", reason="has no limit on the size of files")
def test_a_full_disk_is_said_before_and_during(hub, start, lowbit_command, cache):
    repository = hub.add("owner/large", {"large.gguf": LARGE})
    limited = (
        "import resource, signal, sys; from lowbit import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))\n"
        "sys.exit(cli.main(['pull', 'hf:owner/large']))"
    )
    process = start("-c", limited)
    _, err = process.communicate(timeout=1200)
    assert process.returncode == 2
    assert "File too large; what has been fetched stays" in err
    assert lowbit_command("pull", "hf:owner/large").returncode == 0
    assert len(hub.files_asked()) == 2
    assert hub.files_asked()[1][1] is not None
    repository.sizes["large.gguf"], repository.commit = 10**18, "d" * 40
    repository.digests["large.gguf"] = "1" * 64
    err = lowbit_command("pull", "hf:owner/large").stderr
    assert "1000000000.00 GB are to be fetched" in err
    assert "HF_HOME" in err


def test_without_the_library_the_error_names_the_extra_and_the_cache_still_works(hub, start, lowbit_command):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    without = (
        "import sys; sys.modules['huggingface_hub'] = None; from lowbit import cli; sys.exit(cli.main(sys.argv[1:]))"
    )

    def run(*argv):
        process = start("-c", without, *argv)
        out, err = process.communicate(timeout=1200)
        return process.returncode, out, err

    for command in (["pull", NAME], ["info", NAME], ["generate", "x", "-m", NAME]):
        status, out, err = run(*command)
        assert (status, out) == (2, "")
        assert "pip install 'lowbit[hub]'" in err
    path = lowbit_command("pull", NAME).stdout.strip()
    assert json.loads(run("info", NAME, "--json")[1])["path"] == path
    assert path in run("models")[1]
    assert path in run("pull", NAME)[2]


def test_models_lists_what_is_here_and_a_catalogue_of_what_is_known(hub, run):
    hub.add("owner/tiny", {"tiny-TQ2_0.gguf": TINY, "tiny-Q8_0.gguf": TINY + b"\0"})
    hub.add("owner/folder", {"config.json": b"{}", "model.safetensors": b"1234"})
    paths = [run("pull", name).stdout.strip() for name in (NAME, f"{NAME}:Q8_0", "hf:owner/folder")]
    table = run("models").stdout
    listed = json.loads(run("models", "--json").stdout)
    assert {(one["name"], one["path"], one["bytes"]) for one in listed["here"]} == {
        ("(embedded)", EMBEDDED_MODEL, len(TINY)),
        ("hf:owner/tiny:tiny-TQ2_0.gguf", paths[0], len(TINY)),
        ("hf:owner/tiny:tiny-Q8_0.gguf", paths[1], len(TINY) + 1),
        ("hf:owner/folder", paths[2], 6),
    }
    for text in (*paths, "3.4 MB", "SmolLM2", "hf:microsoft/bitnet-b1.58-2B-4T-gguf"):
        assert text in table
    fields = {"model", "from", "architecture", "type", "disk", "ram", "licence", "checked"}
    for one in listed["catalogue"]:
        assert {"model", "from", "architecture", "type", "checked"} <= set(one) <= fields
        assert isinstance(one["checked"], bool)


def test_a_model_of_the_hub_replaces_an_older_file(hub, run, tmp_path):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    out = tmp_path / "out.gguf"
    for command in (("convert", NAME, str(out), "--type", "f16"), ("quantize", NAME, str(out), "--type", "int8")):
        out.write_text("old")
        done = run(*command)
        assert (done.returncode, out.read_bytes()[:4]) == (0, b"GGUF"), done.stderr


def test_thresholds_are_not_written_into_the_cache(hub, run, tmp_path):
    hub.add("owner/tiny", {"tiny.gguf": TINY})
    (tmp_path / "text").write_text("Once upon a time")
    out = run("calibrate", "-m", NAME, "--text", str(tmp_path / "text"), "--target", "0.4")
    assert out.returncode == 2
    assert "--output" in out.stderr
