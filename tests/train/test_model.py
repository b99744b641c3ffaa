"""The torch model: what is rounded, and what it computes."""

from __future__ import annotations

# ruff: noqa: E402  (torch is asked for before what needs it is imported)
from dataclasses import asdict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from plans import make_plan

from lowbit.errors import FormatError
from lowbit.reference import TernaryLinear, forward, quantize_weights_absmean
from lowbit.train.attention import blockwise_attention, fused_attention
from lowbit.train.corpus import Rows
from lowbit.train.model import (
    BitNetShape,
    Quantisation,
    bit_linear,
    keep_largest,
    multiplies_bytes,
    quantise_activations,
    round_weights,
    ternary,
)


def test_weights_become_exactly_ternary_with_the_mean_magnitude_as_scale():
    weight = torch.randn(64, 96)
    codes, scale = ternary(weight)
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert scale.item() == weight.abs().mean().item()
    expected, expected_scale = quantize_weights_absmean(weight.numpy())
    assert (codes.numpy() == expected).all()
    assert scale.item() == pytest.approx(float(expected_scale), rel=1e-6)


def test_weights_of_zero_stay_zero():
    codes, scale = ternary(torch.zeros(4, 8))
    assert not codes.any()
    assert scale.item() == pytest.approx(1e-5)


def linear(x, weights, compute=torch.float32, **quantisation):
    return bit_linear(x, round_weights(weights, Quantisation(**quantisation), compute))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["ternary", "int8"])
def test_gradients_pass_straight_through_the_rounding(compute, precision):
    torch.manual_seed(0)
    x, up = torch.randn(3, 5, 64, requires_grad=True), torch.randn(3, 5, 96)
    weights = [torch.randn(n, 64, requires_grad=True) for n in (64, 32)]
    out = linear(x, weights, compute, precision=precision)
    (out.float() * up).sum().backward()
    rounded = round_weights(weights, Quantisation(precision=precision), torch.float32).matrix.detach()
    codes, scale = quantise_activations(x)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if compute == torch.float32 else {"rtol": 0.02, "atol": 0.2}
    assert torch.allclose(out.float(), (codes * scale) @ rounded.T, **tolerance)
    assert torch.allclose(x.grad, up @ rounded, **tolerance)
    expected = up.flatten(0, 1).T @ (codes * scale).flatten(0, 1)
    assert torch.allclose(torch.cat([w.grad for w in weights]), expected, **tolerance)


def test_products_of_bytes_are_exact(monkeypatch):
    torch.manual_seed(0)
    x, weights = torch.randn(37, 512), [torch.randn(128, 512)]
    results = []
    for as_bytes in (True, False):
        monkeypatch.setattr("lowbit.train.model.multiplies_bytes", lambda compute, as_bytes=as_bytes: as_bytes)
        rounded = round_weights(weights, Quantisation(), torch.float32)
        assert (rounded.codes.dtype == torch.int8) == as_bytes
        results.append(bit_linear(x, rounded))
    assert torch.equal(*results)
    assert not multiplies_bytes(torch.float32)


def test_activations_become_whole_numbers_that_round_half_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    codes, scale = quantise_activations(x)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2], [0, 0, 0, 0, 0, 0]]
    assert scale[0].item() == 1.0


def test_without_rounding_a_layer_computes_in_float():
    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    assert torch.allclose(linear(x, [weight], on=False), x @ weight.T, atol=1e-5)
    assert not torch.allclose(linear(x, [weight]), x @ weight.T, atol=1e-2)


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.6, 0.9])
def test_top_k_keeps_the_largest_magnitudes(keep):
    x = torch.randn(50, 256)
    kept = keep_largest(x, keep) != 0
    assert ((keep_largest(x, keep) == x) | ~kept).all()
    share = kept.float().mean(-1)
    assert (share >= keep - 1 / 256).all()
    assert (share <= keep + 0.05).all()
    smallest_kept = torch.where(kept, x.abs(), torch.inf).amin(-1)
    largest_dropped = torch.where(kept, 0.0, x.abs()).amax(-1)
    assert (largest_dropped <= smallest_kept).all()


