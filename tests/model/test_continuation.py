"""A text that goes on with its prompt: both together are what the tokens say."""

from __future__ import annotations

import pytest

import lowbit

PROMPTS = ["Once upon", "Once upon a time, there was a little", "The"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_text_are_what_the_tokens_say(embedded, prompt):
    ids = embedded.tokenizer.encode(prompt)
    out = embedded.generate(prompt, temperature=0, max_tokens=12)
    assert prompt + out.text == embedded.tokenizer.decode([*ids, *out.tokens])
    assert out.text.startswith(" "), "the model goes on with a word"
    assert "".join(embedded.stream(prompt, temperature=0, max_tokens=12)) == out.text
    assert embedded.generate([ids, ids[:2]], temperature=0, max_tokens=12)[0].text == out.text
    with lowbit.Engine(embedded) as engine:
        assert engine.submit(prompt, temperature=0, max_tokens=12).result().text == out.text


def test_a_text_of_its_own_begins_without_a_space(embedded):
    bos = [embedded.tokenizer.bos_id]
    alone = embedded.generate(bos, seed=1, max_tokens=8)
    assert alone.text == embedded.tokenizer.decode(alone.tokens)
    going_on, fresh = (embedded.generate("Once upon", temperature=0, max_tokens=8, fresh=one) for one in (False, True))
    assert going_on.text == " " + fresh.text
    assert going_on.tokens == fresh.tokens
    talk = [{"role": "user", "content": "Tell me a story."}]
    answer = embedded.chat(talk, temperature=0, max_tokens=8)
    assert answer.text == embedded.tokenizer.decode(answer.tokens)


def test_a_stop_string_may_begin_with_the_space(embedded):
    word = embedded.generate("Once upon", temperature=0, max_tokens=8).text.split()[1]
    out = embedded.generate("Once upon", temperature=0, max_tokens=8, stop=[f" {word}", "NOBODY"])
    assert (out.finish_reason, out.stopped_by) == ("stop", f" {word}")
    assert embedded.generate("Once upon", temperature=0, max_tokens=8, stop="NOBODY").stopped_by == ""
