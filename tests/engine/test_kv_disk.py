"""Keys and values on disk: the same bits as computed, under a limit, and nothing believed that is not whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import lowbit
from lowbit import Engine, LowbitError
from lowbit._kernels.kvpool import SPAN
from lowbit._kernels.sequence import Sequence
from lowbit.cli import main
from lowbit.loading import kvfolder
from lowbit.loading.kvdisk import HEADER
from lowbit.loading.kvfolder import KVFolder

PROMPT = [1, *range(3, 253)]
"""Three full blocks, and a part of one."""
OPTIONS = {"max_tokens": 40, "seed": 4}

IN_A_PROCESS = """
import json, sys, lowbit
path, options, requests = json.loads(sys.argv[1])
model = lowbit.load(path, **options)
outs = model.generate(*requests["prompts"], **requests["options"])
outs = outs if isinstance(outs, list) else [outs]
print(json.dumps([[out.tokens, out.timings.reused_tokens, out.logprobs] for out in outs]))
"""


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "kv"


@pytest.fixture
def with_disk(load, disk):
    """Load the model with the folder."""
    return lambda **options: load(kv_disk=disk, **options)


def stats(model):
    return model._decoder.pool.stats()["disk"]


def last_logits(model, ids):
    sequence = Sequence(model._decoder.pool, np.array(ids, np.int32), len(ids))
    reused, rows = sequence.reused, model._decoder.read(sequence)
    sequence.close()
    return reused, rows[-1].view(np.uint32)


def size(folder):
    return sum(file.bytes for file in KVFolder(folder).files())


def in_a_process(path, options, prompts, **settings):
    job = json.dumps([str(path), options, {"prompts": [prompts], "options": settings}])
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, job], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
def test_another_process_computes_nothing_again_and_gets_the_same_text(path, load, disk, kv_type):
    options = {"threads": 1, "kv_type": kv_type}
    want = load(kv_type=kv_type).generate(PROMPT, logprobs=3, **OPTIONS)
    options["kv_disk"] = str(disk)
    for reused in (0, 192):
        [[tokens, known, logprobs]] = in_a_process(path, options, PROMPT, logprobs=3, **OPTIONS)
        assert known == reused
        assert tokens == want.tokens
        assert logprobs == json.loads(json.dumps(want.logprobs))


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
def test_logits_behind_blocks_of_the_disk_have_the_same_bits(load, with_disk, isa, kv_type):
    _, want = last_logits(load(kv_type=kv_type), PROMPT)
    with_disk(kv_type=kv_type).generate(PROMPT[:200], max_tokens=0)
    reused, got = last_logits(with_disk(kv_type=kv_type), PROMPT)
    assert reused == 192
    assert np.array_equal(got, want)


def test_batches_and_speculation_get_the_same_text(load, with_disk):
    prompts = [PROMPT[:130], PROMPT, PROMPT[:70], [7, 8, 9] * 60]
    want = [out.tokens for out in load().generate(prompts, speculate=True, **OPTIONS)]
    for reused in ([0] * 4, [128, 192, 69, 128]):
        outs = with_disk().generate(prompts, speculate=True, **OPTIONS)
        assert [out.tokens for out in outs] == want
        if reused[0]:
            assert [out.timings.reused_tokens for out in outs] == reused


def test_a_pool_that_is_too_small_reads_back_what_it_gave_up(load, with_disk):
    model = with_disk()
    others = [[1, *range(n, n + 250)] for n in (4, 5)]
    want = [load().generate(prompt, **OPTIONS).tokens for prompt in (PROMPT, *others)]
    with Engine(model, kv_ram=6 * model._decoder.pool.block_bytes) as engine:
        for _ in range(3):
            assert [engine.submit(p, **OPTIONS).result().tokens for p in (PROMPT, *others)] == want
        kv = engine.stats()["kv"]
    assert kv["evictions"] > 0
    assert kv["held"] == 0
    assert kv["disk"]["written"] == 3 * 4
    assert kv["disk"]["read"] >= 12
    assert model._decoder.pool.allocated <= 6


def test_what_was_made_is_found_as_well(with_disk):
    first = with_disk().generate(PROMPT[:100], max_tokens=100, seed=1, logit_bias={1: -1000, 2: -1000})
    again = with_disk().generate([*PROMPT[:100], *first.tokens], max_tokens=1)
    assert again.timings.reused_tokens == 192


def test_salts_keep_callers_apart_on_disk_too(with_disk):
    for salt, known in (("a", 0), ("b", 0), ("a", 192)):
        with Engine(with_disk()) as engine:
            engine.submit(PROMPT, max_tokens=1, cache_salt=salt).result()
            assert engine.stats()["known_tokens"] == known


@pytest.mark.parametrize("other", [{"kv_type": "int8"}, {"head": "q8_0"}, {"sparsity": 0.5, "sparse_prefill": True}])
def test_other_settings_are_another_model(load, with_disk, other):
    with_disk().generate(PROMPT, max_tokens=1)
    model = with_disk(**other)
    out = model.generate(PROMPT, **OPTIONS)
    assert out.timings.reused_tokens == 0
    assert out.tokens == load(**other).generate(PROMPT, **OPTIONS).tokens


def test_a_changed_file_is_another_model(path, tmp_path, disk):
    model, data = tmp_path / "model.gguf", bytearray(path.read_bytes())
    model.write_bytes(data)
    lowbit.load(model, kv_disk=disk, threads=1).generate(PROMPT, max_tokens=1)
    data[len(data) // 2 + 777] ^= 1
    model.write_bytes(data)
    assert lowbit.load(model, kv_disk=disk, threads=1).generate(PROMPT, max_tokens=1).timings.reused_tokens == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
def test_a_file_whose_name_is_no_unicode_is_kept_like_any_other(path, tmp_path, disk):
    model = os.fsencode(tmp_path) + b"/\xff\xe9.gguf"
    shutil.copyfile(path, model)
    for known in (0, len(PROMPT) // SPAN * SPAN):
        out = lowbit.load(model, kv_disk=disk, threads=1).generate(PROMPT, max_tokens=1)
        assert out.timings.reused_tokens == known


def damaged(data):
    """What may have become of a file."""
    yield "empty", b""
    yield "header only", data[: HEADER.size]
    yield "truncated", data[:-1]
    yield "longer", data + b"\0"
    for at in (0, 8, 12, 16, 24, 40, HEADER.size - 1, HEADER.size, HEADER.size + 16, len(data) // 2, len(data) - 1):
        yield f"bit in byte {at}", data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_damaged_file_is_computed_anew_and_replaced(load, with_disk, disk):
    want = load().generate(PROMPT, **OPTIONS).tokens
    with_disk().generate(PROMPT, **OPTIONS)
    second = sorted(KVFolder(disk).files(), key=lambda file: -file.used)[1].path
    with open(second, "rb") as file:
        good = file.read()
    for name, data in damaged(good):
        with open(second, "wb") as file:
            file.write(data)
        model = with_disk()
        out = model.generate(PROMPT, **OPTIONS)
        assert out.timings.reused_tokens == 64, name
        assert out.tokens == want, name
        assert (stats(model)["damaged"], stats(model)["written"]) == (1, 1), name
        with open(second, "rb") as file:
            assert file.read() == good, name


def test_a_file_of_another_block_or_model_is_not_believed(load, with_disk, disk):
    want = load().generate(PROMPT, **OPTIONS).tokens
    with_disk().generate(PROMPT, **OPTIONS)
    with_disk(kv_type="f16").generate(PROMPT, **OPTIONS)
    files = sorted(KVFolder(disk).files(), key=lambda file: (file.model, -file.used))
    for name in ("swapped", "foreign"):
        first, other = files[0].path, files[1 if name == "swapped" else -1].path
        with open(other, "rb") as file:
            data = file.read()
        with open(first, "wb") as file:
            file.write(data)
        kv_type = "f32" if stats_of(with_disk, first) else "f16"
        out = with_disk(kv_type=kv_type).generate(PROMPT, **OPTIONS)
        assert out.timings.reused_tokens == 0, name
        assert out.tokens == (want if kv_type == "f32" else load(kv_type="f16").generate(PROMPT, **OPTIONS).tokens)


def stats_of(with_disk, path):
    """Whether a file belongs to the model with float32 keys and values."""
    return os.path.basename(path).startswith(with_disk()._decoder.pool.disk._model.hex())


def test_a_file_that_vanishes_is_computed_anew(with_disk, disk, monkeypatch):
    want = with_disk().generate(PROMPT, **OPTIONS).tokens
    model = with_disk()
    expect = model._decoder.pool.disk.expect

    def vanish(kind, chain):
        expect(kind, chain)
        os.unlink(model._decoder.pool.disk._path(kind, chain))

    monkeypatch.setattr(model._decoder.pool.disk, "expect", vanish)
    out = model.generate(PROMPT, **OPTIONS)
    assert (out.tokens, out.timings.reused_tokens) == (want, 64)
    assert stats(model)["damaged"] == 0


def test_the_folder_never_holds_more_than_its_limit(load, disk):
    block = load()._decoder.pool.block_bytes + 1000
    most = 0
    for n in range(3, 9):
        model = load(kv_disk=disk, kv_disk_bytes=5 * block)
        put = model._decoder.pool.disk.folder._say

        def say(lock, total, put=put):
            nonlocal most
            put(lock, total)
            most = max(most, size(disk))

        model._decoder.pool.disk.folder._say = say
        model.generate([1, *range(n, n + 250)], max_tokens=1)
        most = max(most, size(disk))
        assert size(disk) == stats(model)["bytes"]
    assert 3 * block - 3000 < most <= 5 * block
    load(kv_disk=disk, kv_disk_bytes=2 * block)
    assert 0 < size(disk) <= 2 * block, "a smaller limit holds from the beginning"


def test_what_was_used_last_stays_and_beginnings_outlive_ends(load, disk):
    block = load()._decoder.pool.block_bytes + 1000
    options = {"kv_disk": disk, "kv_disk_bytes": 5 * block + block // 5}
    texts = [[1, *range(n, n + 140)] for n in (3, 4, 5)]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        load(**options).generate(text, max_tokens=1)
    known = [load(**options).generate(text, max_tokens=0).timings.reused_tokens for text in (texts[2], texts[0])]
    assert known == [128, 128]
    assert load(**options).generate(texts[1], max_tokens=0).timings.reused_tokens == 64, "its end went first"


def test_a_text_that_is_larger_than_the_folder_keeps_its_beginning(load, disk):
    block = load()._decoder.pool.block_bytes + 1000
    options = {"kv_disk": disk, "kv_disk_bytes": 2 * block}
    model = load(**options)
    model.generate(PROMPT, max_tokens=1)
    assert (stats(model)["written"], stats(model)["refused"]) == (2, 1)
    assert load(**options).generate(PROMPT, max_tokens=0).timings.reused_tokens == 128


def test_what_the_pool_remembers_is_in_use_on_disk_too(load, disk):
    block = load()._decoder.pool.block_bytes + 1000
    model = load(kv_disk=disk, kv_disk_bytes=4 * block)
    texts = [[1, *range(n, n + 140)] for n in (3, 4, 5)]
    for text in (texts[0], texts[1], texts[0], texts[2]):  # the third finds its blocks in memory
        model.generate(text, max_tokens=1)
    assert load(kv_disk=disk).generate(texts[0], max_tokens=0).timings.reused_tokens == 128


def test_a_full_disk_ends_the_writing_with_one_warning_and_no_text(load, with_disk, disk, monkeypatch):
    want = load().generate(PROMPT, **OPTIONS).tokens
    model = with_disk()
    model.generate(PROMPT[:70], max_tokens=1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kvfolder.os, "utime", full)
    with pytest.warns(RuntimeWarning, match=r"kv: keys and values are not written any more: No space left") as found:
        assert model.generate(PROMPT, **OPTIONS).tokens == want
    assert len(found) == 1
    monkeypatch.undo()
    assert stats(model)["off"].startswith("No space left")
    assert not (disk / "unfinished").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([5] * 100, max_tokens=1)
        assert with_disk().generate(PROMPT, **OPTIONS).timings.reused_tokens == 64, "what was written is still read"


def test_a_folder_that_cannot_be_written_is_one_error(load, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LowbitError, match=r"file.*: keys and values cannot be kept there: (File|Not a)"):
            load(kv_disk=folder)
    opened = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(kvfolder.os, "open", read_only)
    with pytest.raises(LowbitError, match="kv: keys and values cannot be kept there: Read-only file system"):
        load(kv_disk=tmp_path / "kv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_disk_bytes": "1GB"}, "of which there is none"),
        ({"kv_disk": "kv", "kv_disk_bytes": "much"}, "kv_disk_bytes must be a size"),
        ({"kv_disk": "kv", "kv_disk_bytes": 1000}, r"kv_disk_bytes must be at least \d+ for this model, not 1000"),
    ],
)
def test_settings_that_make_no_sense_are_one_error(load, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        load(**options)


def test_two_processes_share_a_folder_and_its_limit(path, load, disk):
    block = load()._decoder.pool.block_bytes + 1000
    options = {"threads": 1, "kv_disk": str(disk), "kv_disk_bytes": 6 * block}
    prompts = [[[1, *range(n, n + 250)] for n in (first, first + 1, 20)] for first in (3, 5)]
    want = [[out.tokens for out in load().generate(some, **OPTIONS)] for some in prompts]
    found, most = {}, 0

    def run(number):
        for _ in range(2):
            outs = in_a_process(path, options, prompts[number], **OPTIONS)
            found.setdefault(number, []).append([out[0] for out in outs])

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if disk.is_dir():
            with KVFolder(disk)._locked(1) as lock:  # else a file could go, and another come, while they are counted
                most = max(most, 0 if lock is None else size(disk))
        time.sleep(0.005)
    assert found == {number: [want[number]] * 2 for number in (0, 1)}
    assert 0 < most <= 6 * block
    with open(disk / "lock", "rb") as lock:
        assert int(lock.read()) == size(disk)


def test_a_process_that_stands_still_with_the_lock_stops_nobody(load, with_disk, disk):
    model = with_disk()
    with KVFolder(disk)._locked(1) as lock:
        assert lock is not None
        tokens = model.generate(PROMPT, **OPTIONS).tokens
        with_disk()
    assert tokens == load().generate(PROMPT, **OPTIONS).tokens
    assert (stats(model)["written"], stats(model)["refused"]) == (0, 4)
    model.generate([7, *PROMPT[1:]], max_tokens=1)
    assert stats(model)["written"] == 3


def test_what_a_dead_process_left_is_removed_and_counted_anew(with_disk, disk):
    with_disk().generate(PROMPT, max_tokens=1)
    (disk / "unfinished").write_bytes(b"x" * 1000)
    (disk / "lock").write_bytes(b"rubbish")
    model = with_disk()
    assert stats(model)["bytes"] == size(disk)
    assert not (disk / "unfinished").exists()
    (disk / "lock").write_bytes(b"rubbish")
    model.generate([7, *PROMPT[1:]], max_tokens=1)
    assert stats(model)["bytes"] == size(disk)


def test_an_interrupt_while_reading_leaves_the_pool_whole(with_disk, monkeypatch):
    want = with_disk().generate(PROMPT, **OPTIONS).tokens
    model = with_disk()
    disk = model._decoder.pool.disk
    get, calls = disk.get, []

    def interrupt(kind, chain, into):
        calls.append(chain)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return get(kind, chain, into)

    monkeypatch.setattr(disk, "get", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, **OPTIONS)
    assert model._decoder.pool.held == 0
    assert model.generate(PROMPT, **OPTIONS).tokens == want


def test_the_command_warms_lists_and_clears(path, load, disk, tmp_path, capsys):
    text, there = tmp_path / "text.txt", ["--kv-disk", str(disk), "--json"]
    text.write_text("a text that is long enough for two blocks " * 4)

    def run(*args):
        assert main(["cache", *args, *there]) == 0
        return json.loads(capsys.readouterr().out)

    assert run("list")["models"] == []
    assert not disk.exists()
    disk.mkdir()
    assert run("clear")["removed"] == 0
    assert not list(disk.iterdir())
    made = run("warm", "-m", str(path), "-t", "1", "--text", str(text))
    assert made["blocks"] == made["written"] == made["tokens"] // SPAN >= 2
    listed = run("list")
    assert listed["bytes"] == made["bytes"] == size(disk)
    assert [(one["name"], one["blocks"], one["states"]) for one in listed["models"]] == [
        ("small.gguf", made["blocks"], 0)
    ]
    out = load(kv_disk=disk).generate(text.read_text() + "and more", max_tokens=1)
    assert out.timings.reused_tokens == made["blocks"] * SPAN
    (disk / "mine.txt").write_text("not ours")
    assert run("clear")["removed"] == made["blocks"]
    assert run("list")["models"] == []
    assert (disk / "mine.txt").exists()


def test_the_command_says_what_is_wrong_in_one_line(path, disk, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for args, words in (
        (["warm"], "--text FILE"),
        (["list", "--text", "x"], "takes no --text"),
        (["warm", "--text", str(tmp_path / "none")], "No such file"),
        (
            ["warm", "-m", str(path), "--text", str(tmp_path / "file"), "--kv-disk", str(tmp_path / "file")],
            "kept there",
        ),
    ):
        assert main(["cache", *args]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
