"""A memory budget changes where weights come from, and nothing else: same text, clear errors, never more memory."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import lowbit
from lowbit import FormatError, MemoryBudgetError
from lowbit.benchmark import RandomModel
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading import memory
from lowbit.loading.memory import parse_size

SIZES = {"vocab": 1237, "hidden": 512, "wide": 1536, "heads": 8, "kv_heads": 4}
PROMPT = [1, 5, 9, 200, 33]


@pytest.fixture(params=["TQ2_0", "TQ1_0", "Q8_0", "Q4_0", "Q4_1", "Q6_K", "F32", "F16"])
def path(request, write_llama):
    """A model with all matrices of one type; 1237 rows of the embedding are no whole number of row groups."""
    return write_llama(kind=request.param, name=f"{request.param}.gguf", **SIZES)


def smallest(path, **options):
    with pytest.raises(MemoryBudgetError) as caught:
        lowbit.load(path, max_ram="1MB", **options)
    return caught.value.smallest


def load_smallest(path, **options):
    """Load with the least that an error names, asked again where earlier loads have left the process other memory."""
    budget = smallest(path, **options)
    while True:
        try:
            return lowbit.load(path, max_ram=budget, **options)
        except MemoryBudgetError as error:
            if error.smallest <= budget:
                raise
            budget = error.smallest


@pytest.mark.measured
def test_logits_and_text_are_those_of_the_resident_model(path):
    resident, paged = lowbit.load(path), load_smallest(path)
    stats = paged.info()["memory"]
    assert np.array_equal(paged.logits(PROMPT), resident.logits(PROMPT))
    for threads in (1, 2):
        one = load_smallest(path, threads=threads)
        options = {"max_tokens": 20, "temperature": 0.7, "seed": 3}
        assert one.generate(PROMPT, **options).tokens == resident.generate(PROMPT, **options).tokens
    assert stats["cache_bytes"] + stats["resident_bytes"] < stats["budget_bytes"]


def test_weights_are_read_again_when_they_do_not_fit(write_llama):
    path = write_llama(kind="Q8_0", **{**SIZES, "vocab": 4096, "wide": 4096})
    model = load_smallest(path)
    model.generate(PROMPT, max_tokens=2, temperature=0)
    before = model.info()["memory"]
    model.generate(PROMPT, max_tokens=12, temperature=0)
    after = model.info()["memory"]
    assert after["bytes_read"] > before["bytes_read"]
    assert after["misses"] > 0 or after["prefetched"] > before["prefetched"]
    assert after["peak_memory"] <= after["cache_bytes"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="nothing here counts threads and open files")
def test_a_model_that_is_dropped_leaves_no_thread_and_no_open_file(write_llama):
    def held():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def use():
        model = load_smallest(path)
        model.generate(PROMPT, max_tokens=2, temperature=0)
        return held()

    path = write_llama(kind="Q8_0", **SIZES)
    use()  # the threads of the pool stay
    gc.collect()
    before = held()
    assert use() > before
    gc.collect()
    assert held() == before


@pytest.mark.measured
@pytest.mark.parametrize("block_bytes", [1, 9000, 1 << 20])
@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0", "Q8_0", "Q4_1", "F16", "IQ4_NL"])
def test_the_size_of_blocks_and_how_many_stay_change_no_bit(write_llama, stay_in_file, monkeypatch, kind, block_bytes):
    path = write_llama(kind=kind, **SIZES)
    prompt = [1, *range(7, 60)]
    resident = lowbit.load(path)
    expected, first = resident.logits(prompt), resident.logits([3])
    monkeypatch.setattr(memory.Budget, "block_bytes", property(lambda _: block_bytes, lambda *_: None), raising=False)
    least = smallest(path)
    for budget in (least, least + (1 << 19), "40MB"):  # nearly nothing stays, some blocks between others, all
        for threads in (1, 2):
            model = lowbit.load(path, max_ram=budget, threads=threads)
            for _ in range(2):  # packed, and packed before
                assert np.array_equal(model.logits(prompt), expected)
                assert np.array_equal(model.logits([3]), first)
    assert model.info()["memory"]["ring_slots"] == 0


@pytest.mark.measured
def test_the_smallest_budget_named_works(path):
    model = load_smallest(path)
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
    assert "bytes_read" not in model.info()["memory"], "nothing is left in the file"
    assert model.info()["memory"]["cache_bytes"] > 0


@pytest.mark.measured
@pytest.mark.parametrize("context", [1000, 2000])
def test_no_budget_is_too_little_where_a_smaller_one_was_enough(write_llama, context):
    """Keys and values are larger than the weights, which would have room without them."""
    path = write_llama(
        hidden=256, wide=256, vocab=300, heads=4, kv_heads=4, layers=3, keys={"context_length": 4000}
    )  # fmt: skip
    enough = []
    for megabytes in range(4, 26):
        try:
            model = lowbit.load(
                path, max_ram=megabytes << 20, context=context, kv_type="f32", weights="file", threads=1
            )
        except MemoryBudgetError:
            enough.append("")
        else:
            enough.append("in the file" if "hits" in model.info()["memory"] else "in memory")
    assert enough == sorted(enough, key=["", "in the file", "in memory"].index)
    assert {*enough} == {"", "in the file", "in memory"}


def test_a_stream_that_nobody_reads_makes_room_and_goes_on_later(test_data):
    path = test_data / "models/stories260K.bin"
    resident, model = lowbit.load(path), lowbit.load(path, max_ram="20MB")
    options = {"max_tokens": model.context, "temperature": 0.9}
    first = model.stream("Once upon a time", seed=1, **options)
    start = next(first)
    for seed in (2, 3):  # each needs all the memory there is for keys and values
        assert model.generate("One day", seed=seed, **options).tokens == (
            resident.generate("One day", seed=seed, **options).tokens
        )
    assert start + "".join(first) == resident.generate("Once upon a time", seed=1, **options).text
    assert model._decoder.pool.held == 0


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
    model = load_smallest(path)
    expected = model.generate(PROMPT, max_tokens=8, temperature=0).tokens
    os.truncate(path, len(whole) // 3)
    with pytest.raises(FormatError, match="shorter"):
        model.generate(PROMPT[::-1], max_tokens=8, temperature=0)
    path.write_bytes(whole)
    assert model.generate(PROMPT, max_tokens=8, temperature=0).tokens == expected


BAD = {
    "code": ("TQ2_0", 66 * 2 * 17, b"\xff", "the code 3, which does not exist"),  # in the second row group
    "TQ2_0 scale": ("TQ2_0", 66 * 2 * 17 + 64, b"\x00\x7e", "a scale is not finite"),
    "Q4_0 scale": ("Q4_0", 18 * 16 * 3, b"\x00\xfc", "a scale is not finite"),
    "Q4_1 scale": ("Q4_1", 20 * 16 * 3, b"\x00\xfc", "a scale is not finite"),
    "Q4_1 minimum": ("Q4_1", 20 * 16 * 3 + 2, b"\x00\x7e", "a scale is not finite"),
    "Q8_0 scale": ("Q8_0", 34 * 16 * 3, b"\x00\x7e", "a scale is not finite"),
    "IQ4_NL scale": ("IQ4_NL", 18 * 16 * 3, b"\x00\xfc", "a scale is not finite"),
    "Q4_K minimum": ("Q4_K", 144 * 2 * 17 + 2, b"\x00\x7e", "a scale is not finite"),
}
"""Type, offset in a tensor of 512 columns, bytes to write there, and what is said of them."""


@pytest.mark.parametrize("tensor", ["token_embd", "blk.0.ffn_up", "blk.0.ffn_down", "output"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_weight_is_the_same_error_at_every_use_and_never_a_text(write_llama, stay_in_file, bad, tensor, threads):
    kind, at, raw, reason = BAD[bad]
    path = write_llama(kind=kind, shapes={"output.weight": (SIZES["vocab"], SIZES["hidden"])}, **SIZES)
    with lowbit.formats.open_model(path) as file:
        offset = file.tensors[f"{tensor}.weight"].offset
    with open(path, "r+b") as out:
        out.seek(offset + at)
        out.write(raw)
    if tensor == "token_embd":
        prompt = [1, at // (file.tensors["token_embd.weight"].nbytes // SIZES["vocab"])]
    else:
        prompt = PROMPT
    for budget in (smallest(path), "40MB"):  # read anew for every pass, and read once
        model = lowbit.load(path, max_ram=budget, threads=threads)
        messages = set()
        for call in (model.logits, model.generate, model.embed)[: 2 if tensor == "output" else 3]:  # no head in embed
            for _ in range(4):
                with pytest.raises(FormatError, match=reason) as caught:
                    call(prompt)
                messages.add(str(caught.value))
        assert len(messages) == 1
        assert messages.pop().startswith(f"{path}: ")


@pytest.mark.parametrize("seed", range(8))
def test_small_blocks_with_a_bad_scale_make_no_text(write_llama, stay_in_file, seed):
    # a packed block of two row groups, read as if it were none yet, has scales that are codes: finite ones, often
    path = write_llama(kind="Q8_0", wide=32)
    with lowbit.formats.open_model(path) as file:
        offset = file.tensors["blk.0.ffn_gate.weight"].offset
    with open(path, "r+b") as out:
        out.seek(offset + 34 * (3 + seed))
        out.write(b"\x00\x7e")
    model = lowbit.load(path, max_ram="20MB", threads=1)
    for _ in range(6):
        with pytest.raises(FormatError, match="a scale is not finite"):
            model.logits([1, 2, 3])


class Held:
    """A file whose reads take long in other threads than the main one: until they are let go."""

    def __init__(self, path):
        self.path, self.waiting, self.let_go = path, 0, threading.Event()

    def read_at(self, offset, n):
        if threading.current_thread() is not threading.main_thread():
            self.waiting += 1
            self.let_go.wait(30)
            self.waiting -= 1
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), n, offset)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("use", ["logits", "generate", "embed"])
def test_ctrl_c_is_heard_while_a_pass_waits_for_a_block(write_llama, monkeypatch, use):
    path = write_llama(kind="Q8_0", **{**SIZES, "vocab": 4096, "wide": 4096})
    expected = lowbit.load(path).logits(PROMPT)
    budget = smallest(path)
    held = []

    def source(self, name):
        if not held:
            held.append(Held(name))
            self._sources.append(held[0])
        return 0

    monkeypatch.setattr(lowbit.loading.paging.Paging, "_source", source)
    model = lowbit.load(path, max_ram=budget, threads=1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            getattr(model, use)(PROMPT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert held[0].waiting > 0
    held[0].let_go.set()
    assert np.array_equal(model.logits(PROMPT), expected)


HELD = {
    "embed": lambda model: model.embed([[1] + [5] * 40, [1] + [6] * 50]),
    "logits": lambda model: model.logits([1] + [5] * 40),
    "generate": lambda model: model.generate([1] + [5] * 40, max_tokens=9, temperature=0),
    "batch": lambda model: model.generate([[1] + [5] * 40, [1] + [6] * 40], max_tokens=9, temperature=0),
    "stream": lambda model: list(model.stream([1] + [5] * 40, max_tokens=9, temperature=0)),
    "logprobs": lambda model: model.generate([1] + [5] * 40, max_tokens=3, temperature=0, logprobs=1),
}
"""Uses of a context of 64 tokens, of which no two fit in at once."""


@pytest.mark.parametrize("first", HELD)
def test_a_call_that_failed_keeps_no_memory_from_the_next(write_llama, first):
    path = write_llama(kind="Q8_0", **{**SIZES, "vocab": 4096, "wide": 4096})
    whole = path.read_bytes()
    model = load_smallest(path)
    os.truncate(path, len(whole) // 3)
    with pytest.raises(FormatError, match="shorter") as kept:
        HELD[first](model)
    path.write_bytes(whole)
    for use in HELD.values():
        use(model)
    assert kept.value.__traceback__ is not None


def test_threads_may_share_a_model(write_llama, stay_in_file):
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


@pytest.mark.measured
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_stays_within_the_budget(tmp_path):
    """A 110M model in 28 MB, in a process of its own, whose peak the system counts."""
    script = """
import sys
import lowbit
from lowbit.loading.memory import resident_bytes

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
