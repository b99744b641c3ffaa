"""A memory budget changes where weights come from, and nothing else: same text, clear errors, never more memory."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import lowbit
from lowbit import FormatError, MemoryBudgetError, memory
from lowbit.benchmark import RandomModel
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.memory import parse_size

SIZES = {"vocab": 1237, "hidden": 512, "wide": 1536, "heads": 8, "kv_heads": 4}
PROMPT = [1, 5, 9, 200, 33]


@pytest.fixture(params=["TQ2_0", "TQ1_0", "Q8_0", "Q4_0", "Q6_K", "F32", "F16"])
def path(request, write_llama):
    """A model with all matrices of one type; 1237 rows of the embedding are no whole number of row groups."""
    return write_llama(kind=request.param, name=f"{request.param}.gguf", **SIZES)


def smallest(path, **options):
    with pytest.raises(MemoryBudgetError) as caught:
        lowbit.load(path, max_ram="1MB", **options)
    return caught.value.smallest


@pytest.mark.measured
def test_logits_and_text_are_those_of_the_resident_model(path):
    resident, paged = lowbit.load(path), lowbit.load(path, max_ram=smallest(path))
    stats = paged.info()["memory"]
    assert np.array_equal(paged.logits(PROMPT), resident.logits(PROMPT))
    for threads in (1, 2):
        one = lowbit.load(path, max_ram=smallest(path), threads=threads)
        options = {"max_tokens": 20, "temperature": 0.7, "seed": 3}
        assert one.generate(PROMPT, **options).tokens == resident.generate(PROMPT, **options).tokens
    assert stats["cache_bytes"] + stats["resident_bytes"] < stats["budget_bytes"]


def test_weights_are_read_again_when_they_do_not_fit(write_llama):
    path = write_llama(kind="Q8_0", **{**SIZES, "vocab": 4096, "wide": 4096})
    model = lowbit.load(path, max_ram=smallest(path))
    model.generate(PROMPT, max_tokens=2, temperature=0)
    before = model.info()["memory"]
    model.generate(PROMPT, max_tokens=12, temperature=0)
    after = model.info()["memory"]
    assert after["bytes_read"] > before["bytes_read"]
    assert after["misses"] > 0 or after["prefetched"] > before["prefetched"]
    assert after["peak_memory"] <= after["cache_bytes"]


@pytest.mark.measured
def test_the_smallest_budget_named_works(path):
    model = lowbit.load(path, max_ram=smallest(path))
    assert len(model.generate(PROMPT, max_tokens=3, temperature=0).tokens) == 3


@pytest.mark.measured
@pytest.mark.parametrize("file", ["tinystories-3m.I2_S.gguf", "tinystories-3m.F32.gguf", "stories260K.bin"])
def test_real_models_tell_the_same_story(test_data, file):
    resident = lowbit.load(test_data / "models" / file)
    paged = lowbit.load(test_data / "models" / file, max_ram="6MB", context=256)
    options = {"max_tokens": 60, "temperature": 0}
    assert str(paged.generate("Once upon a time", **options)) == str(resident.generate("Once upon a time", **options))


def test_batches_speculation_and_perplexity_agree_with_the_resident_model(test_data):
    path = test_data / "models/tinystories-3m.TQ2_0.gguf"
    resident, paged = lowbit.load(path), lowbit.load(path, max_ram="7MB", context=256)
    prompts = ["Once upon a time", "One day, a cat", "Tom had", "The sun"]
    options = {"max_tokens": 30, "temperature": 0}
    expected = [g.tokens for g in resident.generate(prompts, **options)]
    assert [g.tokens for g in paged.generate(prompts, **options)] == expected
    assert paged.generate(prompts[0], speculate=True, **options).tokens == expected[0]
    text = "Once upon a time there was a little dog. He liked to play in the park."
    assert paged.perplexity(text).nats_per_token == pytest.approx(resident.perplexity(text).nats_per_token, rel=1e-12)


def test_any_budget_above_the_model_keeps_all_of_it(write_llama):
    model = lowbit.load(write_llama(kind="Q8_0", **SIZES), max_ram="200MB")
    model.generate(PROMPT, max_tokens=3, temperature=0)
    read = model.info()["memory"]["bytes_read"]
    model.generate(PROMPT, max_tokens=10, temperature=0)
    # the embedding's rows are looked up one by one, on top of its use as the head
    assert model.info()["memory"]["bytes_read"] - read < 20 * (16 * SIZES["hidden"] * 2 + 8192)


def test_two_streams_at_once_do_not_break_the_budget(test_data):
    model = lowbit.load(test_data / "models/stories260K.bin", max_ram="20MB")
    first = model.stream("Once upon a time", max_tokens=5, temperature=0)
    assert next(first)
    with pytest.raises(MemoryBudgetError, match="another stream"):
        model.generate(PROMPT, max_tokens=5, temperature=0)
    first.close()
    assert len(model.generate(PROMPT, max_tokens=5, temperature=0).tokens) == 5


@pytest.mark.parametrize("size", ["0", "-1", "abc", "", "1.2.3MB", "64 XB", "NaN", "inf", 0, -5, True, 1.5, 1 << 62])
def test_sizes_that_are_none_are_refused(write_llama, size):
    with pytest.raises(ValueError, match="max_ram"):
        lowbit.load(write_llama(), max_ram=size)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("64MB", 64 << 20), ("64 mib", 64 << 20), ("1.5G", 3 << 29), ("300k", 300 << 10), ("4096", 4096), (77, 77)],
)
def test_units_are_powers_of_1024(size, expected):
    assert parse_size(size) == expected


def test_a_file_cut_short_while_open_is_a_clear_error_and_the_model_recovers(write_llama):
    path = write_llama(kind="Q8_0", **{**SIZES, "vocab": 4096, "wide": 4096})
    whole = path.read_bytes()
    model = lowbit.load(path, max_ram=smallest(path))
    expected = model.generate(PROMPT, max_tokens=8, temperature=0).tokens
    os.truncate(path, len(whole) // 3)
    with pytest.raises(FormatError, match="shorter"):
        model.generate(PROMPT[::-1], max_tokens=8, temperature=0)
    path.write_bytes(whole)
    assert model.generate(PROMPT, max_tokens=8, temperature=0).tokens == expected


def test_a_code_that_does_not_exist_is_a_clear_error(write_llama):
    path = write_llama(kind="TQ2_0", **SIZES)
    with lowbit.formats.open_model(path) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
    with open(path, "r+b") as out:
        out.seek(info.offset)
        out.write(b"\xff")
    model = lowbit.load(path, max_ram="20MB")
    with pytest.raises(FormatError, match="code 3"):
        model.generate(PROMPT, max_tokens=2, temperature=0)


def test_threads_may_share_a_model(write_llama):
    model = lowbit.load(write_llama(kind="TQ2_0", **SIZES), max_ram="20MB")
    expected = model.generate(PROMPT, max_tokens=5, temperature=0).tokens
    found = []
    workers = [threading.Thread(target=lambda: found.append(model.logits(PROMPT).argmax(1).tolist())) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 6
    assert all(one == found[0] for one in found)
    assert model.generate(PROMPT, max_tokens=5, temperature=0).tokens == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_stays_within_the_budget(tmp_path):
    """A 110M model in 28 MB, in a process of its own, whose peak the system counts."""
    script = """
