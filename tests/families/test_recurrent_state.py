"""The state of recurrent layers: one budget with keys and values, copies at borders, and no trace of what failed."""

from __future__ import annotations

import signal

import checkpoints
import numpy as np
import pytest

import lowbit
from lowbit._kernels.decoder import Batch
from lowbit._kernels.kvpool import SPAN, KVPool
from lowbit._kernels.sequence import Sequence
from lowbit.engine.shadow import Shadow
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.loading.load import state_bytes
from lowbit.reference.delta import causal_convolution, delta_rule

EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
IDS = np.random.default_rng(8).integers(0, checkpoints.VOCAB, 128).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.write("qwen35", tmp_path_factory.mktemp("state") / "qwen35")


@pytest.fixture
def model(folder):
    return lowbit.load(folder, **EXACT)


def last_logits(model, ids, pieces=(128,)):
    sequence = Sequence(model._decoder.pool, ids, len(ids), reuse=False)
    for piece in pieces:
        if sequence.pending:
            rows = model._decoder.read(sequence, most=piece)
    sequence.close()
    return rows[-1]


def test_the_delta_rule_stores_a_value_under_its_key():
    rng = np.random.default_rng(0)
    keys = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    k, v = np.stack([keys[0], keys[1], keys[2], keys[1]])[:, None], rng.normal(size=(4, 1, 8))
    q = np.stack([keys[0], keys[0], keys[0], keys[1]])[:, None]
    out = delta_rule(q, k, v, np.ones((4, 1)), np.ones((4, 1)))
    np.testing.assert_allclose(out, np.stack([v[0], v[0], v[0], v[3]]), atol=1e-12)  # the last replaced the second
    halved = delta_rule(q, k, v, np.full((4, 1), 0.5), np.ones((4, 1)))
    np.testing.assert_allclose(halved[2], v[0] / 4, atol=1e-12)


def test_the_convolution_sees_the_last_tokens_and_none_that_follow():
    rng = np.random.default_rng(1)
    u, weight = rng.normal(size=(9, 3)), rng.normal(size=(3, 4))
    y = causal_convolution(u, weight)
    changed = u.copy()
    changed[4] += 1
    different = (causal_convolution(changed, weight) != y).all(1)
    assert different.tolist() == [False] * 4 + [True] * 4 + [False]


def test_the_size_of_a_state_follows_from_the_plan(folder, model):
    with open_model(folder) as file:
        size = state_bytes(plan_of(file))
    # three layers: three inputs of (2 * 2 + 6) * 16 channels, and six heads of 16 by 16
    assert size == model.info()["state_bytes"] == 3 * 4 * (3 * 160 + 6 * 16 * 16)


def test_a_known_beginning_ends_where_a_state_was_kept(model):
    pool, border = model._decoder.pool, model._decoder.pool.border
    assert border % SPAN == 0
    model.generate(IDS[:100].tolist(), max_tokens=2, temperature=0)
    assert len(pool.match(IDS.tobytes(), b"")[0]) == 100 // border * border // SPAN
    again = model.generate(IDS[:100].tolist(), max_tokens=2, temperature=0)
    assert again.timings.reused_tokens == 100 // border * border
    pool.clear()
    assert pool.allocated == 0
    assert pool.match(IDS.tobytes(), b"")[0] == []


