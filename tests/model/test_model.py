"""The model as programs use it: texts, streams, stops, limits, threads and forks."""

from __future__ import annotations

import os
import select
import signal
import threading

import numpy as np
import pytest

import lowbit
from lowbit import ContextLengthError

INFO_KEYS = {
    "path", "format", "family", "name", "parameters", "types", "vocab_size", "context_length", "layers", "hidden_size",
    "file_bytes", "weight_bytes", "kv_bytes_per_token", "threads", "isa",
}  # fmt: skip


def streamed(model, prompt, **sampling):
    """Pieces of a stream, and what it returns at its end."""
    pieces = []
    stream = model.stream(prompt, **sampling)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


# --- texts ---


def test_a_text_ends_where_the_model_ends_it(scripted):
    out = scripted("bcd").generate("a", temperature=0)
    assert (out.text, out.finish_reason, len(out.tokens)) == ("bcd", "stop", 3)
    assert out.prompt_tokens == 3  # BOS, space, a


def test_a_text_may_be_empty(scripted):
    out = scripted("").generate("a", temperature=0)
    assert (out.text, out.finish_reason, out.tokens) == ("", "stop", [])
    assert streamed(scripted(""), "a")[0] == []


def test_begin_of_text_ends_a_text_too(scripted):
    out = scripted("bc", loop="<s>").generate("a", temperature=0)
    assert (out.text, out.finish_reason) == ("bc", "stop")


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 34, 50])
def test_max_tokens_is_a_limit(scripted, n):
    out = scripted("bc", loop="a").generate("a", temperature=0, max_tokens=n)
    assert out.text == ("bca" * 20)[:n]
    assert (len(out.tokens), out.finish_reason) == (n, "length")


def test_a_full_context_ends_a_text(scripted):
    out = scripted("bc", loop="a", context=20).generate("a", temperature=0, max_tokens=100)
    assert out.finish_reason == "context"
    assert len(out.tokens) == 20 - 3 + 1  # the last token need not be stored


def test_token_ids_and_text_are_alike(scripted):
    model = scripted("bcd")
    ids = model.tokenizer.encode("a")
    for prompt in (ids, tuple(ids), np.array(ids)):
        assert model.generate(prompt, temperature=0).tokens == model.generate("a", temperature=0).tokens


def test_token_ids_are_taken_as_they_are(scripted):
    model = scripted("bcd")
    assert model.generate([model.tokenizer.encode("b")[-1]], temperature=0).text == "cd"


def test_an_empty_prompt_begins_a_text(embedded):
    bos = embedded.tokenizer.bos_id
    want = embedded.generate([bos], temperature=0, max_tokens=5)
    assert want.prompt_tokens == 1
    assert embedded.generate("", temperature=0, max_tokens=5).tokens == want.tokens


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_outside_the_vocabulary_are_refused(embedded, token):
    for use in (lambda: embedded.logits([1, token]), lambda: embedded.generate([1, token])):
        with pytest.raises(ValueError, match=str(token)):
            use()


def test_too_long_prompts_are_refused_before_anything_runs(scripted):
    model = scripted("bc", loop="a", context=20)
    assert len(model.generate([1] * 20, temperature=0, max_tokens=3).tokens) == 1
    for use in (
        lambda: model.generate([1] * 21),
        lambda: model.stream([1] * 21),  # before the first piece is asked for
        lambda: model.logits([1] * 21),
    ):
        with pytest.raises(ContextLengthError, match="20"):
            use()


def test_settings_are_checked_before_anything_runs(embedded):
    for use in (embedded.generate, embedded.stream):
        with pytest.raises(ValueError, match="temperature"):
            use("a", temperature=-1)
        with pytest.raises(TypeError, match="temprature"):
            use("a", temprature=1)


def test_empty_texts_have_no_score(embedded):
    with pytest.raises(ValueError, match="empty"):
        embedded.perplexity("")
    with pytest.raises(ValueError, match="at least one token"):
        embedded.logits([])


# --- streams ---


@pytest.mark.parametrize("n", [0, 1, 33, 70])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_stream_gives_the_text_of_generate(embedded, n, seed):
    settings = {"max_tokens": n, "seed": seed, "temperature": 60.0, "top_k": 0, "repeat_penalty": 1.1, "min_p": 0.01}
    whole = embedded.generate("the", **settings)
    pieces, end = streamed(embedded, "the", **settings)
    assert "".join(pieces) == whole.text == end.text
    assert (end.tokens, end.finish_reason) == (whole.tokens, whole.finish_reason)
    assert all(pieces)


def test_pieces_are_whole_characters(scripted):
    pieces, end = streamed(scripted("bé日c", loop="a"), "a", temperature=0, max_tokens=8)
    assert pieces == ["b", "é", "日", "c", "a"]
    assert end.text == "bé日ca"


