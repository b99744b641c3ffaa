"""The oracle against published models: logits, greedy text and loss that other programs computed."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from plans import make_plan

from lowbit.formats import open_model
from lowbit.plan import ModelPlan
from lowbit.reference import Linear, TernaryLinear, forward, greedy, model, nats_per_token, rms_norm, softmax

DATA = Path(os.environ.get("LOWBIT_TEST_DATA", ""))
MODELS = DATA / "models"
pytestmark = pytest.mark.skipif(
    "LOWBIT_TEST_DATA" not in os.environ, reason="LOWBIT_TEST_DATA names no folder with published models"
)


@dataclass
class Case:
    name: str
    config: ModelPlan
    weights: dict[str, np.ndarray | Linear]


def read_float32(path):
    """All tensors of a float32 file by role."""
    file = open_model(path)
    assert {info.type for info in file.tensors.values()} == {"F32"}
    return {
        name.removesuffix(".weight"): file.read(name).view(np.float32).reshape(info.shape)
        for name, info in file.tensors.items()
    }


def as_ternary(w):
    """A matrix whose non-zero weights have one magnitude is ternary, and that magnitude is its scale."""
    magnitudes = np.unique(np.abs(w[w != 0]))
    return TernaryLinear(np.sign(w).astype(np.int8), magnitudes[0]) if w.ndim == 2 and len(magnitudes) == 1 else w


@pytest.fixture(scope="module")
def stories260k():
    config = make_plan("llama", 512, 64, 172, 5, 8, 4, 8, 512, tied_embeddings=True)
    return Case("stories260K", config, read_float32(MODELS / "stories260K.bin"))


@pytest.fixture(scope="module")
def tinystories_3m():
    config = make_plan(
        "bitnet",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        n_layers=8,
        n_heads=8,
        n_kv_heads=4,
        head_dim=32,
        context_length=512,
        norm_eps=1e-12,
        rope_pairing="halves",
        attn_sub_norm=True,
        ffn_sub_norm=True,
        tied_embeddings=True,
        activation_quant="token",
    )
    weights = {role: as_ternary(w) for role, w in read_float32(MODELS / "tinystories-3m.F32.gguf").items()}
    assert sum(isinstance(w, TernaryLinear) for w in weights.values()) == 7 * config.n_layers
    return Case("tinystories-3m", config, weights)


@pytest.fixture(scope="module", params=["stories260k", "tinystories_3m"])
def case(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def golden():
    return json.loads((MODELS / "golden.json").read_text())


def test_logits_of_a_float_model_equal_the_golden_logits(stories260k, golden):
    logits = forward(stories260k.config, stories260k.weights, golden["prompt_ids"])
    # both are float64 inside; the golden ones, up to 23, were stored as float32
    np.testing.assert_allclose(logits, np.load(MODELS / "stories260K.logits.npy"), rtol=0, atol=2e-6)


def test_logits_of_a_ternary_model_equal_the_golden_logits(tinystories_3m, golden, monkeypatch):
    # They were made with the epsilons of the training code: none in a block, 1e-5 at the output. GGUF stores only one.
    def norm(x, weight, eps):
        is_output = np.array_equal(weight, tinystories_3m.weights["output_norm"])
        return rms_norm(x, weight, 1e-5 if is_output else 0.0)

    monkeypatch.setattr(model, "rms_norm", norm)
    logits = forward(tinystories_3m.config, tinystories_3m.weights, golden["prompt_ids"])
    np.testing.assert_allclose(logits, np.load(MODELS / "tinystories-3m.logits.npy"), rtol=0, atol=5e-6)


def test_epsilon_of_the_file_moves_a_ternary_model_by_no_more_than_rounding_flips(tinystories_3m, golden):
    # An epsilon that is far too small to matter turns a few int8 activations by one step, and these spread.
    logits = forward(tinystories_3m.config, tinystories_3m.weights, golden["prompt_ids"])
    want = np.load(MODELS / "tinystories-3m.logits.npy").astype(np.float64)
    divergence = (softmax(want) * (np.log(softmax(want)) - np.log(softmax(logits)))).sum(axis=-1)
    assert divergence.max() < 0.01  # nats


def test_each_greedy_token_is_the_most_likely_one_after_those_before_it(case, golden):
    ids = golden["greedy"][case.name]["greedy_ids"]
    chosen = forward(case.config, case.weights, ids).argmax(axis=-1)
    assert chosen[-61:-1].tolist() == ids[-60:]


def test_greedy_continues_a_prompt_with_the_golden_tokens(case, golden):
    ids = golden["greedy"][case.name]["greedy_ids"]
    assert greedy(case.config, case.weights, ids[:-60], 20) == ids[-60:-40]


def test_logits_do_not_depend_on_later_tokens(case, golden):
    ids = golden["prompt_ids"]
    whole, part = (forward(case.config, case.weights, ids[:n]) for n in (30, 20))
    # the order of float64 additions may differ with the shape
    np.testing.assert_allclose(whole[:20], part, rtol=0, atol=1e-6)


def test_loss_is_the_mean_of_the_surprise_at_each_token(stories260k, golden):
    ids = golden["prompt_ids"][:5]
    p = softmax(forward(stories260k.config, stories260k.weights, ids))
    want = -np.mean([np.log(p[i, ids[i + 1]]) for i in range(4)])
    assert nats_per_token(stories260k.config, stories260k.weights, ids) == pytest.approx(want)


def test_loss_on_real_stories_equals_the_published_loss(stories260k):
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = sentencepiece.SentencePieceProcessor(str(MODELS / "tok512.model"))
    text = (DATA / "corpora" / "tinystories" / "valid.txt").read_text(encoding="utf-8")
    openings = "Once upon a time|One day|Once there|There once|In a |A long"
    pieces = [piece.strip() for piece in re.split(rf"\n\s*\n(?={openings})", text)[1:]]
    pieces = [piece for piece in pieces if 200 < len(piece) < 1100][:60]
    sequences = [[1, *tokenizer.encode(piece)] for piece in pieces]
    predicted = [len(ids) - 1 for ids in sequences]
    assert sum(predicted) == 17618
    losses = [nats_per_token(stories260k.config, stories260k.weights, ids) for ids in sequences]
    assert np.average(losses, weights=predicted) == pytest.approx(1.2982, abs=5e-5)
