"""Calls of tools: found in every format, however the text is cut; and texts that begin one are held to its schema."""

from __future__ import annotations

import itertools
import json

import pytest
from control_tokens import vocabulary
from hypothesis import given
from hypothesis import strategies as st

from lowbit.chat.tools import Delta, ToolCalls, in_thought

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"], "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}},
]
ONE, TWO = '{"city": "Par\\"is } {", "days": 3}', "{}"

# The words by which a format is known, a text with two calls, and what the arguments of the first one then are.
FORMATS = {
    "hermes": (
        '<tool_call> {"name", "arguments"} tools',
        f'<tool_call>\n{{"name": "get_weather", "arguments": {ONE}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "get", "arguments": {TWO}}}\n</tool_call>',
    ),
    "qwen-tagged": (
        "<tool_call> <function= <parameter= tools",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar\"is } {\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get>\n</function>\n</tool_call>",
    ),
    "mistral": (
        "[TOOL_CALLS] tools",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ONE}}}, {{"name": "get", "arguments": {TWO}}}]',
    ),
    "mistral-args": ("[TOOL_CALLS] [ARGS] tools", f"[TOOL_CALLS]get_weather[ARGS]{ONE}[TOOL_CALLS]get[ARGS]{TWO}"),
    "deepseek": (
        "<｜tool▁calls▁begin｜> tools",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ONE}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>get<｜tool▁sep｜>{TWO}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-json": (
        "<｜tool▁calls▁begin｜> ```json tools",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n" + ONE
        + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n" + TWO
        + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama3": (
        '<|start_header_id|> "parameters": tools',
        f'{{"name": "get_weather", "parameters": {ONE}}}',
    ),
    "plain": ("", f'{{"name": "get_weather", "arguments": {ONE}}}\n{{"name": "get", "arguments": {TWO}}}'),
}  # fmt: skip
BARE = ("llama3", "plain")


def calls_of(name, choice="auto", parallel=True, thinks=False):
    return ToolCalls(TOOLS, choice, parallel, FORMATS[name][0], thinks)


def whole(deltas):
    """Text, reasoning, and names and arguments of the calls, put together as a client does."""
    calls = []
    for delta in deltas:
        if delta.index is not None:
            if delta.index == len(calls):
                assert delta.id
                assert delta.name
                calls.append([delta.name, ""])
            else:
                assert delta.index == len(calls) - 1
                assert not delta.id
                assert not delta.name
            calls[-1][1] += delta.arguments
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


def parsed(calls, pieces):
    return whole([delta for piece in pieces for delta in calls.push(piece)] + calls.finish())


@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_found_in_each_format(name):
    text, reasoning, calls = parsed(calls_of(name), [FORMATS[name][1]])
    assert (text, reasoning) == ("", "")
    assert [call[0] for call in calls] == ["get_weather", "get"][: 1 + (name != "llama3")]
    assert json.loads(calls[0][1]) == json.loads(ONE)
    assert all(json.loads(call[1]) == {} for call in calls[1:])


@pytest.mark.parametrize("name", FORMATS)
def test_text_and_thoughts_around_calls_are_kept_apart(name):
    before = "" if name in BARE else "I will look.\n\n"
    answer = f"<think>\nLet me see: <tool\n</think>\n\n{before}{FORMATS[name][1]}\n"
    text, reasoning, calls = parsed(calls_of(name), [answer])
    assert (text, reasoning) == (before.strip(), "Let me see: <tool")
    assert calls[0][0] == "get_weather"
    thought = parsed(calls_of(name, thinks=True), [answer.removeprefix("<think>\n")])
    assert thought == (text, reasoning, calls)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_call_stays_text(name):
    begin = FORMATS[name][1][:14]
    for text in ("Hello { you }", f" {begin}and so on", '{"name": "unknown", "arguments": {}}', "{", "a\n\n", "<think"):
        assert parsed(calls_of(name), [text]) == (text, "", [])


def pieces_of(text, cuts):
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_what_is_found_does_not_depend_on_how_the_text_was_cut(name, data):
    sample = FORMATS[name][1]
    marks = [
        "<think>",
        "</think>",
        "\n",
        " ",
        "{",
        "}",
        "x",
        '"',
        "</tool_call>",
        "[",
        sample[:14],
        sample[:40],
        sample,
    ]
    parts = data.draw(st.lists(st.sampled_from([*marks, *pieces_of(sample, range(0, 400, 17))]), max_size=7))
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, 1 << 16), max_size=12))
    thinks = data.draw(st.booleans())
    want = parsed(calls_of(name, thinks=thinks), [text])
    assert parsed(calls_of(name, thinks=thinks), pieces_of(text, cuts)) == want
    assert parsed(calls_of(name, thinks=thinks), text) == want


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_the_beginning_of_one(name):
    sample = FORMATS[name][1]
    full = parsed(calls_of(name), [sample])[2][0][1]
    for end in range(len(sample)):
        _, _, calls = parsed(calls_of(name), [sample[:end]])
        if calls:
            assert calls[0][0] == "get_weather"
            assert full.startswith(calls[0][1])


