"""LongRoPE: which factors a model takes is settled when it is loaded, and factors that cannot be are refused."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest
from pieces import loaded_in_little

import lowbit
from lowbit import FormatError, UnsupportedModelError
from lowbit.cli import main
from lowbit.convert import convert
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter

ORIGINAL, CONTEXT = 72, 128
EXACT = {"kv_type": "f32", "head": "file", "weights": "file", "threads": 1}
IDS = np.random.default_rng(3).integers(0, checkpoints.VOCAB, 100).tolist()
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.write("phi3", tmp_path_factory.mktemp("phi3") / "phi3")


@pytest.fixture(scope="module")
def gguf(folder):
    convert(folder, folder.parent / "model.gguf", "f16", head="f16")
    return folder.parent / "model.gguf"


def which(model):
    """The factors that a model computes with, by their name."""
    scaling = checkpoints.config_of("phi3")["rope_scaling"]
    return [k for k in ("short_factor", "long_factor") if np.allclose(scaling[k], model.config.rope_factors)]


def rewritten(source, target, keys=None, tensors=None):
    """A GGUF file with other keys and tensors; None takes one away."""
    with open_model(source) as file, GGUFWriter(target, file.architecture) as out:
        for key, value in {**file.metadata, **(keys or {})}.items():
            if key != "general.architecture" and value is not None:
                out.add_metadata(key, value, None if key in (keys or {}) else file.metadata_types[key])
        for name, info in file.tensors.items():
            if tensors is None or name not in tensors:
                out.add_tensor(name, info.type, file.read(name).copy(), info.shape)
        for name, values in (tensors or {}).items():
            if values is not None:
                out.add_tensor(name, "F32", np.float32(values).tobytes(), np.shape(values))
    return target


@pytest.mark.parametrize(
    ("context", "factors"),
    [(1, "short"), (ORIGINAL, "short"), (ORIGINAL + 1, "long"), (CONTEXT, "long"), (None, "long")],
)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_context_chooses_the_factors(request, kind, context, factors):
    model = lowbit.load(request.getfixturevalue(kind), context=context, threads=1)
    assert which(model) == [f"{factors}_factor"]
    assert model.info()["longrope"] == {"factors": factors, "original_context": ORIGINAL}


def test_a_text_does_not_depend_on_how_long_it_becomes(folder):
    model = lowbit.load(folder, **EXACT)
    assert np.array_equal(model.logits(IDS)[:20], model.logits(IDS[:20]))
    short = lowbit.load(folder, **EXACT, context=ORIGINAL)
    assert np.abs(short.logits(IDS[:20]) - model.logits(IDS[:20])).max() > 0.1


def test_a_limit_of_memory_does_not_choose(gguf):
    model = loaded_in_little(gguf)
    assert which(model) == ["long_factor"]


def test_what_is_kept_on_disk_is_of_the_same_factors(folder, tmp_path):
    options = {"threads": 1, "kv_disk": tmp_path}
    prompt, fresh = IDS[:70], {}
    for context in (ORIGINAL, None):
        model = lowbit.load(folder, threads=1, context=context)
        fresh[context] = model.generate(prompt, max_tokens=2, temperature=0).tokens
    for context in (None, ORIGINAL, None):
        out = lowbit.load(folder, context=context, **options).generate(prompt, max_tokens=2, temperature=0)
        assert out.tokens == fresh[context]


def test_info_tells_which(gguf, capsys):
    assert main(["info", str(gguf)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    at = lines.index("longrope")
    assert lines[at + 1 : at + 3] == ["factors long", f"original context {ORIGINAL}"]
    assert main(["info", "--json", str(gguf)]) == 0
    assert json.loads(capsys.readouterr().out)["longrope"]["factors"] == "long"


def test_a_file_has_the_tensors_and_keys_of_llama_cpp(gguf):
    config = checkpoints.config_of("phi3")
    with open_model(gguf) as file:
        for name, key in ((SHORT, "short_factor"), (LONG, "long_factor")):
            assert file.tensors[name].type == "F32"
            assert np.array_equal(file.read(name).view("<f4"), np.float32(config["rope_scaling"][key]))
        kept = {key.partition(".rope.")[2]: value for key, value in file.metadata.items() if ".rope." in key}
    assert kept["scaling.original_context_length"] == ORIGINAL
    assert kept["scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(CONTEXT / ORIGINAL) / np.log(ORIGINAL)))
    assert (kept["scaling.type"], kept["dimension_count"]) == ("longrope", 24)


def test_phi_3_as_llama_cpp_writes_it_has_no_type(gguf, tmp_path):
    bare = rewritten(gguf, tmp_path / "m.gguf", {"phi3.rope.scaling.type": None})
    assert np.array_equal(lowbit.load(bare, **EXACT).logits(IDS), lowbit.load(gguf, **EXACT).logits(IDS))


def test_without_an_original_context_it_is_the_whole(gguf, tmp_path):
    silent = rewritten(gguf, tmp_path / "m.gguf", {"phi3.rope.scaling.original_context_length": None})
    assert which(lowbit.load(silent, threads=1)) == ["short_factor"]


def test_the_length_of_queries_and_keys_is_that_of_the_file(gguf, tmp_path):
    model = lowbit.load(rewritten(gguf, tmp_path / "m.gguf", {"phi3.rope.scaling.attn_factor": 1.5}), threads=1)
    assert model.config.rope_scale == 1.5


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({SHORT: None}, "rope_factors_short.weight is missing"), ({LONG: None}, "rope_factors_long.weight is missing"),
        ({LONG: np.ones(11)}, "rope_factors_long.weight has shape"), ({SHORT: np.ones((2, 6))}, "has shape"),
        ({LONG: [1] * 11 + [0]}, "rope_factors_long.weight has a RoPE factor that is not positive"),
        ({SHORT: [-1] * 12}, "rope_factors_short.weight has a RoPE factor that is not positive"),
        ({SHORT: [np.nan] * 12}, "rope_factors_short.weight has values that are not finite"),
        ({LONG: [np.inf] * 12}, "rope_factors_long.weight has values that are not finite"),
        ({"rope_freqs.weight": np.ones(12)}, "rope_freqs.weight is not known"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_are_named(gguf, tmp_path, tensors, words):
    path = rewritten(gguf, tmp_path / "m.gguf", tensors=tensors)
    for context in (None, ORIGINAL):  # whichever of them is used
        with pytest.raises((FormatError, UnsupportedModelError), match=words) as caught:
            lowbit.load(path, context=context)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"scaling.type": "linear"}, "is not known"), ({"scaling.type": 3}, "not supported"),
        ({"scaling.factor": 2.0}, "factor of all frequencies"), ({"scaling.factor": -1.0}, "scaling.factor"),
        ({"scaling.original_context_length": 0}, "original_context_length"),
        ({"scaling.original_context_length": 7.5}, "original_context_length"),
        ({"scaling.attn_factor": 0.0}, "attn_factor"), ({"scaling.attn_factor": float("nan")}, "attn_factor"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_are_named(gguf, tmp_path, keys, words):
    path = rewritten(gguf, tmp_path / "m.gguf", {f"phi3.rope.{key}": value for key, value in keys.items()})
    with pytest.raises((FormatError, UnsupportedModelError), match=words) as caught:
        lowbit.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"short_factor": None}, "has no short_factor"), ({"long_factor": None}, "has no long_factor"),
        ({"long_factor": [1.0] * 11}, "long_factor of 11 numbers, not 12"), ({"long_factor": []}, "of 0 numbers"),
        ({"short_factor": [1.0] * 11 + [0]}, "short_factor"), ({"short_factor": [-1.0] * 12}, "short_factor"),
        ({"long_factor": ["1"] * 12}, "long_factor"), ({"long_factor": 2.0}, "long_factor"),
        ({"long_factor": [True] * 12}, "long_factor"), ({"long_factor": [1e999] * 12}, "Infinity"),
        ({"long_factor": [10**400] * 12}, "long_factor"), ({"long_factor": [float("nan")] * 12}, "NaN"),
        ({"attention_factor": 0}, "attention_factor"), ({"factor": -1}, "factor"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_named(tmp_path, changes, words):
    folder = checkpoints.write("phi3", tmp_path / "phi3")
    config = checkpoints.config_of("phi3")
    config["rope_scaling"] = {**config["rope_scaling"], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=words) as caught:
        lowbit.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("original", [0, 1, "4096", 2**40])
def test_an_original_context_that_cannot_be_is_named(tmp_path, original):
    folder = checkpoints.write("phi3", tmp_path / "phi3")
    changed = {**checkpoints.config_of("phi3"), "original_max_position_embeddings": original}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(FormatError, match="original_max_position_embeddings"):
        lowbit.load(folder)


def test_phi_3_without_scaling_or_window_has_neither(tmp_path):
    folder = checkpoints.write("phi3", tmp_path / "phi3")
    left_out = ("rope_scaling", "sliding_window")
    config = {key: value for key, value in checkpoints.config_of("phi3").items() if key not in left_out}
    (folder / "config.json").write_text(json.dumps(config))
    model = lowbit.load(folder, threads=1)
    assert (model.config.rope_factors, model.config.layers[0].mixer.window) == ((), 0)
    assert "longrope" not in model.info()
