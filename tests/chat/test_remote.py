"""`lowbit chat --url`: events cut anywhere, a conversation with a server, errors of all kinds, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from lowbit import RemoteError, cli
from lowbit.chat import remote
from lowbit.chat.remote import EventStream, RemoteChat, Server

STREAM = 'data: {"ä": 1}\r\n\r\n: ping\n\nevent: x\ndata: one\ndata:two\r\rid: 3\n\ndata\n\ndata: [DONE]\n\n'.encode()
EVENTS = ['{"ä": 1}', "one\ntwo", "", "[DONE]"]


def parsed(chunks):
    stream = EventStream()
    return [data for chunk in chunks for data in stream.feed(chunk)]


def test_events_are_the_same_wherever_the_bytes_are_cut():
    for i in range(len(STREAM)):
        for j in range(i, len(STREAM)):
            assert parsed([STREAM[:i], STREAM[i:j], STREAM[j:]]) == EVENTS
    assert parsed([bytes([byte]) for byte in STREAM]) == EVENTS


def test_an_event_without_end_and_one_that_is_no_text_are_refused(monkeypatch):
    monkeypatch.setattr(remote, "MAX_EVENT", 10_000)
    for chunk in (b"x" * 100, b"data: x\n" * 100, b": \n" * 100):
        with pytest.raises(RemoteError, match="more than 10,000 bytes"):
            parsed([chunk] * (10_000 // len(chunk) + 1))
    assert len(parsed([b"data: x\n\n"] * 10_000)) == 10_000, "only events are bounded, not the stream"
    with pytest.raises(RemoteError, match="UTF-8"):
        parsed([b"data: \xff\n\n"])


@pytest.fixture
def server():
    """A server whose answer to a conversation is set by `answer(handler, request)`; `requests` holds what was asked."""
    state = SimpleNamespace(requests=[], headers=[], answer=None, models=["tiny", "other"], gone=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def send(self, status, body, kind="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def begin(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def piece(self, data):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        def say(self, text):
            self.piece(b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n")

        def do_GET(self):
            state.headers.append(self.headers)
            self.send(200, json.dumps({"data": [{"id": name} for name in state.models]}).encode())

        def do_POST(self):
            state.headers.append(self.headers)
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, request))
            try:
                state.answer(self, request)
            except OSError:
                state.gone.set()
            self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    http.server_close()


def echo(handler, request):
    """Say what was said last, in pieces, as servers do: the role first, a ping, the usage last."""
    handler.begin()
    handler.piece(b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}\n\n: ping\n\n')
    said = f"<{request['messages'][-1]['content']}>"
    handler.say(said[:2])
    handler.say(said[2:])
    handler.piece(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: {"choices": []}\n\n')
    handler.piece(b"data: [DONE]\n\n")
    handler.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def talk(monkeypatch, capsys):
    """Run `lowbit chat` in this process with lines from a pipe."""

    def run(lines, *argv):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        status = cli.main(["chat", *argv])
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())

    return run


def test_a_conversation_is_held_and_only_what_was_asked_for_is_sent(server, talk, tmp_path):
    server.answer = echo
    lines = f"Ä\n//two\n/system Be kind.\nthree\n/save {tmp_path}/a.json\n/nonsense\n"
    out = talk(lines, "--url", server.url, "--system", "S", "--seed", "4", "--stop", "x")
    assert (out.status, out.out) == (0, "<Ä>\n</two>\n<three>\n")
    assert "no command /nonsense" in out.err
    first, second, third = (request for path, request in server.requests)
    assert {path for path, _ in server.requests} == {"/v1/chat/completions"}
    system = {"role": "system", "content": "S"}
    said = [{"role": "user", "content": "Ä"}]
    assert first == {"model": "tiny", "messages": [system, *said], "stream": True, "seed": 4, "stop": ["x"]}
    answered = [*said, {"role": "assistant", "content": "<Ä>"}, {"role": "user", "content": "/two"}]
    assert second == {**first, "messages": [system, *answered], "seed": 5}
    assert third["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "three"}]
    assert json.loads((tmp_path / "a.json").read_text())[-1] == {"role": "assistant", "content": "<three>"}


def test_the_model_is_the_first_or_the_one_that_is_named(server, talk):
    server.answer = echo
    for argv, name in (([], "tiny"), (["-m", "mine"], "mine")):
        talk("Hi\n", "--url", server.url, *argv)
        assert server.requests[-1][1]["model"] == name
    server.models = []
    assert "has no models" in talk("Hi\n", "--url", server.url).err


def test_a_schema_is_sent_as_an_object(server, talk):
    server.answer = echo
    talk("Hi\n", "--url", server.url, "--json-schema", '{"type": "object"}')
    assert server.requests[0][1]["json_schema"] == {"type": "object"}
    assert "no JSON" in talk("Hi\n", "--url", server.url, "--json-schema", "{]").err


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_the_path_of_the_interface_may_be_left_out(server, talk, path):
    server.answer = echo
    assert talk("Hi\n", "--url", server.url + path).out == "<Hi>\n"
    assert server.requests[0][0] == "/v1/chat/completions"


def test_another_path_is_taken_as_it_is(server, talk):
    server.answer = echo
    talk("Hi\n", "--url", server.url + "/api/openai/")
    assert server.requests[0][0] == "/api/openai/chat/completions"


def test_the_key_is_sent_from_the_option_or_the_environment(server, talk, monkeypatch):
    server.answer = echo
    monkeypatch.delenv("LOWBIT_API_KEY", raising=False)
    talk("Hi\n", "--url", server.url)
    assert [headers["Authorization"] for headers in server.headers] == [None, None]
    monkeypatch.setenv("LOWBIT_API_KEY", "from-environment")
    talk("Hi\n", "--url", server.url)
    assert server.headers[-1]["Authorization"] == "Bearer from-environment"
    talk("Hi\n", "--url", server.url, "--api-key", "given")
    assert server.headers[-1]["Authorization"] == "Bearer given"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--url", "127.0.0.1:8080"], "no address"),
        (["--url", "ftp://host"], "no address"),
        (["--url", "http://"], "no address"),
        (["--url", "http://a:b@host"], "no address"),
        (["--url", "http://host:port"], "Port could not be cast"),
        (["--url", "http://host/a b"], "characters"),
        (["--url", "http://host", "--api-key", "a\r\nX: y"], "API key"),
        (["--url", "http://host", "--template", "llama3"], "--template is for models on this machine"),
        (["--url", "http://host", "--max-ram", "1GB"], "--max-ram is for models on this machine"),
        (["--api-key", "x"], "--api-key needs --url"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_what_cannot_be_asked_is_one_line(talk, argv, said):
    out = talk("Hi\n", *argv)
    assert (out.status, out.out) == (2, "")
    assert said in out.err
    assert out.err.count("\n") == 1


def refusing(status, body, kind="application/json"):
    return lambda handler, request: handler.send(status, body, kind)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusing(400, b'{"error": {"message": "too long", "code": 400}}'), "answers 400: too long"),
        (refusing(401, b'{"error": "no key"}'), "answers 401: no key"),
        (refusing(422, b'{"detail": [{"loc": 1}]}'), 'answers 422: [{"loc": 1}]'),
        (refusing(500, b"<p>\x1b[2J down</p>"), "answers 500: <p>\\x1b[2J down</p>"),
        (refusing(503, b""), "answers 503: Service Unavailable"),
        (refusing(302, b""), "answers 302"),
        (refusing(200, b"<html>"), "no JSON object: <html>"),
        (refusing(200, b"[" * 100000), "no JSON object"),
        (refusing(200, b'{"error": {"message": "late"}}'), "reports: late"),
        (refusing(200, b'data: {"error": {"message": "in the stream"}}\n\n', "text/event-stream"), "in the stream"),
        (refusing(200, b'data: {"choices": [3]}\n\n', "text/event-stream"), "no text"),
        (refusing(200, b'data: {"choices": {"a": 3}}\n\n', "text/event-stream"), "no text"),
        (refusing(200, b'data: {"choices": [{"delta": {"content": 3}}]}\n\n', "text/event-stream"), "no text"),
        (refusing(200, b"data: nonsense\n\n", "text/event-stream"), "no JSON object"),
        (refusing(200, b"", "text/event-stream"), "ended the connection within the answer"),
        (lambda handler, request: None, "ended the connection"),
        (lambda handler, request: handler.wfile.write(b"\0\1\2\r\n\r\n"), "ended the connection"),
    ],
)
def test_an_error_of_the_server_is_said_and_the_conversation_goes_on(server, talk, monkeypatch, answer, said):
    calls = []

    def once(handler, request):
        calls.append(request)
        return answer(handler, request) if len(calls) == 1 else echo(handler, request)

    server.answer = once
    out = talk("one\ntwo\n", "--url", server.url)
    assert (out.status, out.out) == (0, "<two>\n")
    assert said in out.err
    assert "\x1b" not in out.err
    assert calls[1]["messages"] == [{"role": "user", "content": "two"}], "what was not answered was not said"


def test_an_answer_that_is_cut_off_stays_and_the_reason_is_said(server, talk, tmp_path):
    def cut(handler, request):
        handler.begin()
        handler.say("half")

    server.answer = cut
    out = talk(f"one\n/save {tmp_path}/a.json\n", "--url", server.url)
    assert out.out == "half\n"
    assert "ended the connection" in out.err
    assert [one["content"] for one in json.loads((tmp_path / "a.json").read_text())] == ["one", "half"]


def test_what_a_model_thinks_goes_to_standard_error_and_is_not_said(server, talk, tmp_path):
    def think(handler, request):
        handler.begin()
        for text in ("Hm, ", "well."):
            delta = {"choices": [{"delta": {"reasoning_content": text}}]}
            handler.piece(b"data: " + json.dumps(delta).encode() + b"\n\n")
        handler.say("Yes.")
        handler.piece(b"data: [DONE]\n\n")

    server.answer = think
    out = talk(f"Hi\n/save {tmp_path}/a.json\n", "--url", server.url)
    assert out.out == "Yes.\n"
    assert out.err.startswith("Hm, well.\n")
    assert [one["content"] for one in json.loads((tmp_path / "a.json").read_text())] == ["Hi", "Yes."]


def test_a_whole_answer_in_place_of_a_stream_is_taken(server, talk):
    server.answer = refusing(200, b'{"choices": [{"message": {"role": "assistant", "content": "whole"}}]}')
    assert talk("Hi\n", "--url", server.url).out == "whole\n"


def test_closing_an_answer_closes_the_connection(server):
    def on(handler, request):
        handler.begin()
        while True:
            handler.say("on and on ")

    server.answer = on
    chat = RemoteChat(Server(server.url))
    answer = chat.stream("Hi")
    assert next(answer) == "on and on "
    answer.close()
    assert server.gone.wait(60)
    assert [one["content"] for one in chat.messages] == ["Hi", "on and on "]


@pytest.mark.skipif(os.name == "nt", reason="needs a signal that stops one thing")
def test_ctrl_c_before_the_first_piece_closes_the_connection_too(server):
    asked = threading.Event()

    def silent(handler, request):
        asked.set()
        assert handler.rfile.read(1) == b""
        server.gone.set()

    server.answer = silent
    command = [sys.executable, "-m", "lowbit", "chat", "--url", server.url, "-m", "x"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, text=True, **pipes, **reset)
    try:
        process.stdin.write("Hi\n")
        process.stdin.flush()
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        assert server.gone.wait(60)
        _, err = process.communicate("/quit\n", timeout=1200)
        assert process.returncode == 0, "the program goes on"
        assert "[stopped]" in err
    finally:
        process.kill()
        process.wait()