import sys
import lowbit
from lowbit.memory import resident_bytes

def peak():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmHWM"))

path = sys.argv[1]
warm = lowbit.load()                        # what the first model of a process takes once
warm.generate("Once", max_tokens=2, seed=1)
del warm
open("/proc/self/clear_refs", "w").write("5")
before = resident_bytes()
model = lowbit.load(path, max_ram="28MB")
model.generate(list(range(1, 40)), max_tokens=6, temperature=0)
print(peak() - before)
"""
    model = RandomModel("110M", context=512)
    with GGUFWriter(tmp_path / "random.gguf", model.architecture) as out:
        for key, value in model.metadata.items():
            if key != "general.architecture":
                out.add_metadata(key, value)
        for info in model.tensors.values():
            out.add_tensor_info(info.name, info.type, info.shape)
        out.write_header()
        for name in model.tensors:
            out.write_tensor(name, model.read(name))
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "random.gguf")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= 1.05 * (28 << 20)


def test_on_macos_the_memory_in_use_is_that_of_now_and_not_the_peak(monkeypatch):
    """`proc_pid_rusage` fills `struct rusage_info_v0`, in which the resident size is the eighth member."""

    def proc_pid_rusage(pid, flavor, usage):
        assert (pid, flavor) == (os.getpid(), 0)
        members = struct.pack("16s10Q", b"", *range(1000, 1010))
        ctypes.memmove(usage, members, len(members))
        return 0

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(proc_pid_rusage=proc_pid_rusage))
    assert memory.resident_bytes() == 1006