def test_unfinished_characters_are_replaced_at_the_end(scripted):
    pieces, end = streamed(scripted("b日"), "a", temperature=0, max_tokens=3)
    assert end.text == "".join(pieces) == "b\ufffd\ufffd"
    assert scripted("b日").generate("a", temperature=0, max_tokens=3).text == end.text


def test_a_stream_that_is_left_does_not_block_the_model(embedded):
    stream = embedded.stream("a", max_tokens=50, seed=1, top_k=0, temperature=2.0)
    next(stream)
    stream.close()
    assert len(embedded.generate("a", max_tokens=1).tokens) <= 1


# --- stop strings ---


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("d", "bc"),
        ("b", ""),
        ("cd", "b"),
        ("bcdefg", ""),
        ("fgx", "bcdefghi"),  # begins, but never ends
        (("gh", "ef"), "bcd"),
        (("efx", "fg"), "bcde"),
        (("cdef", "de"), "bc"),  # the first to be completed
        ("i", "bcdefgh"),
        ("zzz", "bcdefghi"),
    ],
    ids=str,
)
def test_a_stop_string_ends_the_text_and_is_no_part_of_it(scripted, stop, text):
    model = scripted("bcdefghi")
    out = model.generate("a", temperature=0, stop=stop)
    pieces, end = streamed(model, "a", temperature=0, stop=stop)
    assert out.text == text == "".join(pieces) == end.text
    assert out.finish_reason == end.finish_reason == "stop"
    assert out.tokens == end.tokens


def test_what_may_become_a_stop_string_is_held_back(scripted):
    pieces, _ = streamed(scripted("bcdefghi"), "a", temperature=0, stop=("cde", "fgx"))
    assert pieces == ["b"]
    pieces, _ = streamed(scripted("bcdefghi"), "a", temperature=0, stop="fgx")
    assert pieces == ["b", "c", "d", "e", "fgh", "i"]


def test_a_stop_string_may_span_characters_of_several_tokens(scripted):
    out = scripted("bé日c").generate("a", temperature=0, stop="é日")
    assert (out.text, out.finish_reason) == ("b", "stop")


def test_text_that_was_held_back_comes_at_the_limit(scripted):
    pieces, end = streamed(scripted("bcdef"), "a", temperature=0, stop="cdx", max_tokens=3)
    assert (pieces, end.text, end.finish_reason) == (["b", "cd"], "bcd", "length")


def test_a_stop_string_in_the_prompt_does_not_count(scripted):
    assert scripted("bcd").generate("a", temperature=0, stop="ab").text == "bcd"


def test_a_late_stop_string_is_cut_at_the_same_place(scripted):
    model = scripted("bc", loop="a", context=200)
    for n in (30, 31, 32, 33, 34, 64, 65):  # around the tokens that are made at a time
        text = ("bca" * 70)[:n]
        out = model.generate(model.tokenizer.encode("a"), temperature=0, max_tokens=150, stop=text)
        assert (out.text, out.finish_reason, len(out.tokens)) == ("", "stop", n)


# --- several texts, known beginnings, proposals: none of them changes a text ---

RANDOM = {"vocab": 300, "hidden": 64, "wide": 128, "keys": {"context_length": 200}}
PROMPTS = [[1, 2, 3], [7], list(range(40)), [1, 2, 3], [250, 3, 250, 3]]
SETTINGS = [{"temperature": 0}, {"temperature": 2.0, "seed": 3}, {"temperature": 8.0, "seed": 4, "repeat_penalty": 1.3}]


def fresh(path, prompt, **settings):
    """What a model that has seen nothing before makes of a prompt."""
    return lowbit.load(path, threads=1).generate(prompt, **settings).tokens


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 33, 70, 190])
def test_texts_of_a_batch_are_those_they_would_be_alone(write_llama, settings, n):
    path = write_llama(**RANDOM)
    outs = lowbit.load(path, threads=2).generate(PROMPTS, max_tokens=n, **settings)
    alone = [fresh(path, prompt, max_tokens=n, **settings | {"seed": out.seed}) for prompt, out in zip(PROMPTS, outs)]
    assert [out.tokens for out in outs] == alone
    assert [out.prompt_tokens for out in outs] == [len(prompt) for prompt in PROMPTS]
    full = [len(prompt) + n > 201 for prompt in PROMPTS]  # the last token need not be stored
    assert [out.finish_reason for out in outs] == ["context" if one else "length" for one in full]


def test_texts_of_a_batch_end_each_at_its_own_end(scripted):
    model = scripted("bcdefghi")
    texts = [out.text for out in model.generate(["a", "f", "i", "c"], temperature=0)]
    assert texts == ["bcdefghi", "ghi", "", "defghi"]
    outs = model.generate(["a", "f", "c"], temperature=0, stop="gh")
    assert [(out.text, out.finish_reason) for out in outs] == [("bcdef", "stop"), ("", "stop"), ("def", "stop")]


