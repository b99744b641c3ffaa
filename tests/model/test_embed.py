"""Embeddings are the hidden states of the reference, after the last norm, pooled as asked."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import reference

IDS = [1, 5, 3, 14, 2, 9, 9, 0, 7, 11]


@pytest.fixture
def small(write_llama, oracle):
    path = write_llama()
    return lowbit.load(path, threads=1, kv_type="f32"), *oracle(path)


def test_vectors_are_those_of_the_reference(small):
    model, config, weights = small
    states = reference.hidden_states(config, weights, IDS)
    for pooling, expected in (("last", states[-1]), ("mean", states.mean(0))):
        vectors = model.embed(IDS, pooling=pooling)
        assert vectors.dtype == np.float32
        assert vectors.shape == (1, config.hidden_size)
        np.testing.assert_allclose(vectors[0], expected, atol=2e-5, rtol=2e-5)


def test_the_head_turns_the_last_vector_into_the_logits(small):
    model, _, weights = small
    head = weights["token_embd"]
    np.testing.assert_allclose(model.embed(IDS)[0] @ head.T, model.logits(IDS)[-1], atol=1e-4)


def test_each_text_of_a_list_comes_out_as_alone(embedded):
    texts = ["Once upon a time", "One day, a dog", "x"]
    for pooling in ("last", "mean"):
        together = embedded.embed(texts, pooling=pooling)
        assert together.shape == (3, embedded.config.hidden_size)
        for text, vector in zip(texts, together):
            assert (embedded.embed(text, pooling=pooling)[0] == vector).all()
    ids = [embedded.tokenizer.encode(text) for text in texts]
    assert (embedded.embed(ids) == embedded.embed(texts)).all()


def test_a_text_longer_than_a_pass_gives_the_same_vector(write_llama):
    path = write_llama(keys={"context_length": 600})
    ids = np.random.default_rng(3).integers(0, 16, 520)
    model = lowbit.load(path, threads=1)
    np.testing.assert_allclose(model.embed(ids) @ _head(path).T, model.logits(ids)[-1:], atol=1e-4)
    assert (model.embed(ids[:300], "mean") != model.embed(ids, "mean")).any()


def _head(path):
    from lowbit.formats import open_model

    with open_model(path) as file:
        return file.read("token_embd.weight").view("<f4").reshape(16, 32)


def test_a_memory_budget_changes_no_vector(write_llama, stay_in_file):
    path = write_llama(kind="Q8_0", wide=64)
    resident, paged = lowbit.load(path), lowbit.load(path, max_ram="64MB")
    assert (paged.embed(IDS) == resident.embed(IDS)).all()
    np.testing.assert_allclose(paged.embed(IDS, "mean"), resident.embed(IDS, "mean"), rtol=1e-6)


def test_a_memory_budget_has_room_for_any_number_of_texts(write_llama, stay_in_file):
    path = write_llama(kind="Q8_0", wide=64)
    resident, paged = lowbit.load(path), lowbit.load(path, max_ram="64MB")
    texts = [IDS * 6, [3] * 60, IDS, [7] * 64]
    assert (paged.embed(texts) == resident.embed(texts)).all()


def test_embedding_leaves_generation_alone(embedded):
    before = embedded.generate("Once upon a time", max_tokens=8, temperature=0).tokens
    embedded.embed("Something else entirely")
    assert embedded.generate("Once upon a time", max_tokens=8, temperature=0).tokens == before


def test_what_cannot_be_embedded_is_refused(small):
    model, _, _ = small
    for wrong in ([], [[]], [[1], []]):
        with pytest.raises(ValueError, match=r"no text|at least one token"):
            model.embed(wrong)
    with pytest.raises(ValueError, match="pooling must be last, mean or first, not 'max'"):
        model.embed(IDS, pooling="max")
    with pytest.raises(ValueError, match="pooling must be last, mean or first, not 'none'"):
        model.embed(IDS, pooling="none")
    with pytest.raises(ValueError, match="not in a vocabulary"):
        model.embed([99])
    with pytest.raises(lowbit.ContextLengthError):
        model.embed([1] * 65)
