"""The bits of a logit depend on the model and the tokens before it, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import isa as instruction_sets
from lowbit._kernels.transformer import KVCache
from lowbit.formats import open_model
from lowbit.loading.load import build

FILES = ("stories260K.bin", "tinystories-3m.F32.gguf", "tinystories-3m.TQ2_0.gguf", "tinystories-3m.I2_S.gguf")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "TQ1_0", "TQ2_0")


def bits(array):
    return array.view(np.uint32)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def everywhere(model, ids):
    """Logits by instruction set."""
    before = instruction_sets.active()
    try:
        for name in instruction_sets.available():
            instruction_sets.use(name)
            yield name, model.logits(ids)
    finally:
        instruction_sets.use(before)


@pytest.mark.parametrize("file", FILES)
def test_logits_have_the_same_bits_on_every_instruction_set_and_thread_count(golden, real_model, file):
    ids = golden["prompt_ids"]
    want = real_model(file).logits(ids)
    for threads in (1, 2, 3):
        for name, got in everywhere(real_model(file, threads), ids):
            assert np.array_equal(bits(got), bits(want)), (name, threads)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_has_the_same_bits_everywhere(write_llama, kind):
    path = write_llama(kind=kind, hidden=256, wide=512, vocab=300)
    ids = np.random.default_rng(0).integers(0, 300, 64).tolist()
    want = lowbit.load(path, threads=1).logits(ids)
    assert np.isfinite(want).all()
    for threads in (1, 2, 3):
        for name, got in everywhere(lowbit.load(path, threads=threads), ids):
            assert np.array_equal(bits(got), bits(want)), (name, threads)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("batch", [1, 2, 7, 8, 17, 41, 256])
def test_prompts_give_the_same_bits_in_any_batch(isa, golden, real_model, test_data, file, batch):
    ids = np.array(golden["prompt_ids"], np.int32)
    want = real_model(file).logits(ids)
    with open_model(test_data / "models" / file) as opened:
        transformer, _ = build(opened, 2, None, batch=batch)
    got = transformer.prefill(KVCache(transformer, len(ids)), ids, True)
    assert np.array_equal(bits(got), bits(want))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("cuts", [(1,) * 41, (40, 1), (1, 40), (16, 16, 9), (5, 11, 2, 23)], ids=str)
def test_prompts_give_the_same_bits_in_any_pieces(isa, golden, real_model, file, cuts):
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model(file)
    want = model.logits(ids)
    transformer = model._transformer
    cache = KVCache(transformer, len(ids))
    pieces = np.split(ids, np.cumsum(cuts)[:-1])
    got = np.concatenate([transformer.prefill(cache, piece, True) for piece in pieces])
    assert np.array_equal(bits(got), bits(want))


def test_forgotten_positions_leave_no_trace(golden, real_model):
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model("tinystories-3m.TQ2_0.gguf")
    want = model.logits(ids)
    transformer = model._transformer
    cache = KVCache(transformer, len(ids))
    transformer.prefill(cache, ids[::-1].copy(), True)
    cache.truncate(0)
    transformer.prefill(cache, ids[:20])
    cache.truncate(13)
    assert np.array_equal(bits(transformer.prefill(cache, ids[13:], True)), bits(want[13:]))


def test_last_logits_are_those_of_the_last_token(golden, real_model):
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model("tinystories-3m.I2_S.gguf")
    want = model.logits(ids)
    model._transformer.prefill(KVCache(model._transformer, len(ids)), ids)
    assert np.array_equal(bits(model._transformer.last_logits()), bits(want[-1]))


@pytest.mark.parametrize("more", [(), (9,), (9, 8, 7)], ids=str)
@pytest.mark.parametrize("made", [0, 1, 2, 33, 40])
def test_a_known_beginning_leaves_the_same_logits(write_llama, made, more):
    model = lowbit.load(write_llama(hidden=64, vocab=300))
    start = [5, 6, 7]
    tokens = model.generate(start, max_tokens=made, temperature=5.0, seed=1).tokens
    for known in (len(tokens), len(tokens) // 2, 0):
        prompt = [*start, *tokens[:known], *more]
        model.generate(prompt, max_tokens=0)
        assert np.array_equal(bits(model._transformer.last_logits()), bits(model.logits(prompt)[-1])), known


@pytest.mark.parametrize(("kv_type", "bound"), [("f16", 2e-5), ("int8", 0.02)])
def test_smaller_caches_have_the_same_bits_everywhere_and_stay_near(golden, real_model, test_data, kv_type, bound):
    ids = golden["prompt_ids"]
    exact = real_model("stories260K.bin").logits(ids)
    small = lowbit.load(test_data / "models/stories260K.bin", threads=2, kv_type=kv_type)
    results = [got for _, got in everywhere(small, ids)]
    assert all(np.array_equal(bits(got), bits(results[0])) for got in results)
    p, q = (log_softmax(logits) for logits in (exact, results[0]))
    assert 0 < (np.exp(p) * (p - q)).sum(1).max() < bound  # nats; measured: 2.4e-6 (f16), 6.0e-3 (int8)
    assert small.info()["kv_bytes_per_token"] < real_model("stories260K.bin").info()["kv_bytes_per_token"]
