"""4-bit training: every rounding against its definition, and all precisions from training to exported file."""

from __future__ import annotations

# ruff: noqa: E402  (torch is asked for before what needs it is imported)
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from lowbit.errors import FormatError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.train.checkpoint import read_progress
from lowbit.train.export import write_gguf
from lowbit.train.fourbit import LEVELS, FourBitProduct, int4_weights, pact, round_fp4
from lowbit.train.loop import Schedule, fit
from lowbit.train.measure import bits_per_byte
from lowbit.train.model import PRECISIONS, BitNet, BitNetShape, int8_weights

QUICK = {"batch_tokens": 512, "micro_tokens": 256, "window": 32, "learning_rate": 5e-3}


def nearest_power_of_four(value):
    """The definition, in exact arithmetic: 4^n for 4^n / 1.6 <= |value| < 4^(n+1) / 1.6, n from -3 to 3, else 0."""
    size = abs(Fraction(value))
    rounded = Fraction(0)
    for n in range(-3, 4):
        if size >= Fraction(4) ** n / Fraction(8, 5):
            rounded = Fraction(4) ** n
    return float(rounded if value > 0 else -rounded)


def test_fp4_rounding_equals_the_definition_on_a_table_of_values():
    values = [0.0, 1e-30, 1e30, 1.0, 2.0, 3.0, 0.1, 0.007, 200.0]
    for n in range(-5, 6):
        border = np.float32(4.0**n * 0.625)
        values += [
            4.0**n,
            2 * 4.0**n,
            border,
            np.nextafter(border, np.float32(0)),
            np.nextafter(border, np.float32(9e9)),
        ]
    values += np.random.default_rng(0).lognormal(0, 3, 500).tolist()
    table = np.float32(values + [-v for v in values])
    expected = [nearest_power_of_four(float(v)) for v in table]
    assert round_fp4(torch.from_numpy(table)).tolist() == expected
    assert set(np.abs(expected)) == {0.0, *(4.0**n for n in range(-3, 4))}


def test_fp4_examples():
    x = torch.tensor([0.0097, 0.0098, 0.62, 0.63, 1.0, 2.49, 2.5, -10.0, 39.0, 41.0, 1000.0])
    expected = [0.0, 1 / 64, 0.25, 1.0, 1.0, 1.0, 4.0, -16.0, 16.0, 64.0, 64.0]
    assert round_fp4(x).tolist() == expected


def test_fp4_hides_no_gradient_that_is_not_finite():
    assert torch.isnan(round_fp4(torch.tensor([torch.nan]))).all()
    assert round_fp4(torch.tensor([torch.inf, -torch.inf])).tolist() == [np.inf, -np.inf]


def test_gradients_are_rounded_to_even_powers_for_inputs_and_to_odd_ones_for_weights():
    torch.manual_seed(0)
    x, weight = torch.eye(6, requires_grad=True), torch.eye(6, requires_grad=True)
    exponent = torch.tensor(3.0, requires_grad=True)
    gradient = torch.randn(6, 6)
    FourBitProduct.apply(x, weight, exponent).backward(gradient)
    expected = round_fp4(gradient * 8)
    assert torch.equal(x.grad * 8, expected)
    odd = weight.grad.T * 8
    assert torch.equal(odd, 2 * round_fp4(gradient * 4))
    powers = torch.log2(odd[odd != 0].abs())
    assert (powers % 2 == 1).all()
    assert (torch.log2(expected[expected != 0].abs()) % 2 == 0).all()


