"""The Python API as somebody meets it who knows another one: it has what is asked for, and mistakes are named."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import pickle
import shutil
import weakref

import numpy as np
import pytest

import lowbit
from lowbit.assets import EMBEDDED_MODEL
from lowbit.sampling import Sampling, SamplingParams

PROMPT = "Once upon a time"
USER = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def model():
    return lowbit.load(threads=1)


def tokens(outs):
    return [out.tokens for out in outs]


# --- seeds, n, lists ---------------------------------------------------------------------------------------------


def test_a_generation_tells_the_seed_that_makes_it_again(model):
    first = model.generate(PROMPT, max_tokens=6, temperature=2.0)
    assert first.seed is not None
    assert first.seed < 2**53  # which every JSON parser keeps
    assert model.generate(PROMPT, max_tokens=6, temperature=2.0, seed=first.seed).tokens == first.tokens
    assert model.chat(USER, template="plain", max_tokens=2, seed=7).seed == 7
    with lowbit.Engine(model) as engine:
        assert engine.submit(PROMPT, max_tokens=2, seed=7).result().seed == 7


def test_n_texts_of_a_prompt_have_seeds_that_follow_one_another(model):
    outs = model.generate(PROMPT, n=3, max_tokens=6, temperature=2.0, seed=2**64 - 2)
    assert [out.seed for out in outs] == [2**64 - 2, 2**64 - 1, 0]
    assert len({tuple(out.tokens) for out in outs}) == 3
    for out in outs:
        assert model.generate(PROMPT, max_tokens=6, temperature=2.0, seed=out.seed).tokens == out.tokens
    assert len(model.generate(PROMPT, n=1, max_tokens=1)) == 1


def test_entries_of_a_list_differ_unless_told_otherwise(model):
    settings = {"max_tokens": 6, "temperature": 2.0}
    outs = model.generate([PROMPT] * 3, seed=5, **settings)
    assert [out.seed for out in outs] == [5, 6, 7]
    assert tokens(model.generate([PROMPT] * 3, seed=[5, 6, 7], **settings)) == tokens(outs)
    assert tokens(model.generate([PROMPT] * 2, seed=[5, 5], **settings)) == [outs[0].tokens] * 2
    assert len({out.seed for out in model.generate([PROMPT] * 3, **settings)}) == 3


def test_texts_of_several_prompts_come_prompt_by_prompt(model):
    outs = model.generate([PROMPT, "One day"], n=2, max_tokens=4, temperature=2.0, seed=[1, 2, 3, 4])
    assert [out.prompt_tokens for out in outs] == [outs[0].prompt_tokens] * 2 + [outs[2].prompt_tokens] * 2
    assert [out.seed for out in outs] == [1, 2, 3, 4]
    assert outs[3].tokens == model.generate("One day", max_tokens=4, temperature=2.0, seed=4).tokens


@pytest.mark.parametrize("seeds", [[4, 9], (4, 9), np.array([4, 9])], ids=["list", "tuple", "array"])
def test_a_list_of_seeds_makes_as_many_texts(model, seeds):
    assert [out.seed for out in model.generate(PROMPT, seed=seeds, max_tokens=1)] == [4, 9]
    with pytest.raises(ValueError, match="seed has 2 entries for 3 texts"):
        model.generate([PROMPT] * 3, seed=seeds)


def test_without_a_limit_a_text_ends_with_the_model_or_the_context():
    with lowbit.load(threads=1, context=20) as model:
        out = model.generate(PROMPT, max_tokens=None, temperature=0)
        assert out.finish_reason == "context"
        assert model.generate(PROMPT, max_tokens=10**6, temperature=0).tokens == out.tokens
        with lowbit.Engine(model) as engine:
            assert engine.submit(PROMPT, max_tokens=None, temperature=0).result().tokens == out.tokens


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, b"Once", 3, 1.5, {"a": 1}, [None], [b"Once"], [1.5], [[1, 2], 3.5]], ids=repr)
def test_a_wrong_prompt_names_the_argument_and_what_it_may_be(model, prompt):
    for use in (model.generate, model.embed):
        with pytest.raises(TypeError, match=r"(prompt|texts|token_ids).*must be.*list of int"):
            use(prompt)


@pytest.mark.parametrize("given", [None, b"Once", 3, 1.5], ids=repr)
def test_one_text_is_asked_for_by_what_it_may_be(model, given):
    for use in (model.stream, model.logits, lowbit.Engine(model).submit):
        with pytest.raises(TypeError, match=r"(prompt|token_ids) must be.* a list of int"):
            use(given)
    with pytest.raises(TypeError, match="text must be a str"):
        model.perplexity(given)
    if given != b"Once":  # which holds numbers
        with pytest.raises(TypeError, match="ids must be token ids"):
            model.tokenizer.decode(given)


def test_messages_that_are_none_show_what_they_look_like(model):
    for given in ("hi", None, ["hi"], [None], {"role": "user", "content": "hi"}, 3):
        with pytest.raises(TypeError, match=r'must be.*a list of dicts such as \{"role": "user"'):
            model.chat(given, template="plain")
    with pytest.raises(TypeError, match=r"messages is for Model\.chat"):
        model.generate(USER)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_new_tokens", "max_tokens"), ("n_predict", "max_tokens"), ("max_tokenz", "max_tokens"),
     ("repetition_penalty", "repeat_penalty"), ("temp", "temperature"), ("stop_sequences", "stop"),
     ("json_shema", "json_schema"), ("num_return_sequences", "n")],
)  # fmt: skip
def test_an_unknown_argument_says_which_was_meant(model, name, meant):
    with pytest.raises(TypeError, match=f"there is no argument '{name}'; did you mean '{meant}'"):
        model.generate(PROMPT, **{name: 1})
    for use in (model.stream, lowbit.Engine(model).submit):
        with pytest.raises(TypeError, match=name):
            use(PROMPT, **{name: 1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"temperature": "hot"}, "temperature must be between"), ({"stop": 5}, "stop must hold"),
     ({"stop": [b"x"]}, "stop must hold"), ({"logit_bias": 3}, "logit_bias maps token ids"),
     ({"max_tokens": "9"}, "max_tokens must be a whole number"), ({"n": 0}, "n must be a whole number"),
     ({"n": True}, "n must be a whole number"), ({"seed": -1}, "seed must be a whole number"),
     ({"seed": [1, 2**64]}, "seed must be a whole number"), ({"logprobs": "yes"}, "logprobs must be")],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_value_errors_that_name_them(model, settings, words):
    with pytest.raises(ValueError, match=words):
        model.generate(PROMPT, **settings)


@pytest.mark.parametrize("seed", ["1", b"1", 1.5, ["x"], [1.5], {1: 2}], ids=repr)
def test_a_seed_of_another_type_says_what_it_may_be(model, seed):
    with pytest.raises(TypeError, match="seed must be a whole number, a list of them, or None"):
        model.generate(PROMPT, seed=seed)


def test_a_missing_file_is_pythons_error_and_lowbits(tmp_path):
    path = tmp_path / "none.gguf"
    for use in (lowbit.load, lowbit.load_tokenizer):
        with pytest.raises(FileNotFoundError) as caught:
            use(path)
        error = caught.value
        assert isinstance(error, lowbit.LowbitError)
        assert isinstance(error, lowbit.FormatError)
        assert (str(error), error.filename, error.errno) == (f"{path}: no such file", str(path), 2)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(TypeError, match="path must be"):
        lowbit.load(3)


# --- lifetime ----------------------------------------------------------------------------------------------------


@pytest.fixture
def settled(tmp_path):
    """A file that was not written just now."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(EMBEDDED_MODEL, path)
    os.utime(path, (1e9, 1e9))
    return path


