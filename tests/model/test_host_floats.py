"""Results are the same whatever mode of floats the host program has set, and the host keeps its mode."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest

import lowbit

MACHINE = platform.machine()
LIBM = ctypes.CDLL(ctypes.util.find_library("m")) if platform.system() == "Linux" else None
# fenv_t of glibc: where the register lies in it, its bits that are no flags, and settings of it
REGISTERS = {
    "x86_64": (28, ~0x3F, {"flush": 0x8040, "up": 0x4000, "down": 0x2000, "to_zero": 0x6000}),
    "aarch64": (0, ~0, {"flush": 1 << 24, "up": 1 << 22, "down": 2 << 22, "to_zero": 3 << 22}),
}

pytestmark = pytest.mark.skipif(
    LIBM is None or MACHINE not in REGISTERS, reason="needs to know where the C library keeps the mode"
)


def environment():
    memory = ctypes.create_string_buffer(64)
    LIBM.fegetenv(memory)
    return memory


def register(memory):
    at, kept, _ = REGISTERS[MACHINE]
    return int.from_bytes(memory.raw[at : at + 4], "little") & kept & 0xFFFFFFFF


def under(name, compute):
    """What `compute` returns while the host has set a mode; that mode must still be set afterwards."""
    before, changed = environment(), environment()
    at, _, settings = REGISTERS[MACHINE]
    word = register(changed) | settings[name]
    ctypes.memmove(ctypes.byref(changed, at), word.to_bytes(4, "little"), 4)
    LIBM.fesetenv(changed)
    try:
        result = compute()
        after = register(environment())
    finally:
        LIBM.fesetenv(before)
    assert after == word
    return result


@pytest.fixture
def subnormal(write_llama):
    """A file whose activations begin as subnormal numbers."""
    path = write_llama(vocab=320, hidden=64, keys={"attention.layer_norm_rms_epsilon": 1e-38}, kind="F32")
    raw = bytearray(path.read_bytes())
    with lowbit.formats.open_model(path) as file:
        values = file.read("token_embd.weight").tobytes()
    at = raw.index(values)
    raw[at : at + len(values)] = (np.frombuffer(values, np.float32) * np.float32(1e-39)).tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("mode", ["flush", "up", "down", "to_zero"])
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_vectors_and_texts_have_the_same_bits(subnormal, mode, threads):
    ids = list(range(1, 40))

    def compute():
        model = lowbit.load(subnormal, threads=threads, head="q8_0")
        text = model.generate(ids, max_tokens=20, temperature=0.9, top_p=0.95, seed=5)
        scored = model.generate(ids, max_tokens=3, seed=5, logprobs=4)
        return model.logits(ids).tobytes(), model.embed(ids).tobytes(), text.tokens, scored.logprobs

    assert under(mode, compute) == compute()


@pytest.mark.parametrize("mode", ["flush", "up", "down", "to_zero"])
def test_a_text_is_scored_alike(embedded, mode):
    text = "Once upon a time there was a little girl named Lily."
    assert under(mode, lambda: embedded.perplexity(text)) == embedded.perplexity(text)
