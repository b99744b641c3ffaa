"""Tools, JSON schemas and grammars: what the clients ask for holds, streamed or not."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

openai = pytest.importorskip("openai", reason="this test needs the extra 'test-server'")
anthropic = pytest.importorskip("anthropic", reason="this test needs the extra 'test-server'")
pytest.importorskip("llguidance", reason="constraints need the extra 'serve'")

PARAMETERS = {
    "type": "object", "additionalProperties": False, "required": ["animal", "count"],
    "properties": {"animal": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Find animals.", "parameters": PARAMETERS}}]


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def collected(chunks):
    """What a client puts together of chunks."""
    calls, text, reason = [], "", None
    for chunk in chunks:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            if part.index == len(calls):
                assert (part.type, bool(part.id), bool(part.function.name)) == ("function", True, True)
                calls.append([part.function.name, ""])
            else:
                assert part.id is None
                assert part.function.name is None
            calls[part.index][1] += part.function.arguments
    return calls, text, reason


@pytest.mark.parametrize(
    ("choice", "reason"), [("required", "tool_calls"), ({"type": "function", "function": {"name": "find"}}, "stop")]
)
def test_a_call_that_must_be_is_made_with_arguments_that_fit(client, story, choice, reason):
    options = {"model": "lowbit-tiny", "messages": story, "tools": TOOLS, "tool_choice": choice, "seed": 4,
               "parallel_tool_calls": False}  # fmt: skip
    answer = client.chat.completions.create(**options).choices[0]
    (call,) = answer.message.tool_calls
    assert (call.function.name, answer.finish_reason, answer.message.content) == ("find", reason, None)
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    calls, text, streamed_reason = collected(client.chat.completions.create(**options, stream=True))
    assert calls == [["find", call.function.arguments]]
    assert (text, streamed_reason) == ("", reason)


def test_results_of_tools_go_back_to_the_model(client, story):
    options = {"model": "lowbit-tiny", "tools": TOOLS, "seed": 4}
    call = client.chat.completions.create(**options, messages=story, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "3 cats"} for one in call.tool_calls]
    messages = [*story, call.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(**options, messages=messages, tool_choice="none", max_tokens=10)
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage.completion_tokens == 10


def test_anthropic_tools(server, story):
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tools = [{"name": "find", "description": "Find animals.", "input_schema": PARAMETERS}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    options = {"model": "lowbit-tiny", "max_tokens": 200, "messages": story, "tools": tools, "tool_choice": choice,
               "extra_body": {"temperature": 0}}  # fmt: skip
    answer = client.messages.create(**options)
    (block,) = answer.content
    assert (block.type, block.name, answer.stop_reason) == ("tool_use", "find", "tool_use")
    jsonschema.validate(block.input, PARAMETERS)
    with client.messages.stream(**options) as stream:
        last = stream.get_final_message()
    assert [(b.type, b.input) for b in last.content] == [("tool_use", block.input)]
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "3 cats"}]}
    messages = [*story, {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]},
                {"role": "user", "content": [result, {"type": "text", "text": "Go on."}]}]  # fmt: skip
    more = client.messages.create(**{**options, "messages": messages, "tool_choice": {"type": "none"}, "max_tokens": 5})
    assert [b.type for b in more.content] == ["text"]


def test_tools_of_responses(client):
    tools = [{"type": "function", "name": "find", "description": "Find animals.", "parameters": PARAMETERS}]
    options = {"model": "lowbit-tiny", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False,
               "temperature": 0}  # fmt: skip
    answer = client.responses.create(**options, input="Find me a cat.")
    (call,) = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "find", "completed")
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    events = list(client.responses.create(**options, input="Find me a cat.", stream=True))
    kinds = [e.type for e in events if not e.type.endswith(".delta")]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(e.delta for e in events if e.type.endswith(".delta")) == call.arguments
    told = [{"role": "user", "content": "Find me a cat."}, call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "3 cats"}]  # fmt: skip
    more = client.responses.create(**{**options, "tool_choice": "none"}, input=told, max_output_tokens=5)
    assert [item.type for item in more.output] == ["message"]


def test_an_answer_with_a_schema_fulfils_it(client, server, story):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS, "strict": True}}
    options = {"model": "lowbit-tiny", "messages": story, "response_format": form, "seed": 2}
    answer = client.chat.completions.create(**options).choices[0]
    jsonschema.validate(json.loads(answer.message.content), PARAMETERS)
    assert answer.finish_reason == "stop"
    chunks = client.chat.completions.create(**options, stream=True)
    assert collected(chunks)[1] == answer.message.content
    told = client.responses.create(model="lowbit-tiny", input="Hi", text={
        "format": {"type": "json_schema", "name": "a", "schema": PARAMETERS}})  # fmt: skip
    jsonschema.validate(json.loads(told.output_text), PARAMETERS)
    body = {"messages": story, "max_tokens": 100,
            "output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}}}  # fmt: skip
    jsonschema.validate(json.loads(server.post("/v1/messages", body).json()["content"][0]["text"]), PARAMETERS)


def test_expressions_and_grammars(server):
    text = server.post("/completion", {"prompt": "Once", "regex": "[a-c]{3}x"}).json()["content"]
    assert re.fullmatch("[a-c]{3}x", text)
    answer = server.post("/v1/completions", {"prompt": "Once", "grammar": 'root ::= "a"{5,5}'})
    assert answer.json()["choices"][0]["text"] == "aaaaa"


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_compiled_is_400_and_never_free_text(server, story, stream):
    for more in ({"regex": "("}, {"grammar": "root ::= this is (not valid"}, {"json_schema": {"type": "hiccup"}},
                 {"json_schema": {"type": 123}}, {"response_format": {"type": "json_object", "schema": {"type": 1}}},
                 {"regex": "a", "grammar": 'root ::= "a"'},
                 {"response_format": {"type": "json_object"}, "json_schema": {"type": "integer"}},
                 {"tools": TOOLS, "tool_choice": "required", "regex": "a"}):  # fmt: skip
        answer = server.post("/v1/chat/completions", {"messages": story, "stream": stream, **more})
        assert answer.status_code == 400, (more, answer.text)
        assert answer.json()["error"]["message"]


def test_tools_that_are_wrong_are_refused(server, story):
    function = TOOLS[0]["function"]
    for more in (
        {"tools": {}}, {"tools": [1]}, {"tools": [{}]}, {"tools": [{"type": "web_search"}]}, {"tools": TOOLS * 2},
        {"tools": [{"type": "function", "function": {**function, "name": "a b"}}]},
        {"tools": [{"type": "function", "function": {**function, "parameters": 5}}]},
        {"tools": [{"type": "function", "function": {**function, "parameters": {"type": "array"}}}]},
        {"tool_choice": "required"}, {"tool_choice": "perhaps"}, {"tools": TOOLS, "tool_choice": "perhaps"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "lose"}}},
        {"tools": TOOLS, "tool_choice": {"type": "function"}}, {"tools": TOOLS, "parallel_tool_calls": "x"},
        {"messages": [*story, {"role": "tool", "content": "x", "tool_call_id": "y"}]},
        {"messages": [*story, {"role": "assistant", "tool_calls": [{}]}]},
        {"messages": [*story, {"role": "assistant", "tool_calls": 5}]},
    ):  # fmt: skip
        answer = server.post("/v1/chat/completions", {"messages": story, "max_tokens": 2, **more})
        assert answer.status_code == 400, (more, answer.text)
        assert answer.json()["error"]["message"].count("tool_choice") < 2
    for more in ({"tools": [{"name": "a"}] * 2}, {"tools": [{"type": "bash_20250124", "name": "bash"}]},
                 {"tool_choice": {"type": "any"}}, {"tool_choice": {"type": "tool"}},
                 {"tool_choice": "auto"}):  # fmt: skip
        answer = server.post("/v1/messages", {"messages": story, "max_tokens": 2, **more})
        assert (answer.status_code, answer.json()["type"]) == (400, "error"), more