def test_a_closed_model_gives_its_memory_back_and_says_that_it_is_closed(settled):
    with lowbit.load(settled, threads=1) as model:
        weights = weakref.ref(model._decoder.weights)
        pieces = model.stream(PROMPT, max_tokens=500)
        next(pieces)
    with pytest.raises(lowbit.LowbitError):
        list(pieces)
    del pieces
    gc.collect()
    assert weights() is None
    for use in (lambda: model.generate(PROMPT), lambda: next(model.stream(PROMPT)), model.info,
                lambda: model.embed(PROMPT), lambda: model.chat(USER, template="plain"),
                lambda: lowbit.Engine(model)):  # fmt: skip
        with pytest.raises(lowbit.LowbitError, match=r"model\.gguf: the model is closed"):
            use()
    assert model.tokenizer.encode(PROMPT)
    model.close()


def test_numbers_of_numpy_are_as_good_as_pythons(model):
    want = model.generate("Once", n=2, max_tokens=3, temperature=0.5, top_k=5, seed=1, logit_bias={5: 1.5}, logprobs=2)
    got = model.generate(
        "Once", n=np.int64(2), max_tokens=np.uint8(3), temperature=np.float32(0.5), top_k=np.array(5), seed=np.int32(1),
        logit_bias={np.int64(5): np.float16(1.5)}, logprobs=np.int16(2),
    )  # fmt: skip
    assert [(one.tokens, one.logprobs) for one in got] == [(one.tokens, one.logprobs) for one in want]
    assert model.perplexity("Once upon", stride=np.int64(5)) == model.perplexity("Once upon", stride=5)
    assert lowbit.load(context=np.int64(100), threads=np.int8(1), max_ram=np.int64(10**8)).context == 100
    with lowbit.Engine(model, max_sequences=np.int64(2), batch=np.int64(8), kv_ram=np.int64(10**8)) as engine:
        assert engine.submit("Once", max_tokens=3, temperature=0, seed=np.uint64(2**64 - 1)).result().tokens
    for wrong in (np.float64(2), np.bool_(True), np.array([2])):
        with pytest.raises(ValueError, match="max_tokens must be a whole number"):
            model.generate("Once", max_tokens=wrong)
    with pytest.raises(ValueError, match="temperature must be between"):
        model.generate("Once", temperature=np.float32("nan"))


