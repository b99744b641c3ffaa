"""A plan lists every weight of a model once, with the name, shape and purpose that files and loaders agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plans import make_plan

import lowbit
from lowbit.assets import EMBEDDED_MODEL
from lowbit.benchmark import SHAPES, RandomModel
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.plan import LINEARS, Linear

EVERYTHING = make_plan(
    "test", 40, 24, 20, 3, 4, 2, 8, 64, attn_sub_norm=True, ffn_sub_norm=True, qk_norm=True, attn_bias=True
)  # fmt: skip


def test_weights_are_listed_once_and_in_the_order_of_the_computation():
    plan = replace(EVERYTHING, rope_tensor=True)
    names = [weight.name for weight in plan.weights()]
    assert len(names) == len(set(names)) == len(plan.by_name) == 3 * 16 + 4
    assert names[0] == "token_embd.weight"
    assert names[1:17] == [
        "blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight",
        "blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias", "blk.0.attn_q_norm.weight",
        "blk.0.attn_k_norm.weight", "blk.0.attn_sub_norm.weight", "blk.0.attn_output.weight", "blk.0.ffn_norm.weight",
        "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_sub_norm.weight", "blk.0.ffn_down.weight",
    ]  # fmt: skip
    assert names[-3:] == ["output_norm.weight", "output.weight", "rope_freqs.weight"]
    assert [weight.layer for weight in plan.weights()] == [-1, *[0] * 16, *[1] * 16, *[2] * 16, -1, -1, -1]


def test_a_model_has_longropes_divisors_or_those_of_one_tensor():
    names = [weight.name for weight in replace(EVERYTHING, original_context=32, rope_tensor=True).rope_freqs]
    assert names == ["rope_factors_short.weight", "rope_factors_long.weight"]
    assert EVERYTHING.rope_freqs == ()


def test_linear_layers_have_the_inputs_and_outputs_of_their_weights():
    found = {linear.name: (linear.n_in, linear.n_out, len(linear.biases)) for linear in EVERYTHING.linears(1)}
    assert found == {"qkv": (24, 64, 3), "attn_output": (32, 24, 0), "gate_up": (24, 40, 0), "ffn_down": (20, 24, 0)}
    assert tuple(found) == LINEARS
    parts = [part for part in EVERYTHING.parts(1) if isinstance(part, Linear)]
    assert tuple(parts) == EVERYTHING.linears(1)


def test_a_tied_head_is_the_embedding_and_no_weight_of_its_own():
    tied = replace(EVERYTHING, tied_embeddings=True)
    assert tied.output == tied.token_embd
    assert set(EVERYTHING.by_name) - set(tied.by_name) == {"output.weight"}


def test_a_number_that_layers_do_not_share_is_not_given():
    first, *others = EVERYTHING.layers
    plan = replace(EVERYTHING, layers=(replace(first, feed_forward=replace(first.feed_forward, size=36)), *others))
    assert plan.linears(0)[-1].n_in == 36
    assert plan.linears(1)[-1].n_in == 20
    with pytest.raises(ValueError, match="differ"):
        plan.intermediate_size  # noqa: B018


def test_factors_of_the_file_reach_every_layer():
    plan = EVERYTHING.with_rope_factors((1.0, 2.0, 3.0, 4.0))
    assert {layer.mixer.rope.factors for layer in plan.layers} == {(1.0, 2.0, 3.0, 4.0)}
    assert plan.rope_factors == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("source", [EMBEDDED_MODEL, *SHAPES])
def test_a_file_has_the_tensors_of_its_plan(source):
    file = RandomModel(source) if source in SHAPES else open_model(source)
    assert {name: info.shape for name, info in file.tensors.items()} == {
        w.name: w.shape for w in plan_of(file).weights()
    }


def test_a_model_shows_its_plan():
    model = lowbit.load()
    assert isinstance(model.config, lowbit.ModelPlan)
    assert model.config.n_layers == len(model.config.layers) == model.info()["layers"]