def test_batches_may_be_larger_than_a_pass(write_llama):
    model = lowbit.load(write_llama(), context=3)  # a pass takes no more tokens than the context
    outs = model.generate([[i % 16] for i in range(10)], temperature=0, max_tokens=2)
    assert [out.tokens for out in outs] == [
        model.generate([i % 16], temperature=0, max_tokens=2).tokens for i in range(10)
    ]


def test_an_empty_batch_has_no_texts_and_no_empty_entries(scripted):
    assert scripted("b").generate([]) == []
    with pytest.raises(ValueError, match="empty"):
        scripted("b").generate(["a", ""])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_known_beginning_changes_nothing(write_llama, settings):
    path = write_llama(**RANDOM)
    model = lowbit.load(path, threads=1)
    settings = {"max_tokens": 20, **settings}
    first = model.generate([1, 2, 3], **settings).tokens
    for prompt in (
        [1, 2, 3, *first],  # the text so far
        [1, 2, 3, *first, 9],  # and a token more
        [1, 2, 3, *first, 9, 8, 7],
        [1, 2, 3, *first[:5], 9],
        [1, 2, 3],
        [1, 2],
        [2, 2, 3],
    ):
        out = model.generate(prompt, **settings)
        assert out.tokens == fresh(path, prompt, **settings), prompt
    assert model.generate([2, 2, 3], max_tokens=1).timings.reused_tokens == 2


@pytest.mark.parametrize("n", [1, 2, 10, 40])
def test_going_on_is_the_same_as_not_stopping(write_llama, n):
    path = write_llama(**RANDOM)
    whole = fresh(path, [5, 6], temperature=0, max_tokens=90)
    model = lowbit.load(path, threads=1)
    tokens = []
    while len(tokens) < 90:
        tokens += model.generate([5, 6, *tokens], temperature=0, max_tokens=min(n, 90 - len(tokens))).tokens
    assert tokens == whole


def test_other_calls_between_two_texts_change_nothing(write_llama):
    path = write_llama(**RANDOM)
    model = lowbit.load(path, threads=1)
    want = model.generate([1, 2, 3], temperature=0, max_tokens=10).tokens
    model.logits([1, 2, 9, 9, 9])
    model.generate([[1, 2, 8], [4]], temperature=0, max_tokens=5)
    stream = model.stream([1, 2, 7, 7], temperature=0, max_tokens=5)
    next(stream, None)
    stream.close()
    with pytest.raises(ValueError, match="999"):
        model.generate([1, 2, 999])
    assert model.generate([1, 2, 3], temperature=0, max_tokens=10).tokens == want


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 33, 150, 190])
def test_proposed_tokens_change_nothing(write_llama, settings, n):
    path = write_llama(**RANDOM)
    prompt = [1, 2, 3, 4, 5, 6] * 5
    want = fresh(path, prompt, max_tokens=n, **settings)
    model = lowbit.load(path, threads=2)
    for _ in range(2):
        assert model.generate(prompt, max_tokens=n, speculate=True, **settings).tokens == want


def test_proposed_tokens_change_nothing_in_repetitive_text(scripted):
    model = scripted("bcdef", loop="a", context=300)
    for n in (5, 30, 31, 64, 200):
        out = model.generate("a", temperature=0, max_tokens=n, speculate=True)
        assert out.text == ("bcdefa" * 50)[:n]
    out = model.generate("a", temperature=0, max_tokens=200, speculate=True, stop="f")
    assert (out.text, len(out.tokens)) == ("bcde", 5)


# --- several users ---