def test_the_first_delta_names_the_call_and_later_ones_hold_arguments_alone():
    calls = calls_of("hermes")
    deltas = [delta for character in FORMATS["hermes"][1] for delta in calls.push(character)]
    assert len({delta.id for delta in deltas if delta.id}) == 2
    assert all(len(delta.id) == 9 and delta.id.isalnum() for delta in deltas if delta.id)
    assert len([delta for delta in deltas if delta.arguments]) > 30
    assert calls.called


def test_tagged_values_become_what_their_schema_says():
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string"}, "n": {"type": "number"}, "o": {"type": "object"}, "b": {"type": "boolean"},
            "u": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    }  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    values = {"s": "12\n 3", "n": "1.5", "o": '{"a": [1]}', "b": "true", "u": "null", "other": "plain"}
    text = "<tool_call>\n<function=f>\n" + "".join(
        f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items()
    )
    _, _, calls = parsed(
        ToolCalls(tools, "auto", True, FORMATS["qwen-tagged"][0]), [text + "</function>\n</tool_call>"]
    )
    assert json.loads(calls[0][1]) == {
        "s": "12\n 3", "n": 1.5, "o": {"a": [1]}, "b": True, "u": None, "other": "plain",
    }  # fmt: skip


def test_without_tools_only_thoughts_are_found():
    for choice, tools in (("none", TOOLS), ("auto", [])):
        calls = ToolCalls(tools, choice, True, FORMATS["hermes"][0])
        assert calls.tools is None
        assert calls.grammar is None
        sample = FORMATS["hermes"][1]
        assert parsed(calls, ["<think>a</think>" + sample]) == (sample, "a", [])
        assert not calls.called


@pytest.mark.parametrize(
    ("tools", "choice", "why"),
    [
        ([{"type": "web"}], "auto", "no function"),
        ([{"type": "function", "function": {"name": "a b"}}], "auto", "name"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "auto", "schema"),
        (TOOLS * 2, "auto", "same name"),
        (TOOLS, "sometimes", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "other"}}, "not there"),
        (TOOLS, {"type": "function"}, "names no function"),
        ([], "required", "not there"),
    ],
)
def test_what_is_no_tool_or_no_choice_is_refused(tools, choice, why):
    with pytest.raises(ValueError, match=why):
        ToolCalls(tools, choice, True, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"properties": 5}, {"properties": [1]}, {"properties": None}, {"properties": {"a": 5}}, {"required": 5},
        {"properties": {"a": {"enum": 5}}}, {"properties": {"a": {"type": 5}}}, {"properties": {"a": {"anyOf": 5}}},
        {"properties": {"a": {"oneOf": [{"enum": {}}]}}}, {"properties": {"a": {"anyOf": [None]}}},
    ],
)  # fmt: skip
def test_parameters_that_are_no_schema_are_refused_whatever_the_format(wrong):
    """Formats with tags read the schema themselves, before anybody compiles it."""
    with pytest.raises(ValueError, match="tool 0: the parameters are no schema"):
        ToolCalls([{"type": "function", "function": {"name": "a", "parameters": wrong}}], "auto", True, "")


