"""Keys, names, origins, the path of events, what is said and what is kept to itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from server_process import Server, parse_events

import lowbit
from lowbit.serve import App, Service, Settings

KEY = "sk-ünsaid-7"


@pytest.fixture(scope="session")
def guarded(tmp_path_factory):
    """A server with keys, origins, names, and a log."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"other\n{KEY}\n", encoding="utf-8")
    server = Server("--api-key-file", keys, "--cors", "http://a.example", "--allow-host", "Models.example", "-t", 1,
                    "--alias", "*", "--max-body", "10KB", "--seed", 5, "-n", 6, "--log-requests")  # fmt: skip
    yield server
    status, said = server.stop()
    assert status == 0
    assert "POST /v1/completions 200" in said
    assert "Once upon" not in said, "a log without prompts"
    assert KEY not in said


def test_a_key_is_wanted_everywhere_but_for_health(guarded):
    assert guarded.get("/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/metrics", "/props", "/slots", "/openapi.json", "/nothing"):
        assert guarded.get(path).status_code == 401, path
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}".encode()},
                    {"x-api-key": ""}, {"authorization": "Bearer"}, {"x-api-key": KEY[:-1].encode()}):  # fmt: skip
        answer = guarded.post("/v1/messages", {}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    for headers in ({"authorization": "Bearer other"}, {"authorization": "bearer other"}, {"x-api-key": "other"},
                    {"x-api-key": KEY.encode()}):  # fmt: skip
        assert guarded.get("/v1/models", headers=headers).status_code == 200


def test_a_page_reads_answers_only_where_its_origin_was_named(guarded, server):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    for origin, allowed in (("http://a.example", "http://a.example"), ("http://b.example", None), ("null", None)):
        headers = {"origin": origin, "x-api-key": "other"}
        found = guarded.get("/v1/models", headers=headers)
        assert found.headers.get("access-control-allow-origin") == allowed
        before = guarded.http.request("OPTIONS", "/v1/completions", headers={"origin": origin, **asked})
        assert before.headers.get("access-control-allow-origin") == allowed
        assert ("access-control-allow-headers" in before.headers) == (allowed is not None)
        assert not any(name.startswith("access-control") for name in server.get(
            "/v1/models", headers={"origin": origin}).headers)  # fmt: skip
    assert guarded.get("/health", headers={"host": "models.EXAMPLE:99"}).status_code == 200
    assert guarded.get("/health", headers={"host": "evil.example"}).status_code == 403


def test_options_of_the_command_are_defaults_of_requests(guarded):
    headers = {"x-api-key": "other"}
    model = lowbit.load(threads=1)
    body = {"prompt": "Once upon a time", "model": "anything"}
    text = guarded.post("/v1/completions", body, headers=headers).json()["choices"][0]["text"]
    assert text == model.generate("Once upon a time", seed=5, max_tokens=6).text
    text = guarded.post("/v1/completions", {**body, "seed": 6}, headers=headers).json()["choices"][0]["text"]
    assert text == model.generate("Once upon a time", seed=6, max_tokens=6).text
    assert guarded.post("/v1/completions", {"prompt": "x" * 11_000}, headers=headers).status_code == 413
    params = guarded.get("/props", headers=headers).json()["default_generation_settings"]["params"]
    assert (params["seed"], params["n_predict"]) == (5, 6)


def test_events_are_whole_and_in_order(server, story):
    body = {"messages": story, "max_tokens": 5, "seed": 1, "stream_options": {"include_usage": True}}
    events = server.events("/v1/chat/completions", body)
    assert events[-1] == (None, "[DONE]")
    chunks = [data for _, data in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "timings" not in chunks[0]
    assert all("role" not in c["choices"][0]["delta"] for c in chunks[1:-1])
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 5)
    assert len({c["id"] for c in chunks}) == 1
    native = server.events("/completion", {"prompt": "Once", "n_predict": 5, "seed": 1})
    assert [data["stop"] for _, data in native] == [False] * (len(native) - 1) + [True]
    tokens = [token for _, data in native[:-1] for token in data["tokens"]]
    assert tokens == lowbit.load(threads=1).generate("Once", max_tokens=5, seed=1).tokens


def test_native_paths(server, model):
    ids = server.post("/tokenize", {"content": "Once upon<|im_end|>", "add_special": True}).json()["tokens"]
    assert ids == model.tokenizer.encode("Once upon<|im_end|>", parse_special=True)
    assert server.post("/detokenize", {"tokens": ids[1:-1]}).json() == {"content": "Once upon"}
    pieces = server.post("/tokenize", {"content": "媽🤗", "with_pieces": True}).json()["tokens"]
    assert b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode()
                    for p in pieces).decode().strip() == "媽🤗"  # fmt: skip
    one = server.post("/completion", {"prompt": "Once", "n_predict": 3, "temperature": 0, "return_tokens": True,
                                      "n_probs": 2, "stop": ["zzz"]}).json()  # fmt: skip
    want = model.generate("Once", max_tokens=3, temperature=0, logprobs=2)
    assert (one["content"], one["tokens"], one["stop_type"]) == (want.text, want.tokens, "limit")
    assert [p["id"] for p in one["completion_probabilities"]] == want.tokens
    assert [len(p["top_logprobs"]) for p in one["completion_probabilities"]] == [2, 2, 2]
    few = server.post("/completion", {"prompt": "Once", "n_predict": 3, "seed": 1,
                                      "response_fields": ["content", "generation_settings/seed"]}).json()  # fmt: skip
    assert set(few) == {"content", "generation_settings/seed"}
    mixed = server.post("/completion", {"prompt": [[1, 403, "upon"], "Once"], "n_predict": 2}).json()
    assert [one["tokens_evaluated"] for one in mixed] == [3, 2]
    eos = server.post("/completion", {"prompt": "Once", "n_predict": 2, "ignore_eos": True}).json()
    assert {e["token"] for e in eos["generation_settings"]["logit_bias"]} == set(model._ends)
    assert server.post("/apply-template", {"messages": [{"role": "user", "content": "<s>Hi"}]}).json() == {
        "prompt": "<|im_start|>user\n<s>Hi<|im_end|>\n<|im_start|>assistant\n"}  # fmt: skip
    slots = server.get("/slots").json()
    assert len(slots) == 8
    assert "prompt" not in slots[0]
    text = server.get("/metrics").text
    for line in text.splitlines():
        name = line.split()[2 if line.startswith("#") else 0].partition("{")[0]
        assert name.startswith(("lowbit_", "llamacpp:"))
    assert server.metric("tokens_total") > 0