def test_two_threads_may_use_one_model(embedded):
    def job(seed):
        return embedded.generate("a", seed=seed, max_tokens=40, temperature=1.5).tokens

    want = [job(seed) for seed in range(8)]
    got = [None] * 8

    def work(seeds):
        for seed in seeds:
            got[seed] = job(seed)

    threads = [threading.Thread(target=work, args=(range(i, 8, 2),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == want


def test_two_models_may_run_at_once(write_llama):
    path = write_llama(hidden=256, wide=1024, vocab=512)
    models = [lowbit.load(path, threads=2) for _ in range(2)]
    ids = list(range(60))
    want = models[0].logits(ids)
    got = [[], []]

    def work(i):
        for _ in range(10):
            got[i].append(models[i].logits(ids))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(results) for results in got] == [10, 10]
    assert all(np.array_equal(result, want) for results in got for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_compute(write_llama):
    model = lowbit.load(write_llama(hidden=256, wide=1024, vocab=512), threads=2)
    ids = list(range(60))
    want = model.logits(ids)  # has started the pool's threads, which the child does not have
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, b"same" if np.array_equal(model.logits(ids), want) else b"else")
        finally:
            os._exit(0)
    os.close(writable)
    if not select.select([readable], [], [], 60)[0]:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.read(readable, 4) == b"same"
    os.close(readable)
    assert np.array_equal(model.logits(ids), want)


# --- what the model says about itself ---


def test_info_tells_what_the_model_is(write_llama):
    path = write_llama()
    info = lowbit.load(path, threads=1).info()
    assert set(info) >= INFO_KEYS
    assert info["path"] == str(path)
    assert (info["format"], info["family"], info["name"], info["threads"]) == ("gguf", "llama", None, 1)
    assert (info["vocab_size"], info["context_length"], info["layers"], info["hidden_size"]) == (16, 64, 3, 32)
    n = 16 * 32 + 32 + 3 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert info["parameters"] == n
    assert info["types"] == {"F32": 2 + 3 * 9}
    assert info["file_bytes"] == 4 * n
    assert info["weight_bytes"] >= 4 * n
    assert info["kv_bytes_per_token"] == 3 * 2 * (8 + 16) * 4  # two heads; the 8 channels of a value are padded to 16
    assert info["isa"] == lowbit.isa.active()


def test_info_names_the_instruction_set_in_use(isa, embedded):
    assert embedded.info()["isa"] == isa


@pytest.mark.parametrize("context", [1, 8, 15, 16, 17])
def test_a_short_context_is_enough_for_everything(write_llama, context):
    model = lowbit.load(write_llama(), context=context)
    assert model.context == context
    assert len(model.generate([1], max_tokens=100, temperature=0).tokens) == context
    assert set(model.info()) >= INFO_KEYS


def test_timings_count_what_was_done(scripted):
    model = scripted("bcdx")  # that no other test uses, so it knows no prompt yet
    timings = model.generate("a", temperature=0).timings
    assert (timings.prompt_tokens, timings.reused_tokens, timings.decode_tokens) == (3, 0, 4)
    assert timings.load_seconds > 0
    assert 0 < timings.prompt_seconds <= timings.first_token_seconds
    assert timings.first_token_seconds <= timings.prompt_seconds + timings.decode_seconds
    assert timings.prefill_tps == pytest.approx(3 / timings.prompt_seconds)
    assert timings.decode_tps == pytest.approx(4 / timings.decode_seconds)
    again = model.generate("a", temperature=0).timings
    assert (again.prompt_tokens, again.reused_tokens) == (3, 2)  # the last one is computed again, for its logits
    assert again.prefill_tps == pytest.approx(1 / again.prompt_seconds)


def test_tokens_beyond_those_of_the_tokenizer_have_no_text(scripted):
    from lowbit.engine.text import GeneratedText

    text = GeneratedText(scripted("bc").tokenizer, (), frozenset())
    pieces = [text.push(token) for token in (260, 5000, 261)]
    assert "".join([*pieces, text.finish()]) == "ab"
    assert text.tokens == [260, 5000, 261]


def test_room_for_more_logits_replaces_that_for_fewer(write_llama):
    model = lowbit.load(write_llama(**RANDOM), threads=1)
    before = model._decoder.scratch_bytes
    for n in range(1, 9):
        model.generate([[i + 1, 2] for i in range(n)], max_tokens=2, temperature=0)
        assert model._decoder.scratch_bytes == before + (n - 1) * 4 * RANDOM["vocab"]


def test_a_batch_without_memory_for_its_logits_changes_nothing(write_llama, monkeypatch):
    path = write_llama(**RANDOM)
    model = lowbit.load(path, threads=1)
    real, prompts = np.empty, [[i + 1, 2, 3] for i in range(8)]

    def none_left(shape, dtype):
        if dtype is np.float32 and shape[1] == RANDOM["vocab"]:
            raise MemoryError
        return real(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", none_left)
        for _ in range(2):  # the second time is no better than the first
            with pytest.raises(MemoryError):
                model.generate(prompts, max_tokens=3, temperature=0)
    outs = model.generate(prompts, max_tokens=3, temperature=0)
    assert [out.tokens for out in outs] == [fresh(path, p, max_tokens=3, temperature=0) for p in prompts]


def test_what_was_decoded_sparsely_is_not_taken_for_a_prompt(write_llama):
    """A prompt is computed with all inputs; so what was made is computed anew when it is part of one."""
    path = write_llama(**RANDOM)
    model = lowbit.load(path, sparsity=0.5)
    first = model.generate([1, 2, 3], max_tokens=8, temperature=0)
    prompt = [1, 2, 3, *first.tokens]
    second = model.generate(prompt, max_tokens=4, temperature=0)
    assert second.timings.reused_tokens == 3
    assert second.tokens == lowbit.load(path, sparsity=0.5).generate(prompt, max_tokens=4, temperature=0).tokens
