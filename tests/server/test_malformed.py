"""Requests that are wrong in one way each: the right status, an error object in the API's own form, and on it goes."""

from __future__ import annotations

import contextlib
import json

import pytest
from server_process import read_all, request_bytes

HELLO = [{"role": "user", "content": "Hi"}]
GOOD = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/completion": {"prompt": "Hi", "n_predict": 2},
    "/tokenize": {"content": "Hi"},
    "/detokenize": {"tokens": [300]},
    "/apply-template": {"messages": HELLO},
}
"""A request to each path that is answered."""

CHAT, TEXT, RESPONSES, EMBED, MESSAGES, COUNT, NATIVE, TOKENIZE, DETOKENIZE, APPLY = GOOD

MISSING = object()

FIELDS = [
    # what all that make text share, on one path each
    (CHAT, "temperature", -0.1), (CHAT, "temperature", 101), (CHAT, "temperature", "hot"), (CHAT, "temperature", []),
    (CHAT, "temperature", True), (CHAT, "temperature", {}), (CHAT, "temperature", 1e40), (TEXT, "temperature", -1),
    (RESPONSES, "temperature", -1), (MESSAGES, "temperature", -1), (NATIVE, "temperature", -1),
    (CHAT, "top_p", 0), (CHAT, "top_p", 1.01), (CHAT, "top_p", "1"), (TEXT, "top_p", -1), (RESPONSES, "top_p", 2),
    (MESSAGES, "top_p", 2), (NATIVE, "top_p", 2),
    (CHAT, "top_k", -1), (CHAT, "top_k", 1.5), (CHAT, "top_k", 2**31), (MESSAGES, "top_k", -1), (NATIVE, "top_k", "a"),
    (CHAT, "min_p", -0.1), (CHAT, "min_p", 1.1), (CHAT, "min_p", "x"),
    (CHAT, "repeat_penalty", 0), (CHAT, "repeat_penalty", 101), (CHAT, "repeat_penalty", "x"),
    (CHAT, "presence_penalty", 101), (CHAT, "presence_penalty", "x"), (CHAT, "frequency_penalty", -101),
    (CHAT, "seed", 2**64), (CHAT, "seed", -(2**63) - 1), (CHAT, "seed", 1.5), (CHAT, "seed", "1"), (CHAT, "seed", True),
    (CHAT, "seed", 10**400), (CHAT, "stop", ""), (CHAT, "stop", [""]), (CHAT, "stop", ["a"] * 65), (CHAT, "stop", 7),
    (CHAT, "stop", [7]), (CHAT, "stop", {}), (MESSAGES, "stop_sequences", "a"), (MESSAGES, "stop_sequences", [""]),
    (MESSAGES, "stop_sequences", [1]), (MESSAGES, "stop_sequences", ["a"] * 65),
    (CHAT, "logit_bias", 1), (CHAT, "logit_bias", "x"), (CHAT, "logit_bias", {"1": "x"}),
    (CHAT, "logit_bias", {"1": 1001}), (CHAT, "logit_bias", {"99999": 1}), (CHAT, "logit_bias", [[1]]),
    (CHAT, "logit_bias", [[1, 2, 3]]), (CHAT, "logit_bias", [7]), (CHAT, "logit_bias", {"1": True}),
    (NATIVE, "logit_bias", [[None, 1]]), (NATIVE, "logit_bias", [[1.5, 1]]),
    (CHAT, "cache_prompt", "yes"), (CHAT, "id_slot", -2), (CHAT, "id_slot", "a"), (CHAT, "timings_per_token", 1),
    (CHAT, "regex", 1), (CHAT, "grammar", {}), (CHAT, "json_schema", "x"), (CHAT, "json_schema", [1]),
    # chat
    (CHAT, "messages", MISSING), (CHAT, "messages", None), (CHAT, "messages", []), (CHAT, "messages", "Hi"),
    (CHAT, "messages", {}), (CHAT, "messages", [1]), (CHAT, "messages", [None]), (CHAT, "messages", [[]]),
    (CHAT, "messages", HELLO * 4097), (CHAT, "messages", [{"role": "user"}]),
    (CHAT, "messages", [{"content": "Hi"}]), (CHAT, "messages", [{"role": "king", "content": "Hi"}]),
    (CHAT, "messages", [{"role": 1, "content": "Hi"}]), (CHAT, "messages", [{"role": "user", "content": 1}]),
    (CHAT, "messages", [{"role": "user", "content": {}}]), (CHAT, "messages", [{"role": "user", "content": [1]}]),
    (CHAT, "messages", [{"role": "user", "content": [{}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "text"}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "text", "text": "a", "b": 5}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]),
    (CHAT, "messages", [{"role": "user", "content": "Hi", "mood": "good"}]),
    (CHAT, "messages", [{"role": "user", "content": "Hi", "name": "Bob"}]),
    (CHAT, "messages", [{"role": "system", "content": "Hi"}]), (CHAT, "messages", [{"role": [], "content": "Hi"}]),
    (APPLY, "messages", [{"role": {}, "content": "Hi"}]),
    (CHAT, "messages", [*HELLO, *[{"role": "assistant", "content": "Hi"}] * 2]),
    (CHAT, "max_tokens", 0), (CHAT, "max_tokens", -1), (CHAT, "max_tokens", 1.5), (CHAT, "max_tokens", "9"),
    (CHAT, "max_tokens", 2**31), (CHAT, "max_completion_tokens", 0), (CHAT, "max_completion_tokens", 3),
    (CHAT, "n", 0), (CHAT, "n", 129), (CHAT, "n", "2"), (CHAT, "stream", "true"), (CHAT, "stream", 1),
    (CHAT, "stream_options", True), (CHAT, "stream_options", {"usage": True}),
    (CHAT, "stream_options", {"include_usage": 1}), (CHAT, "stream_options", {"include_obfuscation": True}),
    (CHAT, "logprobs", 5), (CHAT, "top_logprobs", 5), (CHAT, "top_logprobs", 101), (CHAT, "top_logprobs", -1),
    (CHAT, "response_format", "json"), (CHAT, "response_format", {}), (CHAT, "response_format", {"type": "sound"}),
    (CHAT, "response_format", {"type": 1}), (CHAT, "response_format", {"type": "json_object", "schema": 123}),
    (CHAT, "response_format", {"type": "json_schema"}), (CHAT, "response_format", {"type": "text", "schema": {}}),
    (CHAT, "response_format", {"type": "json_schema", "json_schema": {"schema": "x"}}),
    (CHAT, "response_format", {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}),
    (CHAT, "model", "gpt-9"), (CHAT, "model", 7), (CHAT, "model", "\ud800"), (CHAT, "user", 7), (CHAT, "store", True),
    (CHAT, "metadata", "x"), (CHAT, "modalities", ["audio"]), (CHAT, "service_tier", "flex"),
    (CHAT, "prediction", {"type": "content"}), (CHAT, "audio", {}), (CHAT, "functions", [{}]), (CHAT, "mood", 1),
    (CHAT, "web_search_options", {}), (CHAT, "reasoning_effort", "high"), (CHAT, "Temperature", 1), (CHAT, "", 1),
    (CHAT, "mirostat", 2), (CHAT, "samplers", ["top_k"]), (CHAT, "return_progress", True), (CHAT, "__class__", 1),
    (CHAT, "return_progress", 1), (CHAT, "xtc_probability", 0.5), (CHAT, "typical_p", 0.9), (CHAT, "dry_multiplier", 1),
    (CHAT, "repeat_last_n", 32), (CHAT, "dynatemp_range", 1), (CHAT, "adaptive_target", 0.5), (CHAT, "typical_p", True),
    (CHAT, "backend_sampling", "x"), (CHAT, "reasoning_format", "none"), (CHAT, "verbose", 1),
    (CHAT, "chat_template_kwargs", {"no_such": 1}), (CHAT, "chat_template_kwargs", {"messages": []}),
    (CHAT, "chat_template_kwargs", {"a b": 1}), (CHAT, "chat_template_kwargs", "x"),
    (CHAT, "chat_template_kwargs", {"enable_thinking": True}), (APPLY, "chat_template_kwargs", {"enable_thinking": 1}),
    (RESPONSES, "chat_template_kwargs", {"x": 1}), (CHAT, "chat_template_kwargs", {"enable_thinking": 0}),
    (CHAT, "\u202eevil\n", 1), (CHAT, "x" * 10000, 1),
    # completions
    (TEXT, "prompt", MISSING), (TEXT, "prompt", []), (TEXT, "prompt", 5), (TEXT, "prompt", {}), (TEXT, "prompt", [[]]),
    (TEXT, "prompt", [1.5]), (TEXT, "prompt", [-1]), (TEXT, "prompt", [99999]), (TEXT, "prompt", [2**40]),
    (TEXT, "prompt", ["a", 5]), (TEXT, "prompt", [["a"]]), (TEXT, "prompt", [True]), (TEXT, "prompt", ["a"] * 200),
    (TEXT, "prompt", "cat " * 3000), (TEXT, "echo", True), (TEXT, "suffix", "x"), (TEXT, "best_of", 2),
    (TEXT, "logprobs", 101), (TEXT, "logprobs", True), (TEXT, "n", 129), (TEXT, "max_tokens", 0),
    # responses
    (RESPONSES, "input", MISSING), (RESPONSES, "input", []), (RESPONSES, "input", 5), (RESPONSES, "input", [5]),
    (RESPONSES, "input", [{"role": "x", "content": "a"}]), (RESPONSES, "input", [{"type": "web_search_call"}]),
    (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_image"}]}]),
    (RESPONSES, "previous_response_id", "resp_1"), (RESPONSES, "truncation", "auto"), (RESPONSES, "store", True),
    (RESPONSES, "background", True), (RESPONSES, "include", ["x"]), (RESPONSES, "max_output_tokens", 0),
    (RESPONSES, "text", {"verbosity": "low"}), (RESPONSES, "instructions", 5), (RESPONSES, "conversation", "x"),
    # embeddings
    (EMBED, "input", MISSING), (EMBED, "input", []), (EMBED, "input", {}), (EMBED, "input", [[]]), (EMBED, "input", 5),
    (EMBED, "input", [1.5]), (EMBED, "input", ["a"] * 2049), (EMBED, "input", "cat " * 3000), (EMBED, "input", [9999]),
    (EMBED, "input", {"content": "x"}), (EMBED, "input", {"content": []}), (EMBED, "input", {"content": [{}]}),
    (EMBED, "input", {"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}), (EMBED, "input", [1, True]),
    (EMBED, "input", {"prompt_string": 5}), (EMBED, "input", {"prompt_string": "a", "multimodal_data": "x"}),
    (EMBED, "encoding_format", "int8"), (EMBED, "dimensions", 3), (EMBED, "dimensions", 0), (EMBED, "model", "x"),
    # Anthropic
    (MESSAGES, "max_tokens", MISSING), (MESSAGES, "max_tokens", 0), (MESSAGES, "max_tokens", "x"),
    (MESSAGES, "messages", MISSING), (MESSAGES, "messages", []), (MESSAGES, "messages", ["x"]),
    (MESSAGES, "messages", [{"role": "system", "content": "x"}]), (MESSAGES, "messages", [{"role": "user"}]),
    (MESSAGES, "messages", [{"role": "user", "content": "x", "name": "y"}]),
    (MESSAGES, "messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}]),
    (MESSAGES, "system", 5), (MESSAGES, "system", [{"type": "image"}]), (MESSAGES, "thinking", {"type": "enabled"}),
    (MESSAGES, "thinking", {"type": "enabled", "budget_tokens": 0}), (MESSAGES, "thinking", {"type": "adaptive"}),
    (MESSAGES, "thinking", {"type": "disabled", "a": 1}), (MESSAGES, "thinking", True),
    (MESSAGES, "stream", "x"), (MESSAGES, "seed", 1), (MESSAGES, "model", "claude"), (MESSAGES, "service_tier", "x"),
    (MESSAGES, "output_config", {"effort": "low"}), (COUNT, "messages", MISSING), (COUNT, "max_tokens", 5),
    # llama.cpp's
    (NATIVE, "prompt", MISSING), (NATIVE, "prompt", {}), (NATIVE, "prompt", {"prompt_string": 5}),
    (NATIVE, "prompt", 5),
    (NATIVE, "prompt", {"prompt_string": "a", "multimodal_data": ["x"]}), (NATIVE, "prompt", [[1], []]),
    (NATIVE, "prompt", [-5]), (NATIVE, "prompt", [None]), (NATIVE, "n_predict", -2), (NATIVE, "n_predict", "x"),
    (NATIVE, "n_probs", 101), (NATIVE, "response_fields", "content"), (NATIVE, "response_fields", [5]),
    (NATIVE, "post_sampling_probs", True), (NATIVE, "lora", []), (NATIVE, "ignore_eos", "x"),
    (TOKENIZE, "content", MISSING), (TOKENIZE, "content", 5), (TOKENIZE, "add_special", "x"), (TOKENIZE, "x", 1),
    (DETOKENIZE, "tokens", MISSING), (DETOKENIZE, "tokens", "x"), (DETOKENIZE, "tokens", [-1]),
    (DETOKENIZE, "tokens", [99999]), (DETOKENIZE, "tokens", [1.5]), (APPLY, "messages", MISSING), (APPLY, "x", 1),
    (APPLY, "add_generation_prompt", 1),
]  # fmt: skip

BODIES = [
    b"", b" ", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"true", b"{'a': 1}", b'{"messages": }', b"\xff\xfe",
    b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b'{"temperature": NaN}', b'{"temperature": Infinity}', b'{"a": 1}}',
    b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", b"\x00" * 10,
    b'{"seed": ' + b"9" * 5000 + b"}", b'{"a": "\x01"}', b"<xml/>", b'{"stop": [' + b'"a",' * 600_000 + b'"a"]}',
]  # fmt: skip


def check(answer, path, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    if path.startswith(("/v1/messages", "/messages")):
        assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
    else:
        assert {"message", "type", "param", "code"} <= set(body["error"])
    message = body["error"]["message"]
    assert message.isprintable()
    assert len(message) < 600
    return body["error"]


def test_there_are_enough_of_them():
    assert len(FIELDS) + len(BODIES) >= 250


def test_good_requests_are_answered(server):
    for path, body in GOOD.items():
        assert server.post(path, body).status_code == 200, path
        short = path.removeprefix("/v1")
        assert server.post(short, body).status_code == 200, short


@pytest.mark.parametrize("path", GOOD)
def test_a_field_that_is_wrong_is_named(server, path):
    """Every row of the table for this path; a field that is unknown or cannot be honoured is never ignored."""
    for where, field, value in FIELDS:
        if where != path:
            continue
        body = {**GOOD[path], field: value}
        if value is MISSING:
            del body[field]
        answer = server.http.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
        case = (path, field[:40], str(value)[:60])
        wrong_model = field == "model" and isinstance(value, str)
        error = check(answer, path, 404 if wrong_model else 400)
        if "message" in error and not path.startswith("/v1/messages"):
            known = field.isprintable() and len(field) < 60
            said = f"{error['param']} {error['message']}"
            assert not known or field.split("_")[-1].rstrip("s") in said or "context" in said or "token" in said, case
    assert server.post(path, GOOD[path]).status_code == 200, "the server serves on"


@pytest.mark.parametrize("digits", [b"1e400", b"-1e999", b"9" * 310 + b".5"])
def test_a_number_that_no_answer_could_repeat_is_refused(server, digits):
    body = b'{"input": "a", "max_output_tokens": 1, "metadata": {"a": [' + digits + b"]}}"
    answer = server.http.post(RESPONSES, content=body, headers={"content-type": "application/json"})
    assert "too large" in check(answer, RESPONSES, 400)["message"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, TOKENIZE])
def test_a_body_that_is_no_json_object_is_refused(server, path):
    for body in BODIES:
        answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
        check(answer, path, 400)
    assert server.post(path, GOOD[path]).status_code == 200


def test_headers_that_are_wrong(server):
    good = json.dumps(GOOD[CHAT]).encode()
    for headers, status in [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json", "host": "evil.example"}, 403),
        ({"content-type": "application/json", "host": "localhost.evil.example:80"}, 403),
        ({"content-type": "application/json", "host": "127.0.0.1.evil.example"}, 403),
        ({"content-type": "application/json", "host": ""}, 403),
    ]:
        check(server.http.post(CHAT, content=good, headers=headers), CHAT, status)
    for headers in ({"content-type": "application/json; charset=utf-8"}, {"content-type": "APPLICATION/JSON"},
                    {"content-type": "application/json", "host": "[::1]:80"},
                    {"content-type": "application/json", "host": "LOCALHOST"},
                    {"content-type": "application/json", "host": "192.168.1.7:8080"}):  # fmt: skip
        assert server.http.post(CHAT, content=good, headers=headers).status_code == 200


def test_paths_and_methods_that_are_wrong(server):
    for path in ("/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "//v1/models", "/v1/%2e%2e/health", "/etc/passwd",
                 "/v1/models/../../props", "/v1/v1/models", "/HEALTH", "/%00", "/health%0d%0aX:%20y", "/" + "a" * 5000,
                 "/v1/messages/batches", "/v1/images/generations", "/.env", "/models/%ff"):  # fmt: skip
        for method in ("GET", "POST"):  # as bytes, for clients tidy paths up
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            answer, _, body = read_all_of(server, head.encode()).partition(b"\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 ")), (path, answer)
            assert json.loads(body)["error"]
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "BREW"):
        answer = server.http.request(method, CHAT)
        check(answer, CHAT, 405)
        assert answer.headers["allow"] == "POST, OPTIONS"
    check(server.post("/health", {}), "/health", 405)
    assert server.http.head("/health").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n", b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
        b"content-type: application/json\r\n\r\nZZ\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_gets_400(server, data):
    answer = read_all_of(server, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    if answer or len(data) < 100_000:  # a connection that is closed while more is sent may lose the answer
        assert head.startswith(b"HTTP/1.1 400 "), answer
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert server.get("/health").status_code == 200


def read_all_of(server, data):
    connection = server.raw(data)
    with contextlib.suppress(OSError):  # it was closed already
        connection.shutdown(1)
    return read_all(connection)


def test_bodies_that_do_not_come_whole_cost_nothing(server):
    whole = request_bytes("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
    for cut in (len(whole) // 2, len(whole) - 1):
        assert read_all_of(server, whole[:cut]) == b""
    assert server.get("/health").status_code == 200
    server.until_idle()
    answer = read_all_of(server, request_bytes("/tokenize", b"{}", content_length=1 << 30))
    assert answer.startswith(b"HTTP/1.1 413 ")
    chunked = request_bytes("/tokenize", b"", transfer_encoding="chunked").replace(b"content-length: 0\r\n", b"")
    part = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
    connection = server.raw(chunked)
    try:
        for _ in range(12):
            connection.sendall(part)
    except OSError:
        pass  # it has said what it had to say
    assert server.get("/health").status_code == 200


ODD = [
    True, False, 0, -1, 1, 2**63, 2**70, -0.5, 1e308, "", "a", "\ud800", "\x00", [], [[]], [None], [{}], ["a"],
    [1, "a"],
    {}, {"a": 1}, {"type": "object"}, {"type": []}, {"type": "json_schema", "json_schema": {"schema": True}},
    {"type": "function", "function": {"name": 5}}, {"type": "tool", "name": 5}, {"format": {"type": "json_schema"}},
    [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "#"}}}], [{"role": "tool", "content": "a"}],
    [{"name": "a", "input_schema": {"type": "object", "properties": 5}}], {"$ref": "#/a"}, [{"type": "message"}],
    [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}],
    [{"role": "assistant", "content": "a", "reasoning_content": 5}], [{"type": "function_call", "name": "a"}],
    [{"type": "function_call_output", "output": "a"}], [{"role": "user", "content": "a" * 3000}], "(" * 50, "(a*)*b",
]  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
def test_no_value_of_any_field_makes_the_server_fail(server, path):
    import dataclasses

    from lowbit.serve.app import ROUTES

    for i, field in enumerate(dataclasses.fields(ROUTES[path][2])):
        for value in ODD[i % 3 :: 3]:  # all of them with fields of each kind
            body = json.dumps({**GOOD[path], field.name: value}).encode()
            answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 404), (path, field.name, str(value)[:80], answer.text[:300])
            if answer.status_code != 200:
                check(answer, path, answer.status_code)
