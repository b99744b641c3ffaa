"""The bits of a logit depend on the model and the tokens before it, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from pieces import read

import lowbit
from lowbit import isa as instruction_sets
from lowbit._kernels.decoder import Batch
from lowbit._kernels.sequence import Sequence
from lowbit.formats import open_model
from lowbit.loading.load import build

FILES = ("stories260K.bin", "tinystories-3m.F32.gguf", "tinystories-3m.TQ2_0.gguf", "tinystories-3m.I2_S.gguf")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0")


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
        decoder, _ = build(opened, 2, None, batch=batch)
    got = read(decoder, ids, (batch,) * len(ids))
    assert np.array_equal(bits(got), bits(want))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("cuts", [(1,) * 41, (40, 1), (1, 40), (16, 16, 9), (5, 11, 2, 23)], ids=str)
def test_prompts_give_the_same_bits_in_any_pieces(isa, golden, real_model, file, cuts):
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model(file)
    want = model.logits(ids)
    assert np.array_equal(bits(read(model._decoder, ids, cuts)), bits(want))


def test_a_block_that_was_used_before_leaves_no_trace(golden, real_model):
    ids = np.array(golden["prompt_ids"], np.int32)
    decoder = real_model("tinystories-3m.TQ2_0.gguf")._decoder
    want = read(decoder, ids, (41,))
    decoder.pool.clear()
    read(decoder, ids[::-1].copy(), (41,))
    assert np.array_equal(bits(read(decoder, ids, (13, 28))), bits(want))


def test_last_logits_are_those_of_the_last_token(golden, real_model):
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model("tinystories-3m.I2_S.gguf")
    sequence = Sequence(model._decoder.pool, ids, len(ids))
    last = model._decoder.read(sequence)
    sequence.close()
    assert np.array_equal(bits(last), bits(model.logits(ids)[-1:]))


@pytest.mark.parametrize("more", [(), (9,), (9, 8, 7)], ids=str)
@pytest.mark.parametrize("made", [0, 1, 2, 33, 40])
def test_a_known_beginning_leaves_the_same_logits(write_llama, made, more):
    model = lowbit.load(write_llama(hidden=64, vocab=300, keys={"context_length": 200}))
    start = list(range(100, 160))  # so that the tokens that are made lie in two blocks
    tokens = model.generate(start, max_tokens=made, temperature=5.0, seed=1).tokens
    for known in (len(tokens), len(tokens) // 2, 0):
        prompt = np.array([*start, *tokens[:known], *more], np.int32)
        sequence = Sequence(model._decoder.pool, prompt, 200)
        assert sequence.reused >= min(len(prompt) - 1, len(start) + min(known, max(made - 1, 0)))
        last = model._decoder.read(sequence)
        sequence.close()
        assert np.array_equal(bits(last), bits(model.logits(prompt)[-1:])), known


def test_rows_of_any_company_have_the_bits_that_they_have_alone(isa, golden, real_model):
    """Prompts, scored rows, states and a row that decodes share one pass."""
    ids = np.array(golden["prompt_ids"], np.int32)
    model = real_model("tinystories-3m.TQ2_0.gguf")
    decoder, others = model._decoder, [ids[::-1].copy(), ids[5:30], ids[:9]]
    alone = [model.logits(other) for other in others]
    sequences = [Sequence(decoder.pool, other, 41, reuse=False) for other in (*others, ids)]
    batch = Batch(decoder)
    batch.add(sequences[3], 40, "nothing")
    decoder.step(batch)
    batch.clear()
    wants = ("every", "last", "states", "last")
    for sequence, want in zip(sequences, wants):
        batch.add(sequence, sequence.pending, want)
    decoder.step(batch)
    left = [
        (decoder.states if want == "states" else decoder.logits)[batch.place(i)].copy() for i, want in enumerate(wants)
    ]
    for sequence in sequences:
        sequence.close()
    assert np.array_equal(bits(left[0]), bits(alone[0]))
    assert np.array_equal(bits(left[1]), bits(alone[1][-1:]))
    assert np.array_equal(bits(left[2][-1:]), bits(model.embed([others[2].tolist()])))
    assert np.array_equal(bits(left[3]), bits(model.logits(ids)[-1:]))


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