def test_borders_are_so_far_apart_that_copies_take_no_more_than_blocks():
    for size in (1, 5000, 100_000, 10_000_000):
        pool = KVPool(2, 1, 16, "f32", size)
        assert pool.border // SPAN * pool.block_bytes >= size
        assert pool.need(1) == 1 + 2 * -(-size // pool.block_bytes)


def test_states_and_copies_stay_in_the_budget(folder):
    model = lowbit.load(folder, **EXACT)
    pool = model._decoder.pool
    texts = [np.roll(IDS, i)[: 40 + 17 * (i % 5)].tolist() for i in range(12)]
    expected = [lowbit.load(folder, **EXACT).generate(t, max_tokens=6, temperature=0).tokens for t in texts]
    limit = pool.need(128) + 1
    with lowbit.Engine(model, kv_ram=limit * pool.block_bytes) as engine:
        streams = [engine.submit(text, max_tokens=6, temperature=0) for text in texts]
        assert [s.result().tokens for s in streams] == expected
        stats = engine.stats()["kv"]
    assert stats["limit"] == limit
    assert pool.allocated <= limit
    assert pool.held == 0
    with pytest.raises(lowbit.MemoryBudgetError):
        lowbit.Engine(model, kv_ram=(pool.need(1) - 1) * pool.block_bytes)


def test_a_pass_that_was_interrupted_leaves_the_state(model):
    want = last_logits(lowbit.load(model.info()["path"], **EXACT), IDS)
    decoder, interrupted = model._decoder, 0

    class StopError(Exception):
        pass

    def stop(number, frame):
        raise StopError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for attempt in range(2000):  # a pass looks for signals now and then, and one has to come just before
            if attempt >= 60 and interrupted:
                break
            microseconds = 50 * (attempt + 1) if attempt < 60 else 5 * (attempt % 20 + 1)
            sequence, batch = Sequence(decoder.pool, IDS, len(IDS), reuse=False), Batch(decoder)
            while sequence.pending:
                batch.clear()
                batch.add(sequence, min(16, sequence.pending), "last")
                length = sequence.length
                try:
                    signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                    decoder.step(batch)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except StopError:
                    interrupted += sequence.length == length
            got = decoder.logits[batch.place(0)][-1].copy()
            sequence.close()
            assert np.array_equal(got, want)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted


def test_wrong_proposals_are_taken_back(folder):
    """A text in which what followed the same words earlier is sometimes right: both cases occur."""
    rng = np.random.default_rng(3)
    for start in range(4):
        words = rng.integers(0, 4, 60).tolist()
        options = {"max_tokens": 60, "temperature": 1.5, "seed": start, "top_k": 3}
        plain = lowbit.load(folder, **EXACT).generate(words, **options)
        assert lowbit.load(folder, **EXACT).generate(words, speculate=True, **options).tokens == plain.tokens


def test_a_draft_writes_ahead_of_recurrent_layers_and_has_none(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Shadow, "length", lambda shadow, most, row, token: (min(3, most), 99.0))
    draft = checkpoints.write("llama1", tmp_path / "llama")
    model = lowbit.load(folder, draft=draft, **EXACT)
    for seed, options in enumerate([{"temperature": 0}, {"temperature": 1.5, "top_k": 3}]):
        options |= {"max_tokens": 60, "seed": seed}
        plain = lowbit.load(folder, **EXACT).generate(IDS[:70].tolist(), **options)
        assert model.generate(IDS[:70].tolist(), **options).tokens == plain.tokens
    stats = model._engine.stats()
    assert stats["accepted_tokens"] < stats["proposed_tokens"]
    with pytest.raises(lowbit.UnsupportedModelError, match=r"recurrent layers \(qwen35\) cannot be the draft"):
        lowbit.load(draft, draft=folder, **EXACT)


@pytest.mark.parametrize("kv_type", ["f32", "int8"])
def test_states_on_disk_give_the_same_bits_and_are_read_with_their_blocks(tmp_path, kv_type):
    folder, ids = checkpoints.write("qwen35", tmp_path / "qwen35"), np.resize(IDS, 400)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(': 128, "rms_norm_eps"', ': 512, "rms_norm_eps"'))
    exact = EXACT | {"kv_type": kv_type}
    plain = lowbit.load(folder, **exact)
    want, border = last_logits(plain, ids, (400,)), plain._decoder.pool.border
    assert border == {"f32": 1, "int8": 3}[kv_type] * SPAN
    options = exact | {"kv_disk": tmp_path / "kv"}
    lowbit.load(folder, **options).generate(ids[:350].tolist(), max_tokens=0)
    for states in range(350 // border, -1, -1):
        for lost in sorted((tmp_path / "kv").glob("*.state"), key=lambda path: -path.stat().st_mtime_ns)[states:]:
            lost.unlink()
        model = lowbit.load(folder, **options)
        sequence = Sequence(model._decoder.pool, ids, len(ids))
        assert sequence.reused == states * border
        while sequence.pending:
            got = model._decoder.read(sequence, most=sequence.reach)
        sequence.close()
        assert np.array_equal(got[-1].view(np.uint32), want.view(np.uint32))
        assert model._decoder.pool.held == 0
        assert model._decoder.pool.stats()["disk"]["damaged"] == 0


def test_a_full_context_is_not_shifted(model):
    for use in (model.generate, model.stream):
        with pytest.raises(lowbit.UnsupportedModelError, match="context_shift is not for recurrent layers"):
            use([1, 2], context_shift=True)
