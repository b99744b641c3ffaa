"""Texts that must be something: they are, whatever the model likes, and nobody else notices."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lowbit
from lowbit import Engine, LowbitError
from lowbit.engine import State
from lowbit.engine.constraints import Compiler, Constraint
from lowbit.errors import ConstraintError

sys.path.insert(0, str(Path(__file__).parent))
from schemas import HOSTILE, SCHEMAS

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PROMPT = [1, *range(10, 40)]
NAMES = {"type": "object", "properties": {"name": {"enum": ["ada", "bob"]}, "n": {"type": "integer", "maximum": 9}},
         "required": ["name", "n"], "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def embedded():
    return lowbit.load()


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_is_valid(embedded, name):
    schema, ended = SCHEMAS[name], 0
    for seed in range(16):
        options = {"max_tokens": 250, "seed": seed, "temperature": 1 + seed % 2}
        out = embedded.generate("Once upon a time", json_schema=schema, **options)
        if out.finish_reason == "stop":
            jsonschema.validate(json.loads(out.text), schema)
            ended += 1
        if seed >= 3 and ended:
            break
    assert ended


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_is_valid_of_a_model_that_knows_no_json(model, name):
    engine = Engine(model, thread=False)
    streams = [
        engine.submit(PROMPT, json_schema=SCHEMAS[name], max_tokens=280, seed=seed, temperature=2.0, top_k=0)
        for seed in range(4)
    ]
    for out in [stream.result() for stream in streams]:
        if out.finish_reason == "stop":
            jsonschema.validate(json.loads(out.text), SCHEMAS[name])


REGEXES = [
    "abc", "(cat|dog) and [a-z]{3,8}\\.", " yes", "\n\n[0-9]{1,4}", "\u65e5\u672c[\u3040-\u309f]{2}", "[^a]{1,5}!",
    "(a|b)*c{2}", "[0-9]+(\\.[0-9]{1,2})?", "x?",
]  # fmt: skip


@pytest.mark.parametrize("regex", REGEXES)
def test_what_ends_matches_the_whole_expression(embedded, model, regex):
    ended = 0
    for one in (embedded, model):
        for seed in range(4):
            out = one.generate([1, 20], regex=regex, max_tokens=60, seed=seed, temperature=1.5)
            if out.finish_reason == "stop":
                assert re.fullmatch(regex, out.text)
                ended += 1
    assert ended


GRAMMARS = {
    'root ::= item ("," item)*\nitem ::= [a-c]{1,3} "=" ("yes" | "no") end?\nend ::= "\\u0021" # one of them':
        r"[a-c]{1,3}=(yes|no)!?(,[a-c]{1,3}=(yes|no)!?)*",
    'root ::= "\\u00e9" some-rule\nsome-rule ::= "\\x41" [^\\x00-\\x1F"\\\\]': "\u00e9A[^\\x00-\\x1f\"\\\\]",
    'start: "(" start? ")"': r"\(+\)+",
    "start: A B?\nA: /[0-9]{2}/\nB: /[a-z]/": "[0-9]{2}[a-z]?",
    'start: "n=" %json {"type": "integer", "minimum": 5, "maximum": 7}': "n=[567]",
}  # fmt: skip


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_what_ends_is_of_the_grammar(embedded, model, grammar):
    ended = 0
    for one in (embedded, model):
        for seed in range(4):
            out = one.generate([1, 20], grammar=grammar, max_tokens=60, seed=seed)
            if out.finish_reason == "stop":
                assert re.fullmatch(GRAMMARS[grammar], out.text)
                ended += 1
    assert ended


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("name", ["constant", "long common beginnings", "everything", "names to be escaped"])
def test_tokens_that_must_follow_are_those_that_the_mask_gives(embedded, model, name, temperature):
    """With log-probabilities every token is computed, and chosen under its mask."""
    options = {"max_tokens": 200, "seed": 5, "temperature": temperature, "repeat_penalty": 1.2,
               "frequency_penalty": 0.5, "json_schema": SCHEMAS[name]}  # fmt: skip
    for one in (embedded, model):
        forced, computed = one.generate([1, 20], **options), one.generate([1, 20], logprobs=0, **options)
        assert forced.tokens == computed.tokens
        assert forced.finish_reason == computed.finish_reason
        assert len(computed.logprobs) == len(computed.tokens)


def test_tokens_that_must_follow_share_a_pass(model):
    engine = Engine(model, thread=False)
    out = engine.submit(PROMPT, regex="so must it be, and not otherwise", max_tokens=200).result()
    assert len(out.tokens) > 30
    assert engine.stats()["steps"] == 1


def test_end_tokens_come_only_where_the_text_may_end(model):
    ends = set()
    for seed in range(20):
        whole = model.generate([1, 20], regex="[a-z]{40}", max_tokens=60, seed=seed, temperature=3.0, top_k=0)
        assert (len(whole.text), whole.finish_reason) == (40, "stop")
        some = model.generate([1, 20], regex="[a-z]*", max_tokens=60, seed=seed, temperature=3.0, top_k=0)
        ends.add(some.finish_reason)
    assert "stop" in ends


def test_a_text_that_is_cut_off_says_so(model):
    for n in (0, 1, 5):
        out = model.generate([1, 20], regex="[a-z]{40}", max_tokens=n, seed=1)
        assert (len(out.tokens), out.finish_reason) == (n, "length")
    assert model.generate([1, 20], regex="[a-z]{5}", max_tokens=5, seed=1).finish_reason == "stop"
    forced = model.generate([1, 20], regex="abcdefgh", max_tokens=3, seed=1)
    assert (forced.text, forced.finish_reason) == ("abc", "length")


def test_white_space_is_bounded(model):
    spaces = {i: 1000.0 for i in range(model.config.vocab_size) if model.tokenizer.token_bytes(i).isspace()}
    out = model.generate([1, 20], json_schema=NAMES, max_tokens=280, logit_bias=spaces, temperature=0)
    assert out.finish_reason == "stop"
    assert max(len(run) for run in re.findall(r"\s+", out.text)) in range(20, 23)


def test_a_stop_string_ends_such_a_text_too(model):
    out = model.generate([1, 20], regex="abcdef", stop="d", max_tokens=9)
    assert (out.text, out.finish_reason) == ("abc", "stop")


def test_no_constraint_reaches_the_next_request(model):
    free = model.generate(PROMPT, max_tokens=30, seed=2)
    model.generate(PROMPT, json_schema=NAMES, max_tokens=100, seed=2)
    assert model.generate(PROMPT, max_tokens=30, seed=2).tokens == free.tokens


def test_one_does_not_depend_on_the_others(model, load):
    def asked(i):
        options = {"max_tokens": 60 + i, "seed": i, "temperature": 1.2}
        return options | [{}, {"json_schema": NAMES}, {"speculate": True}, {"regex": "[a-z ]{30,50}"}][i % 4]

    alone = [load().generate(PROMPT[: 10 + i], **asked(i)) for i in range(12)]
    with Engine(model, max_sequences=3, kv_ram=12 * model._decoder.pool.block_bytes) as engine:
        streams = [engine.submit(PROMPT[: 10 + i], **asked(i)) for i in range(12)]
        found = [stream.result() for stream in streams]
    assert [out.tokens for out in found] == [out.tokens for out in alone]
    assert [out.text for out in found] == [out.text for out in alone]
    assert model._decoder.pool.held == 0


def test_a_text_that_was_set_aside_goes_on_as_it_must(model, monkeypatch):
    from lowbit.engine import sequence

    monkeypatch.setattr(sequence, "MOST_UNREAD", 4)
    options = {"json_schema": SCHEMAS["everything"], "max_tokens": 150, "seed": 3}
    want = model.generate(PROMPT, **options)
    engine = Engine(model, max_sequences=1, thread=False)
    slow, aside = engine.submit(PROMPT, **options), 0
    text = ""
    for piece in slow:
        text += piece
        other = engine.submit([1, 7], max_tokens=2)
        other.result()
        aside += slow.state is State.QUEUED
    assert text == want.text
    assert aside


def test_speculation_changes_nothing(model):
    options = {"json_schema": SCHEMAS["array of objects"], "max_tokens": 100, "seed": 8}
    assert model.generate(PROMPT, speculate=True, **options).tokens == model.generate(PROMPT, **options).tokens


BAD = [
    {"json_schema": {"type": "strange"}},
    {"json_schema": {"type": "string", "format": "made-up"}},
    {"json_schema": {"type": "string", "pattern": "(?=a)b"}},
    {"json_schema": {"not": {"type": "string"}}},
    {"json_schema": {"$ref": "https://example.org/schema"}},
    {"json_schema": {"type": "string", "format": "made-up", "x-guidance": {"lenient": True}}},
    {"json_schema": False},
    {"regex": "(a"},
    {"regex": "(?=a)b"},
    {"grammar": "start: nowhere"},
    {"grammar": 'root ::= "a'},
    {"grammar": 'rot ::= "a"'},
    {"grammar": "nothing of the kind"},
    {"grammar": ""},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_what_cannot_be_compiled_is_an_error_before_any_work(model, bad):
    engine = Engine(model, thread=False)
    stream = engine.submit(PROMPT, **bad)
    with pytest.raises(ValueError, match="cannot be compiled") as caught:
        next(stream)
    assert isinstance(caught.value, ConstraintError)
    assert "\n" not in str(caught.value)
    stats = engine.stats()
    assert (stats["steps"], stats["failed"], stats["waiting"]) == (0, 1, 0)
    assert model._decoder.pool.held == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": "[]"}, "object"),
        ({"json_schema": {"enum": [float("nan")]}}, "no JSON"),
        ({"json_schema": {"enum": [object()]}}, "no JSON"),
        ({"json_schema": {"type": "object", "minProperties": 2}}, "minProperties"),
        ({"json_schema": {"items": [{"anyOf": [{"$schema": "http://json-schema.org/draft-03/schema"}]}]}}, "draft 3"),
        ({"json_schema": {"properties": {"a": {"additionalProperties": {"divisibleBy": 2}}}}}, "draft 3"),
        ({"regex": 5}, "must be text"),
        ({"grammar": b"start: x"}, "must be text"),
        ({"regex": "a", "json_schema": {}}, "together"),
        ({"regex": "a" * (2 << 20)}, "limit"),
    ],
)
def test_what_is_none_at_all_is_refused_at_once(model, wrong, why):
    with pytest.raises(ConstraintError, match=why):
        Engine(model, thread=False).submit(PROMPT, **wrong)
    with pytest.raises(ConstraintError, match=why):
        model.stream(PROMPT, **wrong)


def test_without_the_extra_there_is_an_error_that_names_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LowbitError, match=r"lowbit\[serve\]"):
        model.generate(PROMPT, regex="a")
    assert model.generate(PROMPT, max_tokens=1).tokens


def test_nobody_waits_for_a_grammar_of_another(model, monkeypatch):
    go, real = threading.Event(), Compiler.matcher

    def matcher(self, kind, source):
        assert go.wait(60)
        return real(self, kind, source)

    monkeypatch.setattr(Compiler, "matcher", matcher)
    with Engine(model) as engine:
        first, dropped = engine.submit(PROMPT, regex="abc"), engine.submit(PROMPT, regex="abd")
        assert engine.submit(PROMPT, max_tokens=5).result().tokens
        assert first.state is State.COMPILING
        dropped.cancel()
        with pytest.raises(LowbitError, match="cancelled"):
            dropped.result()
        go.set()
        assert first.result().text == "abc"
        assert dropped.state is State.CANCELLED


def test_an_engine_that_is_closed_while_a_grammar_is_compiled_tells_who_waits(model, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(Compiler, "matcher", lambda *args: go.wait(60))
    engine = Engine(model)
    stream = engine.submit(PROMPT, regex="abc")
    engine.close()
    with pytest.raises(LowbitError, match="cancelled"):
        stream.result()
    go.set()


@pytest.mark.parametrize("at", range(6))
def test_a_signal_amid_the_parsing_loses_nothing(model, monkeypatch, at):
    options = {"json_schema": SCHEMAS["object"], "max_tokens": 150, "seed": 3}
    want = model.generate(PROMPT, **options)
    engine, calls = Engine(model, thread=False), 0
    real = Constraint.guide

    class Breaking:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            nonlocal calls
            calls += name in ("consume_tokens", "compute_ff_tokens", "is_error", "unsafe_compute_mask_ptr")
            if calls == 3 + at:
                calls += 1
                raise KeyboardInterrupt
            return getattr(self.inner, name)

    def guide(self, *args):
        if not isinstance(self._matcher, Breaking):
            self._matcher = Breaking(self._matcher)
        real(self, *args)

    monkeypatch.setattr(Constraint, "guide", guide)
    stream = engine.submit(PROMPT, **options)
    with pytest.raises(KeyboardInterrupt):
        stream.result()
    assert stream.result().text == want.text


def test_control_tokens_are_no_text_unless_they_are_asked_for(model):
    from lowbit.sampling import Grammar

    def write(names):
        return f'start: <[{names["</s>"]}]> "x" <[{names["<s>"]}]> "y"'

    assert model.generate([1, 20], grammar=Grammar(write), max_tokens=9).text == ""  # which ends with </s>


HARM = """
import json, resource, sys, lowbit
sys.path.insert(0, sys.argv[1])
from schemas import HOSTILE
model = lowbit.load()
print(model.generate("x", regex="ab", max_tokens=5).text, file=sys.stderr)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    out = model.generate("Once upon a time", max_tokens=100, seed=1, **HOSTILE[sys.argv[2]])
    result = out.finish_reason
except lowbit.errors.ConstraintError as error:
    result = str(error)
print(json.dumps([result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.measured
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_made_to_do_harm_fails_or_works_in_bounded_memory(name):
    done = subprocess.run(
        [sys.executable, "-c", HARM, str(Path(__file__).parent), name], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    result, kilobytes = json.loads(done.stdout)
    assert result in ("stop", "length") or "json_schema" in result or "regex" in result or "grammar" in result
    assert kilobytes < 400_000
