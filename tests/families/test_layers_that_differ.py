"""Windows, layers without RoPE, norms after, factors, recurrent layers: the same bits however the tokens come."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import rotated
from pieces import loaded_in_little, logits_on_every_set, read

import lowbit
from lowbit import reference
from lowbit._kernels.sequence import Sequence
from lowbit.convert import convert
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.reference import TernaryLinear, quantize_weights_absmean

EXACTLY = ["mistral", "smollm3", "hunyuan", "minicpm", "gemma3", "qwen3_embedding", "gemma3_embedding", "qwen35",
           "deepseek_v2_lite", "deepseek_v2", "deepseek_v3", "qwen35moe", "qwen3next", "gpt_oss",
           "phi3", "minicpm4_long", "rotated"]  # fmt: skip
NAMES = [*EXACTLY, "bonsai", "bonsai_tied"]
IDS = np.random.default_rng(6).integers(0, checkpoints.VOCAB, 100).astype(np.int32)
EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layers")
    paths = {name: root / name for name in NAMES}
    for name in EXACTLY[:-1]:
        checkpoints.write(name, paths[name])
    rotated.fold(paths["qwen35"], paths["rotated"], 16)
    rotated.bonsai(paths["bonsai"], "PQ2_0")
    rotated.bonsai(paths["bonsai_tied"], "PTQ1_0", tied=True)
    return paths


@pytest.mark.parametrize("name", EXACTLY)
def test_the_reference_computes_the_same(folders, name):
    model = lowbit.load(folders[name], **EXACT)
    plan, weights = model.config, {}
    with open_model(folders[name]) as file:
        for weight in plan.weights():
            info = file.tensors[weight.name]
            values = dequantize(info.type, file.read(weight.name), info.shape)
            role = weight.name.removesuffix(".weight").replace(".bias", "_bias")
            if plan.bit_linear and weight.kind == "linear":
                values = TernaryLinear(*quantize_weights_absmean(values))
            weights[role] = values
    expected = reference.forward(plan, weights, IDS)
    got = model.logits(IDS)
    # with int8 activations, a value at a half can be rounded either way
    worst = np.abs(got - expected).max(1) / (expected.max() - expected.min())
    assert np.median(worst) <= 1e-5
    assert worst.max() <= (1e-2 if plan.bit_linear else 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set_and_thread_count_gives_the_same_bits(folders, name):
    logits_on_every_set(folders[name], IDS, **EXACT)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_gives_the_same_bits_in_any_pieces(folders, name, kv_type):
    decoder = lowbit.load(folders[name], **{**EXACT, "kv_type": kv_type})._decoder
    want = read(decoder, IDS, (100,), publish=True)
    assert np.isfinite(want).all()
    for cuts in ((1,) * 100, (64, 36), (63, 1, 1, 35), (7, 1, 13, 60, 19)):
        assert np.array_equal(read(decoder, IDS, cuts, publish=True), want), cuts


@pytest.mark.parametrize("name", NAMES)
def test_a_text_in_a_batch_is_the_text_alone(folders, name):
    model = lowbit.load(folders[name], **EXACT)
    prompts = [IDS[i : i + n].tolist() for i, n in ((0, 5), (3, 70), (20, 1), (9, 33))]
    options = {"max_tokens": 50, "temperature": 0.8, "seed": 4}
    alone = [lowbit.load(folders[name], **EXACT).generate(prompt, **options).tokens for prompt in prompts]
    assert [out.tokens for out in model.generate(prompts, **{**options, "seed": [4] * 4})] == alone


@pytest.mark.parametrize("name", NAMES)
def test_a_known_beginning_changes_no_bit(folders, name):
    model = lowbit.load(folders[name], **EXACT)
    start, options = IDS[:90].tolist(), {"max_tokens": 8, "temperature": 0}
    model.generate(start, **options)
    for prompt in (start, [*start, 7, 8], [*start[:70], 5]):
        fresh = lowbit.load(folders[name], **EXACT).generate(prompt, **options)
        again = model.generate(prompt, **options)
        assert again.timings.reused_tokens >= 64
        assert again.tokens == fresh.tokens
        decoder = model._decoder
        sequence = Sequence(decoder.pool, np.array(prompt, np.int32), 120)
        assert sequence.reused >= 64
        assert np.array_equal(
            decoder.read(sequence)[0], read(decoder, np.array(prompt, np.int32), (50, 50), publish=True)[-1]
        )
        sequence.close()


@pytest.mark.parametrize("name", NAMES)
def test_proposed_tokens_change_no_text(folders, name):
    prompt = (IDS[:12].tolist() * 5)[:55]
    plain = lowbit.load(folders[name], **EXACT).generate(prompt, max_tokens=60, temperature=0)
    model = lowbit.load(folders[name], **EXACT)
    assert model.generate(prompt, max_tokens=60, temperature=0, speculate=True).tokens == plain.tokens


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_stay_in_the_file_give_the_same_bits(folders, name, tmp_path):
    path = tmp_path / "model.gguf"
    convert(folders[name], path, "f16", head="f16")
    paged = loaded_in_little(path)
    assert np.array_equal(paged.logits(IDS), lowbit.load(path, threads=1).logits(IDS))


def test_an_embedding_model_gives_vectors_of_length_1_as_it_was_made_for(folders):
    model = lowbit.load(folders["qwen3_embedding"], **EXACT)
    texts = [IDS[:9].tolist(), IDS[5:40].tolist()]
    assert model.config.pooling == "last"
    last = model.embed(texts, pooling="last")
    expected = last / np.linalg.norm(last.astype(np.float64), axis=1, keepdims=True)
    assert np.abs(model.embed(texts) - expected).max() <= 1e-7
    first = model.embed(texts, pooling="first")
    assert np.array_equal(first, model.embed([text[:1] for text in texts], pooling="last"))


@pytest.mark.parametrize(("number", "pooling"), [(0, None), (1, "mean"), (2, "first"), (3, "last")])
def test_the_file_says_how_a_vector_is_made(folders, number, pooling):
    with open_model(folders["hunyuan"]) as file:
        file.metadata = {**file.metadata, "hunyuan-dense.pooling_type": number}
        assert plan_of(file).pooling == pooling
