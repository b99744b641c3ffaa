"""A client that leaves frees what it held, and nothing else: queued, in its prompt, or between tokens."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_process import Server, read_all, request_bytes

PROMPT_TOKENS = 60_000
"""Takes longer to read than any test takes to look at it."""


def start(server, path, body):
    """A request on a connection of its own."""
    return server.raw(request_bytes(path, body))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_between_tokens(long_server, path, stream):
    talk = {"messages": [{"role": "user", "content": "a"}]}
    body = {
        "/completion": {"prompt": "once", "ignore_eos": True},
        "/v1/completions": {"prompt": "once", "logit_bias": {"1": -1000, "2": -1000}},
        "/v1/chat/completions": {**talk, "logit_bias": {"1": -1000, "2": -1000}, "stop": ["\nNOBODY"]},
        "/v1/responses": {"input": "a", "logit_bias": {"1": -1000, "2": -1000}},
    }[path]
    connection = start(long_server, path, {**body, "stream": stream})
    long_server.until(lambda: any(slot["n_decoded"] > 5 for slot in long_server.running()))
    before = long_server.metric("requests_cancelled_total")
    connection.close()
    long_server.until_idle()
    assert long_server.metric("requests_cancelled_total") == before + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/completion", "/v1/messages"])
def test_in_the_prompt(long_server, path, stream):
    body = {
        "/completion": {"prompt": [5 + i % 200 for i in range(PROMPT_TOKENS)]},
        "/v1/messages": {"messages": [{"role": "user", "content": "!" * PROMPT_TOKENS}], "max_tokens": 9},
    }[path]
    connection = start(long_server, path, {**body, "stream": stream})
    long_server.until(lambda: [slot for slot in long_server.running() if slot["state"] == "prefill"])
    connection.close()
    long_server.until_idle()


def test_embeddings(long_server):
    connection = start(long_server, "/v1/embeddings", {"input": [5 + i % 200 for i in range(PROMPT_TOKENS)]})
    long_server.until(long_server.running)
    connection.close()
    long_server.until_idle()


def test_in_the_queue_and_nobody_else_is_hurt(long_server, endless):
    running = [start(long_server, "/completion", {**endless, "stream": True, "seed": i}) for i in range(2)]
    long_server.until(lambda: len(long_server.running()) == 2)
    queued = [start(long_server, "/completion", {**endless, "stream": i == 0}) for i in range(2)]
    long_server.until(lambda: long_server.metric("requests_waiting") == 2)
    made = [slot["n_decoded"] for slot in long_server.running()]
    for connection in queued:
        connection.close()
    long_server.until(lambda: long_server.metric("requests_waiting") == 0)
    long_server.until(lambda: all(s["n_decoded"] > n for s, n in zip(long_server.running(), made, strict=True)))
    running[0].close()
    long_server.until(lambda: len(long_server.running()) == 1)
    running[1].close()
    long_server.until_idle()


def test_all_of_several_choices(long_server, endless):
    connection = start(long_server, "/v1/completions", {"prompt": "once", "n": 2, "stream": True,
                                                        "logit_bias": {"1": -1000, "2": -1000}})  # fmt: skip
    long_server.until(lambda: len(long_server.running()) == 2)
    connection.close()
    long_server.until_idle()


def test_a_full_queue_is_429_and_what_runs_goes_on(long_server, endless):
    connections = [start(long_server, "/completion", endless)]
    for n in (1, 2):
        long_server.until(lambda n=n: len(long_server.running()) == n)
        connections.append(start(long_server, "/completion", endless))
    long_server.until(lambda: long_server.metric("requests_waiting") == 1)
    connections.append(start(long_server, "/completion", endless))
    long_server.until(lambda: long_server.metric("requests_waiting") == 2)
    for path, body in (("/completion", endless), ("/v1/messages", {"messages": [{"role": "user", "content": "a"}],
                                                                   "max_tokens": 2})):  # fmt: skip
        answer = long_server.post(path, body)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error"]["type"] == "rate_limit_error"
    n = long_server.post("/v1/completions", {"prompt": "a", "n": 2})
    assert n.status_code == 429, "and none of the two is left behind"
    assert long_server.metric("requests_waiting") == 2
    for connection in connections:
        connection.close()
    long_server.until_idle()


def test_a_reader_that_does_not_read_keeps_nobody_out(long_server, endless):
    """Its text is set aside; another one is answered meanwhile, and it gets the rest when it reads on."""
    body = {**endless, "stream": True, "n_predict": 40_000}
    lazy = [long_server.raw(request_bytes("/completion", {**body, "seed": i}), receive=4096) for i in range(2)]
    long_server.until(lambda: len(long_server.running()) == 2)
    for _ in range(3):
        assert long_server.post("/completion", {"prompt": "a", "n_predict": 3, "seed": 1}).status_code == 200
    for connection in lazy:
        connection.close()
    long_server.until_idle()


def test_a_pipelined_request_is_no_disconnect(server):
    two = request_bytes("/v1/completions", {"prompt": "Once", "max_tokens": 40, "seed": 1})
    answer = read_all(server.raw(two + two.replace(b"host:", b"connection: close\r\nhost:", 1)))
    bodies = [json.loads(part[: part.rindex(b"}") + 1]) for part in answer.split(b"\r\n\r\n")[1:]]
    assert len(bodies) == 2
    assert bodies[0]["choices"] == bodies[1]["choices"]


# --- the end of the server ---


def test_sigterm_lets_answers_end_and_ends_the_others_in_order(long_path, endless):
    server = Server("-m", long_path, "--context", 65536, "--parallel", 4, "--grace", 3, "-t", 1)
    finite = start(server, "/completion", {**endless, "n_predict": 400, "stream": True})
    endless_one = start(server, "/v1/completions", {"prompt": "a", "stream": True,
                                                    "logit_bias": {"1": -1000, "2": -1000}})  # fmt: skip
    talk = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 60000, "stream": True}
    other_api = start(server, "/v1/messages", talk)
    waiting = start(server, "/completion", endless)
    with ThreadPoolExecutor() as pool:  # what nobody reads would be cut off at the end
        read = [pool.submit(read_all, each) for each in (finite, endless_one, other_api, waiting)]
        try:
            server.until(lambda: len(server.running()) + server.metric("requests_finished_total") >= 3)
        finally:  # what is read ends with the server
            status, said = server.stop()
    assert (status, said) == (0, "")
    whole, ended, last, refused = (each.result() for each in read)
    assert b'"stop_type":"limit"' in whole
    assert whole.endswith(b"0\r\n\r\n")
    assert b'"message":"the server is stopping"' in ended
    assert ended.endswith(b"0\r\n\r\n"), "the last event is whole, and so is the body"
    assert last.endswith(b"0\r\n\r\n")
    assert b"overloaded_error" in last or b"message_stop" in last
    # It waited, unless the first one's room was free already.
    assert refused.startswith(b"HTTP/1.1 503 ") or b'"message":"the server is stopping"' in refused


def test_an_answer_that_takes_too_long_is_ended(long_path, endless):
    server = Server("-m", long_path, "--context", 65536, "--timeout", 1, "-t", 1)
    answer = server.post("/completion", endless)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    events = server.events("/completion", endless)
    assert events[-1][1]["error"]["code"] == "timeout"
    server.until_idle()
    assert server.stop() == (0, "")
