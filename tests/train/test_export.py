"""The exported file is the trained model, and files become models that compute the same."""

from __future__ import annotations

# ruff: noqa: E402  (torch is asked for before what needs it is imported)
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import ternary_codes
from lowbit.tokenizers import load_tokenizer
from lowbit.train.corpus import encode
from lowbit.train.export import write_gguf
from lowbit.train.measure import bits_per_byte
from lowbit.train.model import ternary
from lowbit.train.warmstart import grow, read_model

WIDE = {"hidden_size": 256, "intermediate_size": 256}


@pytest.fixture
def trained(make_model, documents, tmp_path):
    """A model after a few steps, whose norms are no longer all 1."""
    from lowbit.train.loop import Schedule, fit

    def make(**changes):
        model = make_model(**{**WIDE, **changes})
        schedule = Schedule(steps=15, batch_tokens=512, micro_tokens=512, window=32, learning_rate=3e-3)
        fit(model, documents, schedule, tmp_path / "c.npz")
        return model

    return make


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0", "I2_S"])
def test_exported_weights_are_the_ternary_codes_of_training(trained, vocabulary, tmp_path, kind):
    model, path = trained(), tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, name="test", ternary_type=kind)
    file = open_model(path)
    for name, parameter in model.named_parameters():
        info = file.tensors[name + ".weight"]
        assert info.shape == tuple(parameter.shape)
        if parameter.ndim == 2 and name != "token_embd":
            assert info.type == kind
            codes, scales = ternary_codes(kind, file.read(info.name), info.shape)
            expected, scale = ternary(parameter.detach())
            assert (codes.astype(int) - 1 == expected.numpy()).all()
            assert np.allclose(scales, scale.item(), rtol=1e-3)
    file.close()


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_export_then_read_gives_the_same_loss(trained, vocabulary, documents, tmp_path, activation):
    model, path = trained(activation=activation), tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, name="test")
    again = read_model(path)
    assert again.shape == model.shape
    assert bits_per_byte(again, documents, 1) == pytest.approx(bits_per_byte(model, documents, 1), rel=5e-3)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_lowbit_gives_the_loss_of_training(trained, vocabulary, stories, documents, tmp_path, activation):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    import lowbit

    trained_model, path = trained(activation=activation), tmp_path / "model.gguf"
    write_gguf(path, trained_model, vocabulary, name="test")
    model = lowbit.load(path)
    short = [i for i, ids in enumerate(documents) if len(ids) <= 32][:30]
    assert len(short) > 5
    size = sum(len(stories[i].encode()) for i in short)
    nats = sum((score := model.perplexity(stories[i])).nats_per_token * score.tokens for i in short)
    expected = bits_per_byte(trained_model, [documents[i][:-1] for i in short], size)
    assert nats / np.log(2) / size == pytest.approx(expected, rel=5e-3)


def test_sizes_that_a_type_cannot_store_are_refused(make_model, vocabulary, tmp_path):
    with pytest.raises(FormatError, match="whole 256s"):
        write_gguf(tmp_path / "x.gguf", make_model(), vocabulary, name="test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_a_grown_model_computes_nearly_the_same_before_training(trained, make_model, documents, activation):
    source = trained(n_layers=2, activation=activation)
    grown = make_model(**WIDE, n_layers=3, activation=activation)
    grow(grown, source)
    assert bits_per_byte(grown, documents, 1) == pytest.approx(bits_per_byte(source, documents, 1), rel=0.02)
    same = make_model(**WIDE, n_layers=2, activation=activation)
    grow(same, source)
    assert bits_per_byte(same, documents, 1) == pytest.approx(bits_per_byte(source, documents, 1), rel=2e-3)


def test_models_that_do_not_fit_are_refused(make_model):
    with pytest.raises(FormatError, match="_size is 64"):
        grow(make_model(), make_model(**WIDE))
    with pytest.raises(FormatError, match="more blocks"):
        grow(make_model(), make_model(n_layers=2))


def test_measurement_scores_each_token_of_a_long_document_once(make_model, documents):
    model = make_model(context_length=16)
    with torch.no_grad():
        model.token_embd.zero_()  # all tokens equally likely: log2(512) = 9 bits each, whatever the windows
    for n in [2, 15, 16, 17, 18, 24, 25, 26, 40, 41, 57]:
        document = np.concatenate(documents)[:n]
        assert bits_per_byte(model, [document], 1) == pytest.approx(9.0 * (n - 1), rel=1e-5), n


def test_a_real_ternary_model_scores_as_published(test_data):
    path = test_data / "models" / "tinystories-3m.TQ2_0.gguf"
    model = read_model(path)
    golden = np.load(test_data / "models" / "tinystories-3m.logits.npy")
    ids = json.loads((test_data / "models" / "golden.json").read_text())["prompt_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].numpy()
    assert (logits.argmax(-1) == golden.argmax(-1)).mean() > 0.95
    # the oracle computes in float64: where an activation lies on a rounding border, the two part a little
    assert np.abs(logits - golden).mean() < 0.01 * np.abs(golden).max()
    text = "Once upon a time, there was a little girl named Lily. She liked to play outside in the park."
    score = bits_per_byte(model, encode([text], load_tokenizer(path)), len(text))
    assert score < 0.7


def test_other_architectures_cannot_be_trained(test_data):
    with pytest.raises(UnsupportedModelError, match="BitNet"):
        read_model(test_data / "models" / "stories260K.bin")