@pytest.mark.parametrize("size", [1e-9, 3e-4, 1.0, 5e3])
def test_gradient_scale_moves_the_largest_gradient_to_the_end_of_the_range(size):
    gradient = torch.tensor([[size, -size / 7]])
    exponent = torch.tensor(16.0, requires_grad=True)
    x, weight = torch.ones(1, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    FourBitProduct.apply(x, weight, exponent).backward(gradient)
    assert 64 < size * 2.0 ** (16 + exponent.grad.item()) <= 128


def test_gradient_of_zero_moves_no_scale():
    exponent = torch.tensor(16.0, requires_grad=True)
    x = torch.ones(1, 3, requires_grad=True)
    FourBitProduct.apply(x, x, exponent).backward(torch.zeros(1, 1))
    assert exponent.grad.item() == 0


def test_sawb_clips_where_the_statistics_say():
    torch.manual_seed(1)
    weight = torch.randn(200, 100, requires_grad=True)
    codes, step = int4_weights(weight)
    w = weight.detach().double()
    clip = 12.68 * (w * w).mean().sqrt() - 12.80 * w.abs().mean()
    assert step.item() * LEVELS == pytest.approx(clip.item(), rel=1e-5)
    assert set(codes.unique().tolist()) == set(range(-7, 8))
    (codes * step).sum().backward()
    assert torch.allclose(weight.grad, torch.ones_like(weight), rtol=1e-4)


def test_sawb_falls_back_to_the_largest_weight():
    weight = torch.tensor([[0.5, -0.5, 0.5, 0.5]])  # the rule gives a negative clipping value
    codes, step = int4_weights(weight)
    assert codes.tolist() == [[7, -7, 7, 7]]
    assert step.item() * 7 == pytest.approx(0.5)


def test_pact_sends_the_gradient_of_what_it_clips_to_the_clip():
    x = torch.tensor([[0.0, 0.4, -1.9, 2.1, 5.0, -3.0]], requires_grad=True)
    clip = torch.tensor(2.0, requires_grad=True)
    codes, step = pact(x, clip)
    assert codes.tolist() == [[0, 1, -7, 7, 7, -7]]
    (codes * step * torch.tensor([1.0, 2, 3, 4, 5, 6])).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[1.0, 2, 3, 0, 0, 0]]))
    assert clip.grad.item() == pytest.approx(4 + 5 - 6)


def test_int8_weights_are_whole_numbers_up_to_127():
    weight = torch.randn(64, 32)
    codes, scale = int8_weights(weight)
    assert codes.abs().max() == 127
    assert torch.equal(codes, codes.round())
    assert torch.allclose(codes * scale, weight, atol=scale.item() / 2 * 1.001)


@pytest.fixture
def trained(make_model, documents, tokenizer, tmp_path):
    def make(precision, steps=40, **more):
        torch.manual_seed(0)
        shape = BitNetShape(
            tokenizer.vocab_size, hidden_size=64, intermediate_size=64, n_layers=1, n_heads=4, n_kv_heads=2,
            context_length=32,
        )  # fmt: skip
        model = BitNet(shape, precision=precision)
        return model, fit(model, documents, Schedule(steps=steps, **QUICK), tmp_path / "c.npz", **more)

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns(trained, precision):
    _, history = trained(precision)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_four_bit_training_resumes_exactly(trained, tmp_path):
    class StopError(Exception):
        pass

    def stop(record):
        if record["step"] == 6:
            raise StopError

    whole, history = trained("int4-fp4", 12)
    with pytest.raises(StopError):
        trained("int4-fp4", 12, report=stop, checkpoint_seconds=0)
    assert read_progress(tmp_path / "c.npz")["step"] == 6
    again, resumed = trained("int4-fp4", 12, resume=True)
    assert [r["loss"] for r in resumed] == [r["loss"] for r in history]
    assert any(name.endswith("grad_exponent") for name, _ in whole.named_parameters())
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(FormatError, match="precision"):
        trained("int4-fp4", 12, resume=True, identity={"precision": "int4-fp4"})


@pytest.mark.parametrize(("precision", "kind"), [("int8", "Q8_0"), ("int4-fp4", "Q4_0"), ("float32", "F32")])
def test_exported_weights_are_those_of_training(trained, vocabulary, tmp_path, precision, kind):
    model, _ = trained(precision, 10)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, name="test")
    with open_model(path) as file:
        assert not any(name.endswith(("input_clip.weight", "grad_exponent.weight")) for name in file.tensors)
        for name in ("attn_q", "attn_output", "ffn_gate", "ffn_down"):
            info = file.tensors[f"blk.0.{name}.weight"]
            assert info.type == kind
            weight = model.blocks[0].get_parameter(name).detach()
            if precision != "float32":
                codes, scale = (int8_weights if precision == "int8" else int4_weights)(weight)
                weight = codes * scale
            assert np.allclose(dequantize(kind, file.read(info.name), info.shape), weight.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 5e-3), ("int8", 5e-3), ("int4-fp4", 0.05)])
def test_lowbit_gives_the_loss_of_training(trained, vocabulary, stories, documents, tmp_path, precision, tolerance):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    import lowbit

    model, path = trained(precision)[0], tmp_path / "model.gguf"
    write_gguf(path, model, vocabulary, name="test")
    loaded = lowbit.load(path)
    short = [i for i, ids in enumerate(documents) if len(ids) <= 32][:20]
    size = sum(len(stories[i].encode()) for i in short)
    nats = sum((score := loaded.perplexity(stories[i])).nats_per_token * score.tokens for i in short)
    expected = bits_per_byte(model, [documents[i][:-1] for i in short], size)
    assert nats / np.log(2) / size == pytest.approx(expected, rel=tolerance)