SPECIALS = [
    "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<tool_call>", "</tool_call>",
    *(f"<｜tool▁{part}｜>" for part in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")),
]  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["control tokens", "text"])
def accepts(request):
    """Whether a text is of a grammar, and whether it may end there; the marks are tokens, or just text."""
    pytest.importorskip("llguidance")
    from lowbit.engine.constraints import Compiler

    tokenizer = vocabulary(SPECIALS if request.param else [])
    compiler = Compiler(tokenizer, frozenset({2}), tokenizer.vocab_size)

    def accept(grammar, text):
        constraint = compiler.constraint(grammar=grammar)
        matcher = compiler.matcher(constraint._kind, constraint._source)
        as_bytes = [3 + byte for byte in text.encode()]
        ids = tokenizer.encode(text, add_bos=False, parse_special=True) if request.param else as_bytes
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return accept


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_is_free_until_a_call_begins(accepts, name):
    sample, grammar = FORMATS[name][1], calls_of(name).grammar
    assert accepts(grammar, "")
    assert accepts(grammar, "Hello you. [x] <y> }")
    assert accepts(grammar, sample)
    assert not accepts(grammar, sample[:-1])
    if name not in BARE:
        assert accepts(grammar, "Let me see.\n" + sample)
    for right, wrong in (("get_weather", "got_weather"), ("days", "dais"), ("3", "x")):
        assert not accepts(grammar, sample.replace(right, wrong))
    assert accepts(calls_of(name, parallel=False).grammar, sample) == (name == "llama3")


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_demanded_comes_first(accepts, name):
    sample, one = FORMATS[name][1], FORMATS[name][1].partition("get_weather")[0]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        grammar = calls_of(name, choice).grammar
        assert not accepts(grammar, "")
        assert not accepts(grammar, "Hello")
        assert not accepts(grammar, "Hello " + sample)
        assert accepts(grammar, sample) == (choice == "required" or name == "llama3")
        assert not accepts(grammar, one + sample)
    thinking = calls_of(name, "required", thinks=True).grammar
    assert accepts(thinking, "Let me see.\n</think>\n\n" + sample)
    assert not accepts(thinking, "Let me see.\n</think>\n\nHello")


def test_marks_that_are_control_tokens_are_part_of_the_text():
    grammar = calls_of("mistral").grammar
    assert "[TOOL_CALLS]" in grammar.shown
    assert "<[261]>" in grammar.write({"[TOOL_CALLS]": 261})
    assert '"[TOOL_CALLS]"' in grammar.write({})


def test_a_prompt_that_ends_within_a_thought_is_known():
    tokenizer = vocabulary(["<think>"])
    for text, within in (("x<think>\n", True), ("<think>", True), ("<think>a", False), ("<think></think>", False)):
        assert in_thought(tokenizer.encode(text, parse_special=True), tokenizer) == within
        assert in_thought(vocabulary([]).encode(text), vocabulary([])) == within


def test_deltas_can_be_compared():
    assert calls_of("plain").push("Hi ") == [Delta(text="Hi")]


def by_jinja(source, messages, tools):
    """What transformers' way of running chat templates makes of a conversation."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = tojson
    values = {
        "messages": messages,
        "tools": tools,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_generation_prompt": True,
    }
    return environment.from_string(source).render(**values)


TEMPLATES = [
    "{%- if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}{% if 'tool_calls' in m %}<tool_call>"
    '{"name": "{{ m.tool_calls[0].function.name }}", "arguments": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% endif %}{{ eos_token }}\n{% endfor %}",
    "{% for tool in tools %}{% for key, value in tool.function.items() %}{{ key }}={{ value if value is string else "
    "value | tojson }};{% endfor %}{% endfor %}{% for m in messages %}{{ m.role }}|{{ m.content }}"
    "{% for c in m.tool_calls %}[TOOL_CALLS][{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}]"
    "{% endfor %}{% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}\n{% endfor %}",
    "{{ tools | map(attribute='function') | list | tojson(indent=2) }}{% for m in messages %}<｜{{ m.role }}｜>"
    "{% if m.content is none %}<｜tool▁calls▁begin｜>{{ m['tool_calls'][0]['function']['name'] + '\n```json\n' + "
    "m['tool_calls'][0]['function']['arguments'] + '\n```' }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for t in tools %}{{ t | tojson(sort_keys=true, separators=(',', ':')) }}{% endfor %}{% for m in messages %}"
    "{{ m.content }}{% for c in m.tool_calls %}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n"
    "</parameter>\n{% endfor %}</function>{% endfor %}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES)
def test_conversations_with_tools_are_rendered_as_elsewhere(source):
    from lowbit.chat import render

    tokenizer = vocabulary(SPECIALS)
    arguments = {"city": 'P\u00e4r"is', "days": 3}
    called = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    text = {**called, "function": {"name": "get_weather", "arguments": json.dumps(arguments, ensure_ascii=False)}}
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " How </tool_call> is it? "}]
    after = [{"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"}]
    joins = "+ m['tool_calls'][0]['function']['arguments'] +" in source.replace('" "', "")
    said = {"role": "assistant", "content": None if joins else "", "tool_calls": [text if joins else called]}
    want = by_jinja(source, [*talk, said, *after], TOOLS)
    spoken = [*talk, {"role": "assistant", "content": None, "tool_calls": [text]}, *after]
    ids = render(spoken, {"tokenizer.chat_template": source}, tokenizer, tools=TOOLS)
    written = b"".join(
        tokenizer.piece(i).encode() if i in tokenizer.control_ids else tokenizer.token_bytes(i) for i in ids
    )
    assert written.decode().removeprefix("<s>").replace("\u2581", " ") == want.replace("\u2581", " ")