def test_what_is_no_unicode_is_scored_as_the_sign_that_stands_for_it(model):
    assert model.perplexity("a \ud800 b") == model.perplexity("a \ufffd b")


def test_a_stream_cannot_be_copied_for_who_drops_a_copy_would_cancel_it(model):
    with lowbit.Engine(model) as engine:
        stream = engine.submit("Once", max_tokens=3, seed=1)
        for refused in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a stream cannot be pickled or copied"):
                refused(stream)
        assert stream.result().tokens


def test_a_size_that_is_wrong_names_its_setting(model):
    with pytest.raises(ValueError, match="kv_ram must be a size"):
        lowbit.Engine(model, kv_ram="much")


def test_a_model_cannot_be_pickled_and_says_what_to_do(model):
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="load it in each process"):
            use(model)
    with pytest.raises(TypeError, match="one in each process"):
        pickle.dumps(lowbit.Engine(model))


def test_models_of_one_file_share_their_weights_and_differ_in_the_rest(settled):
    first, second = lowbit.load(settled, threads=1), lowbit.load(settled, threads=2, context=64, kv_type="int8")
    assert first._decoder.weights is second._decoder.weights
    alone = first.generate(PROMPT, max_tokens=8, seed=1).tokens
    first.close()
    assert lowbit.load(settled, kv_type="f32").generate(PROMPT, max_tokens=8, seed=1).tokens == alone
    assert second.context == 64


def test_weights_are_shared_by_nothing_but_the_same(settled):
    model = lowbit.load(settled, threads=1)
    held = model._decoder.weights
    for options in ({"sparsity": 0.5}, {"head": "file"}, {"weights": "file"}, {"max_ram": "60MB"}):
        assert lowbit.load(settled, threads=1, **options)._decoder.weights is not held
    other = settled.with_name("other.gguf")
    shutil.copyfile(settled, other)
    os.replace(other, settled)  # another file of this name
    assert lowbit.load(settled, threads=1)._decoder.weights is not held
    kept = weakref.ref(held)
    del held, model
    gc.collect()
    assert kept() is None


def test_a_file_that_was_written_just_now_is_read_again(settled):
    os.utime(settled)
    assert lowbit.load(settled)._decoder.weights is not lowbit.load(settled)._decoder.weights


# --- types -------------------------------------------------------------------------------------------------------


def test_settings_by_name_are_those_of_sampling_params():
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert Sampling.__optional_keys__ == names
    assert not Sampling.__required_keys__