def test_the_description_of_the_api_has_every_path_and_field(server):
    paths = server.get("/openapi.json").json()["paths"]
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "temperature", "tools", "response_format", "min_p"} <= set(chat["properties"])
    assert chat["required"] == ["messages"]
    assert not chat["additionalProperties"]


# --- the application in this process ---


def get(app, path):
    """The status and the object that a GET gets."""
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def ask():
        scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost")]}
        await app(scope, receive, send)

    asyncio.run(ask())
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_knows_whether_the_model_is_there_and_the_engine_lives():
    service = Service(Settings(), lambda: lowbit.load(threads=1))
    app = App(service)
    status, body = get(app, "/health")
    assert (status, body["error"]["code"]) == (503, "loading")
    service.load()
    assert get(app, "/health") == (200, {"status": "ok"})
    service.engine.submit("Once", max_tokens=1).result()
    assert get(app, "/health") == (200, {"status": "ok"})

    def broken():
        raise SystemError("broken")

    service.engine._settle = broken
    service.engine.submit("Once", max_tokens=1)
    service.engine._thread.join()
    for path in ("/health", "/v1/models"):
        status, body = get(app, path)
        assert (status, body["error"]["code"]) == (503, "engine_dead")


def test_a_stream_is_kept_awake_while_nothing_comes(long_path):
    """A comment comes in each silence that is longer than the settings say."""
    service = Service(Settings(ping_seconds=0.01), lambda: lowbit.load(long_path, threads=1))
    service.load()
    app, sent = App(service), []
    body = json.dumps({"prompt": [5 + i % 200 for i in range(6000)], "max_tokens": 1, "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        return messages.pop() if messages else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    asyncio.run(app({"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}, receive, send))
    service.close()
    events = parse_events(b"".join(m["body"] for m in sent[1:]).decode())
    assert (None, "ping") in events
    assert events[-1] == (None, "[DONE]")


# --- the command ---


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "lowbit", "serve", *arguments], capture_output=True, encoding="utf-8",
                          timeout=1200, check=False)  # fmt: skip


def test_the_manual_lists_every_path_and_every_field():
    import dataclasses

    from lowbit.serve.app import ROUTES

    done = command("--help")
    assert done.returncode == 0
    for path, (_, _, table) in ROUTES.items():
        assert f" {path}" in done.stdout
        for field in dataclasses.fields(table) if table is not None else ():
            assert f"    {field.name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "no-such-file.gguf"], "no-such-file.gguf"),
        (["--port", "70000"], "port"),
        (["--temperature", "-1"], "temperature"),
        (["--max-body", "x"], "size"),
        (["--host", "203.0.113.7"], "cannot listen"),
        (["--api-key", ""], "key"),
        (["--chat-template", "no-such"], "no-such"),
        (["--step-ms", "0"], "step_ms"),
        (["--step-ms", "nan"], "step_ms"),
        (["--kv-ram", "x"], "kv"),
        (["--batch", str(1 << 40)], "batch"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(arguments, words):
    done = command("--port", "0", *arguments)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("lowbit: error: ")
    assert words in last.lower()