def test_top_k_passes_gradients_of_what_it_drops():
    x = torch.randn(4, 64, requires_grad=True)
    keep_largest(x, 0.5).sum().backward()
    assert (x.grad == 1).all()


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_logits_equal_those_of_the_numpy_reference(make_model, activation):
    model = make_model(activation=activation, n_layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm"):
                parameter.uniform_(0.5, 1.5)
    shape = model.shape
    config = make_plan(
        family="bitnet", **asdict(shape), head_dim=shape.head_dim, rope_pairing="halves", attn_sub_norm=True,
        ffn_sub_norm=True, tied_embeddings=True, activation_quant="token",
    )  # fmt: skip
    weights = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        weights[name] = values
        if values.ndim == 2 and name != "token_embd":
            weights[name] = TernaryLinear(*quantize_weights_absmean(values))
    ids = np.random.default_rng(0).integers(3, shape.vocab_size, 24)
    expected = forward(config, weights, ids)
    with torch.no_grad():
        got = model(torch.from_numpy(ids)[None])[0].numpy()
    # float32 against float64: an activation near a rounding border may fall on the other side of it
    assert np.abs(got - expected).mean() < 1e-3 * np.abs(expected).max()


def test_later_tokens_do_not_change_earlier_logits(make_model):
    model = make_model()
    a = torch.randint(3, 512, (1, 20))
    b = a.clone()
    b[0, 12:] = torch.randint(3, 512, (8,))
    with torch.no_grad():
        assert torch.allclose(model(a)[0, :12], model(b)[0, :12], atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("time", [1, 63, 64, 65, 150])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_both_forms_of_attention_are_the_same_but_for_rounding(time, heads, kv_heads, several):
    shapes = [(2, time, heads, 16), (2, time, kv_heads, 16), (2, time, kv_heads, 16)]
    first = torch.arange(time).repeat(2, 1) // 40 * 40 if several else None

    def run(form, compute):
        torch.manual_seed(time)
        q, k, v = (torch.randn(shape).requires_grad_() for shape in shapes)
        mixed = form(q.to(compute), k.to(compute), v.to(compute), first).float()
        (mixed * torch.randn(mixed.shape)).sum().backward()
        return mixed.detach(), q.grad, k.grad, v.grad

    exact, in_float = run(fused_attention, torch.float32), run(blockwise_attention, torch.float32)
    for a, b, c in zip(exact, in_float, run(blockwise_attention, torch.bfloat16), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert (a - c).norm() < 0.02 * a.norm() + 1e-4


def test_python_is_heard_between_the_blocks_while_gradients_are_computed(make_model, monkeypatch):
    model, heard = make_model(n_layers=3), []
    monkeypatch.setattr("lowbit.train.model._heard", heard.append)
    model.hidden(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert len(heard) == 3


def test_documents_in_a_row_do_not_see_each_other(make_model, documents):
    model = make_model(context_length=128)
    rows = Rows([documents[0], documents[1], documents[2]], 120, seed=0)
    batch = rows.batch(0, 1)
    assert len(set(batch.first[0][batch.targets[0] >= 0].tolist())) > 1
    alone = [torch.from_numpy(ids[None, :-1].astype(np.int64)) for ids in documents[:3]]
    with torch.no_grad():
        together = model(torch.from_numpy(batch.tokens), torch.from_numpy(batch.first))[0]
        for ids in alone:
            expected = model(ids)[0]
            places = [
                i for i in range(121 - ids.shape[1]) if (batch.tokens[0, i : i + ids.shape[1]] == ids[0].numpy()).all()
            ]
            if places:
                found = together[places[0] : places[0] + ids.shape[1]]
                assert (found - expected).abs().mean() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    "changes", [{"n_heads": 3}, {"n_heads": 8, "n_kv_heads": 3}, {"hidden_size": 12, "n_heads": 4}]
)
def test_impossible_shapes_are_refused(changes):
    with pytest.raises(FormatError, match="width"):
        BitNetShape(512, **changes)
