"""Models with experts: the mathematics is the reference's, and a row's bits depend on nothing but its own sequence."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from pieces import read

import lowbit
from lowbit import FormatError, UnsupportedModelError
from lowbit import isa as instruction_sets
from lowbit._kernels.decoder import Batch
from lowbit._kernels.sequence import Sequence
from lowbit.errors import MemoryBudgetError
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading.load import build
from lowbit.reference import forward

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0", "I2_S")
SIZES = {
    "vocab_size": 300, "context_length": 200, "embedding_length": 256, "feed_forward_length": 256, "block_count": 2,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
    "expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 256,
}  # fmt: skip
SHARED = {"expert_shared_feed_forward_length": 256}
RECURRENT = {
    "block_count": 4, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 6,
    "ssm.inner_size": 96, "rope.dimension_count": 16, "full_attention_interval": 2,
}  # fmt: skip
SIGMOID = {
    "expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_group_count": 4,
    "expert_group_used_count": 2,
}  # fmt: skip
MODELS = {
    "softmax, normalised": ("qwen3moe", {}),
    "shared with a gate": ("qwen2moe", SHARED),
    "norm over the whole width": ("olmoe", {}),
    "sigmoid, groups, bias": ("qwen3moe", SIGMOID),
    "dense first": ("qwen3moe", {"leading_dense_block_count": 1}),
    "clamped": ("qwen3moe", {"swiglu_clamp_exp": 0.5}),
    "gpt-oss": ("gpt-oss", {"attention.sliding_window": 9, "block_count": 3}),
    "qwen35moe": ("qwen35moe", {**SHARED, **RECURRENT}),
    "qwen3next": ("qwen3next", {**SHARED, **RECURRENT}),
    "maple": ("maple", {"block_count": 5, "attention.sliding_window": 9, "rope.dimension_count": 32}),
}
IDS = np.random.default_rng(0).integers(0, 300, 70).astype(np.int32)


@pytest.fixture
def write(tmp_path):
    """Write a random model with experts; return the path. `change` may alter what tensors there are."""

    def write(model="softmax, normalised", kind="F32", keys=None, fused=False, change=None, name="experts.gguf"):
        architecture, more = MODELS[model]
        metadata = {**SIZES, "attention.layer_norm_rms_epsilon": 1e-5, **more, **(keys or {})}
        extra = ["x.exp_probs_b.bias"] if more is SIGMOID else []
        extra += ["x.ffn_gate_up_exps.weight"] if fused else []
        from lowbit.families import find_family

        full = {f"{architecture}.{key}": value for key, value in metadata.items() if value is not None}
        plan = find_family(architecture).plan(full, architecture, ["output.weight", *extra])
        rng = np.random.default_rng(3)
        tensors = {}
        for weight in plan.weights():
            values = rng.standard_normal(weight.shape).astype(np.float32)
            if weight.kind == "norm":
                values = 1 + 0.2 * values
            elif weight.kind in ("linear", "router"):
                values = (
                    np.sign(values) * (rng.random(weight.shape) < 0.7) if kind in ("TQ1_0", "TQ2_0", "I2_S") else values
                )
                values = (values * 1.2 / np.sqrt(weight.shape[-1])).astype(np.float32)
            elif weight.kind == "bias":
                values *= 0.1
            elif weight.role == "ssm_a":
                values = -np.abs(values)
            table = weight.kind in ("head", "embedding") and kind != "I2_S"
            tensors[weight.name] = (kind if table or weight.kind == "linear" else "F32", values)
        if change is not None:
            change(tensors)
        with GGUFWriter(tmp_path / name, architecture) as out:
            for key, value in full.items():
                out.add_metadata(key, value, "u32" if type(value) is int else None)
            for tensor, (stored, values) in tensors.items():
                out.add_tensor(tensor, stored, values)
        return tmp_path / name

    return write


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


def roles_of(path):
    with open_model(path) as file:
        return plan_of(file), {
            name.removesuffix(".weight").replace(".bias", "_bias"): dequantize(info.type, file.read(name), info.shape)
            for name, info in file.tensors.items()
        }


def smallest(path, **options):
    with pytest.raises(MemoryBudgetError) as caught:
        lowbit.load(path, max_ram="1MB", **options)
    return caught.value.smallest


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_the_reference(write, model, fused):
    path = write(model, fused=fused)
    plan, roles = roles_of(path)
    want = forward(plan, roles, IDS)
    got = lowbit.load(path, head="file", weights="file").logits(IDS)
    assert np.abs(got - want).max() <= 1e-4 * (want.max() - want.min())


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_same_on_every_set_for_any_threads_and_in_any_pieces(write, kind):
    path = write("shared with a gate", kind)
    want = lowbit.load(path, threads=1).logits(IDS)
    assert np.isfinite(want).all()
    before = instruction_sets.active()
    try:
        for threads in (1, 3):
            with open_model(path) as file:
                decoder, _ = build(file, threads, None)
            for name in instruction_sets.available():
                instruction_sets.use(name)
                cuts = (7, 1, 13, 1, 40, 8) if threads == 3 else (1,) * 7 + (63,)
                assert np.array_equal(bits(read(decoder, IDS, cuts)), bits(want)), (name, threads)
    finally:
        instruction_sets.use(before)


@pytest.mark.parametrize("model", MODELS)
def test_every_router_has_the_same_bits_everywhere(write, model):
    path = write(model, "Q8_0")
    model = lowbit.load(path, threads=1)
    want, before = model.logits(IDS), instruction_sets.active()
    try:
        for name in instruction_sets.available():
            instruction_sets.use(name)
            assert np.array_equal(bits(model.logits(IDS)), bits(want)), name
    finally:
        instruction_sets.use(before)
    assert np.array_equal(bits(read(model._decoder, IDS, (1,) * 70)), bits(want))


def test_rows_of_any_company_have_the_bits_that_they_have_alone(isa, write):
    model = lowbit.load(write("sigmoid, groups, bias", "TQ2_0"), threads=2)
    texts = [IDS, IDS[::-1].copy(), IDS[5:30], IDS[:9]]
    alone = [model.logits(text) for text in texts]
    decoder = model._decoder
    sequences = [Sequence(decoder.pool, text, 200, reuse=False) for text in texts]
    batch = Batch(decoder)
    for sequence in sequences:
        batch.add(sequence, sequence.pending, "every")
    decoder.step(batch)
    for i, want in enumerate(alone):
        assert np.array_equal(bits(decoder.logits[batch.place(i)]), bits(want))
    for sequence in sequences:
        sequence.close()


def test_a_known_beginning_batches_and_speculation_change_no_token(write):
    path = write("shared with a gate", "Q8_0")
    prompts = [IDS[:66].tolist(), [*IDS[:65].tolist(), 7], [5, 6, 7] * 9, IDS[20:30].tolist()]
    options = {"max_tokens": 24, "temperature": 0}
    alone = [lowbit.load(path).generate(prompt, **options).tokens for prompt in prompts]
    model = lowbit.load(path)
    for _ in range(2):  # the second time all beginnings are known
        assert [model.generate(prompt, **options).tokens for prompt in prompts] == alone
        assert [g.tokens for g in model.generate(prompts, **options)] == alone
        assert [model.generate(prompt, speculate=True, **options).tokens for prompt in prompts] == alone


@pytest.mark.measured
@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("shared with a gate", "TQ2_0"),
        ("dense first", "TQ1_0"),
        ("sigmoid, groups, bias", "Q8_0"),
        ("clamped", "F16"),
        ("gpt-oss", "Q8_0"),
        ("gpt-oss", "IQ4_NL"),
        ("qwen3next", "Q8_0"),
    ],
)
def test_paged_experts_give_the_bits_of_resident_ones(write, model, kind):
    path = write(model, kind, {"expert_count": 48, "block_count": 4 if kind.startswith("T") else 2})
    resident = lowbit.load(path)
    want = resident.logits(IDS)
    options = {"max_tokens": 12, "temperature": 0.7, "seed": 3}
    text = resident.generate([1, 5], **options).tokens
    for more, threads in ((1 << 20, 2), (3 << 19, 1)):
        paged = lowbit.load(path, max_ram=smallest(path) + more, threads=threads)
        assert np.array_equal(bits(paged.logits(IDS)), bits(want))
        assert paged.generate([1, 5], **options).tokens == text
        assert np.array_equal(bits(paged.logits(IDS)), bits(want))
        memory = paged.info()["memory"]
        assert memory["evictions"] > 0
        assert memory["peak_memory"] <= memory["cache_bytes"]
        assert len(memory["expert_hits"]) == len(paged._decoder.graph.experts)
        assert all(0 <= rate < 1 for rate in memory["expert_hits"])


@pytest.mark.measured
@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_few_paged_experts_give_the_bits_of_resident_ones(write, kind, top):
    """An only expert is read by every pass, like any other matrix."""
    sizes = {"expert_count": top, "expert_used_count": top, "block_count": 4, "expert_feed_forward_length": 1024}
    path = write(kind=kind, keys={**sizes, "feed_forward_length": 1024})
    want = lowbit.load(path).logits(IDS)
    for threads in (1, 2):
        paged = lowbit.load(path, max_ram=smallest(path), threads=threads)
        assert np.array_equal(bits(paged.logits(IDS)), bits(want))
        assert np.array_equal(bits(paged.logits(IDS[:1])), bits(want[:1]))
        assert paged.info()["memory"]["reads"] > 0


@pytest.mark.measured
def test_hits_that_are_read_amid_a_step_are_those_of_the_last_one(write):
    path = write(keys={"expert_count": 48, "block_count": 6})
    paged = lowbit.load(path, max_ram=smallest(path) + (1 << 20), threads=1)
    layers, done = paged._decoder.graph.experts, threading.Event()
    seen = [set() for _ in layers]

    def look():
        while not done.is_set():
            for layer, counts in zip(layers, seen):
                counts.add(layer.asked)

    for turn in range(4):
        reader = threading.Thread(target=look)
        reader.start()
        try:
            sequence = Sequence(paged._decoder.pool, (IDS + turn) % 300, 70, reuse=False)
            paged._decoder.read(sequence)
            sequence.close()
        finally:
            done.set()
            reader.join()
            done.clear()
    steps = 4 * -(-70 // paged._decoder.batch)
    assert max(map(len, seen)) <= 1 + steps
    assert all(layer.asked for layer in layers)


@pytest.mark.parametrize(("model", "kind"), [("shared with a gate", "TQ2_0"), ("dense first", "TQ1_0")])
def test_experts_with_five_weights_to_a_byte_give_the_same_bits(isa, write, model, kind):
    path = write(model, kind)
    dense = lowbit.load(path, pack="dense")
    assert np.array_equal(bits(dense.logits(IDS)), bits(lowbit.load(path).logits(IDS)))


BAD = {
    "no experts": ({"expert_count": 0}, FormatError, "expert_count"),
    "too many": ({"expert_count": 1 << 20}, FormatError, "expert_count"),
    "a text": ({"expert_count": "8"}, FormatError, "expert_count"),
    "missing": ({"expert_count": None}, FormatError, "expert_count"),
    "none used": ({"expert_used_count": 0}, FormatError, "expert_used_count"),
    "more used than there are": ({"expert_used_count": 9}, FormatError, "expert_used_count"),
    "no size": ({"expert_feed_forward_length": None}, FormatError, "expert_feed_forward_length"),
    "size 0": ({"expert_feed_forward_length": 0}, FormatError, "expert_feed_forward_length"),
    "half a row group": ({"expert_feed_forward_length": 24}, UnsupportedModelError, "multiples of 16"),
    "groups that do not divide": ({"expert_group_count": 3}, FormatError, "3 groups"),
    "groups of one": ({"expert_group_count": 8}, FormatError, "8 groups"),
    "more groups used than there are": (
        {"expert_group_count": 4, "expert_group_used_count": 5}, FormatError, "expert_group_used_count",
    ),
    "groups too few": ({"expert_group_count": 4, "expert_group_used_count": 1}, FormatError, "too few"),
    "gating of another kind": ({"expert_gating_func": 4}, UnsupportedModelError, "gating"),
    "groups of outputs": ({"expert_gating_func": 3, "expert_group_count": 4}, UnsupportedModelError, "in groups"),
    "gating below 0": ({"expert_gating_func": -1}, FormatError, "expert_gating_func"),
    "norm that is no truth value": ({"expert_weights_norm": 1.0}, FormatError, "expert_weights_norm"),
    "infinite scale": ({"expert_weights_scale": float("inf")}, FormatError, "expert_weights_scale"),
    "no number": ({"expert_weights_scale": float("nan")}, FormatError, "expert_weights_scale"),
    "dense layers beyond the last": ({"leading_dense_block_count": 3}, FormatError, "leading_dense_block_count"),
    "clamp below 0": ({"swiglu_clamp_exp": -1.0}, FormatError, "swiglu_clamp_exp"),
    "a shared expert too wide": ({"expert_shared_feed_forward_length": 1 << 30}, FormatError, "shared"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_keys_that_cannot_be_are_refused_by_name(write, tmp_path, bad):
    keys, error, words = BAD[bad]
    path = write()
    with open_model(path) as file:
        raw = {name: (info.type, file.read(name).copy(), info.shape) for name, info in file.tensors.items()}
        metadata = dict(file.metadata)
    with GGUFWriter(tmp_path / "bad.gguf", "qwen3moe") as out:
        changed = {**metadata, **{f"qwen3moe.{key}": value for key, value in keys.items()}}
        for key, value in changed.items():
            if value is not None and key != "general.architecture":
                out.add_metadata(key, value, ("u32" if value >= 0 else "i32") if type(value) is int else None)
        for name, (kind, values, shape) in raw.items():
            out.add_tensor(name, kind, values, shape)
    with pytest.raises(error, match=words) as caught:
        lowbit.load(tmp_path / "bad.gguf")
    assert str(caught.value).startswith(str(tmp_path / "bad.gguf"))


def lacks(name):
    return lambda tensors: tensors.pop(name)


def shaped(name, *shape):
    def change(tensors):
        tensors[name] = ("F32", np.ones(shape, np.float32))

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lacks("blk.1.ffn_gate_inp.weight"), FormatError), (lacks("blk.0.ffn_down_exps.weight"), FormatError),
        (shaped("blk.0.ffn_up_exps.weight", 7, 256, 256), FormatError),
        (shaped("blk.0.ffn_up_exps.weight", 8 * 256, 256), FormatError),
        (shaped("blk.0.ffn_up_exps.weight", 256, 8, 256), FormatError),
        (shaped("blk.0.ffn_gate_inp.weight", 9, 256), FormatError),
        (shaped("blk.0.ffn_gate_shexp.weight", 256, 256), UnsupportedModelError),
        (shaped("blk.0.exp_probs_b.bias", 7), FormatError), (shaped("blk.0.exp_probs_b.bias", 8), FormatError),
        (shaped("blk.0.ffn_gate_up_exps.weight", 8, 512, 256), (FormatError, UnsupportedModelError)),
    ],
)  # fmt: skip
def test_tensors_that_contradict_the_keys_are_refused(write, change, error):
    with pytest.raises(error):
        lowbit.load(write(change=change))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lacks("blk.1.attn_sinks.weight"), FormatError), (shaped("blk.1.attn_sinks.weight", 5), FormatError),
        (lacks("blk.0.ffn_gate_inp.bias"), FormatError), (shaped("blk.0.ffn_gate_inp.bias", 9), FormatError),
        (lacks("blk.2.ffn_up_exps.bias"), FormatError), (shaped("blk.2.ffn_up_exps.bias", 256, 8), FormatError),
        (shaped("blk.2.ffn_down_exps.bias", 256), FormatError), (lacks("blk.0.attn_output.bias"), FormatError),
        (shaped("blk.0.attn_output.bias", 64), FormatError),
        (shaped("blk.0.ffn_norm.weight", 256), UnsupportedModelError),
    ],
)  # fmt: skip
def test_biases_and_sinks_that_cannot_be_are_refused(write, change, error):
    with pytest.raises(error, match="blk"):
        lowbit.load(write("gpt-oss", change=change))


def test_a_sink_takes_weight_and_brings_nothing(write):
    """Far below all scores it is as if there were none, and far above them no value is seen."""

    def sinks(value):
        def change(tensors):
            for i in range(3):
                tensors[f"blk.{i}.attn_sinks.weight"] = ("F32", np.full(4, value, np.float32))
                tensors[f"blk.{i}.attn_output.bias"] = ("F32", np.zeros(256, np.float32))

        return lowbit.load(write("gpt-oss", change=change), weights="file").logits(IDS)

    def without_values(tensors):
        sinks_of_none(tensors)
        for i in range(3):
            tensors[f"blk.{i}.attn_output.weight"][1].fill(0)

    def sinks_of_none(tensors):
        for i in range(3):
            tensors[f"blk.{i}.attn_output.bias"] = ("F32", np.zeros(256, np.float32))

    nothing = lowbit.load(write("gpt-oss", change=without_values), weights="file").logits(IDS)
    assert np.array_equal(bits(sinks(1e4)), bits(nothing))
    assert not np.array_equal(sinks(0.0), sinks(-1e4))
    assert np.array_equal(bits(sinks(-1e4)), bits(sinks(-2e4)))


def test_a_router_that_is_no_float_is_refused(write):
    def change(tensors):
        tensors["blk.0.ffn_gate_inp.weight"] = ("Q8_0", tensors["blk.0.ffn_gate_inp.weight"][1])

    with pytest.raises(UnsupportedModelError, match="floats belong"):
        lowbit.load(write(change=change))


def test_where_the_window_is_there_is_rope_and_nowhere_else(write):
    plan, _ = roles_of(write("maple"))
    windows = [layer.mixer.window for layer in plan.layers]
    assert windows == [9, 9, 9, 0, 9]
    assert [layer.mixer.rope is not None for layer in plan.layers] == [bool(window) for window in windows]
    assert {layer.mixer.rope.dim for layer in plan.layers if layer.mixer.rope} == {32}
    assert plan.layers[0].feed_forward.clamp == 7.0


def test_files_of_the_authors_own_program_rotate_the_same_channels(write):
    usual, _ = roles_of(write("maple"))
    keys = {"rope.dimension_count": 0, "rope.dimension_count_swa": 32, "expert_weights_norm": True}
    assert roles_of(write("maple", keys=keys, name="own.gguf"))[0] == usual


def usual_error(got, want):
    """Error of a row of logits, as a part of their range; the median, since rounding makes some rows choose
    another expert."""
    return np.median(np.abs(got - want).max(1)) / (want.max() - want.min())


@pytest.mark.parametrize("model", ["shared with a gate", "maple"])
def test_a_converted_model_gives_the_same_logits_and_a_quantised_one_loads(write, tmp_path, model):
    from lowbit.convert import convert
    from lowbit.convert.requantize import quantize_model

    path = write(model, "F32")
    convert(path, tmp_path / "f16.gguf", "f16", head="f16")
    want = lowbit.load(path, head="file", weights="file").logits(IDS)
    got = lowbit.load(tmp_path / "f16.gguf", head="file", weights="file").logits(IDS)
    assert usual_error(got, want) <= 2e-2
    with open_model(tmp_path / "f16.gguf") as file:
        assert file.tensors["blk.0.ffn_gate_inp.weight"].type == "F32"
        assert file.tensors["blk.0.ffn_up_exps.weight"].shape == (8, 256, 256)
    quantize_model(path, tmp_path / "small.gguf", method="int8")
    got = lowbit.load(tmp_path / "small.gguf").logits(IDS)
    assert usual_error(got, want) <= 5e-2


def test_sparsity_is_refused(write):
    with pytest.raises(UnsupportedModelError, match="experts"):
        lowbit.load(write(), sparsity=0.5)


def test_info_of_the_file_is_that_of_the_model(write):
    from lowbit.loading.inspection import inspect_file

    path = write("shared with a gate", "TQ2_0")
    seen, info = inspect_file(path), lowbit.load(path).info()
    assert seen["weight_bytes"] == info["weight_bytes"]
    assert seen["scratch_bytes"] == pytest.approx(info["scratch_bytes"], rel=0.25)
    assert "3 of 8 experts" in str(seen["network"])
    assert info["parameters"] == seen["parameters"]


def test_traps_look_at_experts_where_nothing_else_is_ternary(write):
    def change(tensors):
        for name, (_, values) in list(tensors.items()):
            if "_exps" not in name:
                tensors[name] = ("F32", values)

    assert isinstance(lowbit.load(write(kind="TQ2_0", change=change)).info()["warnings"], list)


@pytest.mark.parametrize("model", ["softmax, normalised", "sigmoid, groups, bias"])
def test_of_experts_that_are_as_likely_the_first_are_chosen(write, model):
    def change(tensors):
        for name, (kind, values) in list(tensors.items()):
            if "ffn_gate_inp" in name or "exp_probs_b" in name:
                tensors[name] = (kind, np.zeros_like(values))

    def others_are_zero(tensors):
        change(tensors)
        for name, (kind, values) in list(tensors.items()):
            if "_down_exps" in name:
                tensors[name] = (kind, np.where(np.arange(8)[:, None, None] < 3, values, 0).astype(np.float32))

    all_of_them = lowbit.load(write(model, change=change)).logits(IDS)
    assert np.array_equal(bits(all_of_them), bits(lowbit.load(write(model, change=others_are_zero)).logits(IDS)))
