"""Fields and options of llama.cpp's server: each has its effect, or is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from server_process import Server

PROMPT = "Once upon a time there was a cat that lived in a house with a dog and a bird and a fish"


@pytest.fixture(scope="session")
def odd():
    """A server that was started with all that others are not."""
    server = Server("--parallel", 2, "-t", 1, "--batch", 8, "--no-page", "--no-slots", "--no-metrics", "--show-prompts",
                    "--tag", "small", "--tag", "stories", "--alias", "b", "--alias", "a", "--pooling", "none",
                    "--cors", "localhost", "--reasoning", "off")  # fmt: skip
    yield server
    assert server.stop() == (0, "")


# --- streams ---


def test_each_event_has_the_tokens_of_its_text(server, model):
    body = {"prompt": PROMPT, "n_predict": 40, "seed": 2, "n_probs": 3}
    parts = [data for _, data in server.events("/completion", body)][:-1]
    assert [len(part["tokens"]) for part in parts] == [1] * len(parts)
    assert [[p["id"] for p in part["completion_probabilities"]] for part in parts] == [part["tokens"] for part in parts]
    tokenizer = model.tokenizer
    for part in parts:
        assert part["content"] == tokenizer.stream_decoder(first=False).push(part["tokens"][0])


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_progress_counts_the_prompt_from_what_is_known_to_all_of_it(odd, path):
    talk = [{"role": "user", "content": f"{path} {PROMPT}"}]
    body = {"/v1/chat/completions": {"messages": talk}, "/v1/responses": {"input": talk}}.get(path, {"prompt": PROMPT})
    for known in (False, True):
        events = odd.events(path, {**body, "temperature": 0, "return_progress": True, "timings_per_token": True})
        steps = [data for _, data in events if "prompt_progress" in data]
        counts = [step["prompt_progress"] for step in steps]
        first, last = counts[0], counts[-1]
        assert first["processed"] == first["cache"]
        assert not known or first["cache"] == first["total"] - 1
        done = [count["processed"] for count in counts]
        assert done == [*range(first["cache"], last["total"], 8), last["total"]]
        assert {(count["total"], count["cache"]) for count in counts} == {(last["total"], first["cache"])}
        times = [step["timings"] for step in steps]
        assert (times[0]["prompt_n"], times[0]["prompt_ms"]) == (0, 0)
        assert [t["prompt_n"] for t in times] == [n - first["cache"] for n in done]
        assert [t["prompt_ms"] for t in times] == sorted(t["prompt_ms"] for t in times)
        assert {t["predicted_n"] for t in times} == {0}


def test_without_being_asked_nobody_hears_of_progress(odd):
    assert not any(
        "prompt_progress" in data for _, data in odd.events("/completion", {"prompt": PROMPT, "n_predict": 2})
    )


# --- probabilities ---


def test_drawn_by_probabilities_are_those_after_all_cuts(server, model):
    body = {"prompt": PROMPT, "n_predict": 6, "seed": 4, "n_probs": 5, "post_sampling_probs": True, "top_p": 1.0,
            "min_p": 0.0, "temperature": 1.0}  # fmt: skip
    free = server.post("/completion", {**body, "top_k": 0}).json()["completion_probabilities"]
    want = model.generate(PROMPT, max_tokens=6, seed=4, logprobs=5, top_p=1.0, temperature=1.0, top_k=0).logprobs
    assert [one["id"] for one in free] == [one.token for one in want]
    assert [one["prob"] for one in free] == pytest.approx([math.exp(one.logprob) for one in want], rel=1e-4)
    for one, other in zip(free, want):
        assert [p["id"] for p in one["top_probs"]] == [token for token, _, _ in other.top]
    few = server.post("/completion", {**body, "top_k": 3}).json()["completion_probabilities"]
    assert [len(one["top_probs"]) for one in few] == [3] * 6
    assert [sum(p["prob"] for p in one["top_probs"]) for one in few] == pytest.approx([1] * 6)
    sure = server.post("/completion", {**body, "temperature": 0}).json()["completion_probabilities"]
    assert [(one["prob"], len(one["top_probs"])) for one in sure] == [(1, 1)] * 6


def test_steps_that_there_are_not_may_be_switched_off_and_are_said_to_be(server):
    off = {"typical_p": 1.0, "dynatemp_range": 0, "xtc_probability": 0.0, "dry_multiplier": 0, "mirostat": 0,
           "repeat_last_n": 64, "adaptive_target": -1}  # fmt: skip
    body = {"prompt": PROMPT, "n_predict": 5, "seed": 4}
    one, other = (server.post("/completion", asked).json() for asked in (body, {**body, **off}))
    assert one["content"] == other["content"]
    assert off.items() <= one["generation_settings"].items()


# --- texts that go on, and what ended them ---


def test_what_stopped_a_text_is_told(server, model):
    text = model.generate(PROMPT, max_tokens=30, seed=3).text
    word = text.split()[3]
    body = {"prompt": PROMPT, "n_predict": 30, "seed": 3, "stop": ["NOBODY", word]}
    answer = server.post("/completion", body).json()
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", word)
    assert answer["content"] == text[: text.index(word)]
    assert server.events("/completion", body)[-1][1]["stopping_word"] == word


def test_a_prompt_is_shown_as_the_model_reads_it(server, odd, model):
    answer = server.post("/completion", {"prompt": "Once", "n_predict": 1}).json()
    assert answer["prompt"] == "<s> Once"
    hello = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    shown = odd.post("/v1/chat/completions", hello).json()["__verbose"]["prompt"]
    assert shown.startswith("<s><|im_start|>")
    assert "__verbose" not in odd.post("/v1/chat/completions", {**hello, "verbose": False}).json()
    assert "__verbose" not in server.post("/v1/chat/completions", hello).json()


# --- embeddings ---


def test_inputs_of_embeddings_may_be_mixed(server, model):
    ids = model.tokenizer.encode("Hi")
    texts = ["cat dog", {"prompt_string": "cat dog"}, {"content": [{"type": "text", "text": "cat "}, {"type": "text",
             "text": "dog"}]}, [*ids, "cat"], [*ids, *model.tokenizer.encode("cat", add_bos=False)]]  # fmt: skip
    found = [one["embedding"] for one in server.post("/v1/embeddings", {"input": texts}).json()["data"]]
    assert found[0] == found[1] == found[2] != found[3] == found[4]
    alone = server.post("/v1/embeddings", {"input": texts[3]}).json()["data"]
    assert [one["embedding"] for one in alone] == [found[3]]


def test_vectors_that_are_not_pooled_are_those_of_all_tokens(odd, model):
    found = odd.post("/embeddings", {"input": ["Once upon a time", "cat"]}).json()
    assert [one["index"] for one in found] == [0, 1]
    vectors = np.array(found[0]["embedding"], np.float32)
    assert len(vectors) == len(model.tokenizer.encode("Once upon a time"))
    assert (vectors[-1] == model.embed("Once upon a time", "last")[0]).all()
    assert (vectors[0] == model.embed("Once upon a time", "first")[0]).all()
    assert odd.post("/v1/embeddings", {"input": "cat"}).status_code == 400
    assert odd.post("/embeddings", {"input": "cat", "encoding_format": "base64"}).status_code == 400


# --- options of the command ---


def test_paths_can_be_switched_off(odd):
    assert [odd.get(path).status_code for path in ("/slots", "/metrics", "/", "/page/app.js")] == [501, 501, 404, 404]
    assert odd.get("/slots").json()["error"]["type"] == "not_supported_error"


def test_a_model_has_aliases_and_tags(odd):
    entry = odd.get("/v1/models").json()["data"][0]
    assert (entry["id"], entry["aliases"], entry["tags"]) == ("b", ["b", "a"], ["small", "stories"])


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True), ("https://localhost:8080", True), ("http://127.0.0.1:3000", True),
        ("http://[::1]", True), ("http://[::1]:3000", True), ("http://127.5.5.5", True),
        ("http://evil.com", False), ("http://notlocalhost", False), ("http://localhost.evil.com", False),
        ("http://localhost@evil.com", False), ("http://evil.com#localhost", False), ("http://localhost/", False),
        ("http://localhost:x", False), ("file://localhost", False), ("http://[::1", False), ("null", False),
        ("http://10.0.0.1", False),
    ],
)  # fmt: skip
def test_pages_of_this_machine_may_be_named_together(odd, origin, allowed):
    for method, path in (("OPTIONS", "/completion"), ("GET", "/v1/models")):
        answer = odd.http.request(method, path, headers={"origin": origin, "access-control-request-method": "POST"})
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "access-control-allow-credentials" not in answer.headers


def test_it_listens_at_several_addresses():
    import httpx

    server = Server("--host", "127.0.0.1,127.0.0.2", "-t", 1)
    assert httpx.get(f"http://127.0.0.2:{server.port}/health").json() == {"status": "ok"}
    assert server.get("/health").json() == {"status": "ok"}
    status, said = server.stop()
    assert (status, said) == (0, "")


# --- metrics ---


def test_counts_have_the_names_of_llamas_server_too(model):
    server = Server("-t", 1, "--parallel", 2)
    before = server.get("/metrics")
    assert b"Process-Start-Time-Unix" in [name for name, _ in before.headers.raw]
    times = [server.post("/completion", {"prompt": PROMPT, "n_predict": n}).json()["timings"] for n in (1, 5)]
    values, kinds = {}, {}
    for line in server.get("/metrics").text.splitlines():
        words = line.split(" ")
        if line.startswith("# TYPE llamacpp:"):
            kinds[words[2]] = words[3]
        elif line.startswith("llamacpp:"):
            values[words[0].removeprefix("llamacpp:")] = float(words[1])
            assert kinds[words[0]] in ("counter", "gauge")
    assert values["prompt_tokens_total"] == sum(t["prompt_n"] for t in times)
    assert values["prompt_tokens_cached_total"] == sum(t["cache_n"] for t in times) > 0
    assert values["tokens_predicted_total"] == 6
    assert values["n_tokens_max"] == len(model.tokenizer.encode(PROMPT)) + 5
    assert values["n_decode_total"] == server.metric("steps_total")
    assert values["requests_processing"] == values["spec_decode_num_drafts_total"] == 0
    assert 0 < values["n_busy_slots_per_decode"] <= 1
    assert values["prompt_seconds_total"] > 0
    assert server.stop()[0] == 0


def test_a_text_that_ignores_its_ends_is_as_long_as_asked(server, story):
    asked = {"temperature": 0, "ignore_eos": True}
    chat = {"messages": story, **asked}
    ended = server.post("/v1/chat/completions", {"messages": story, "temperature": 0}).json()
    most = ended["usage"]["completion_tokens"] + 5
    assert ended["choices"][0]["finish_reason"] == "stop"
    for path, body, made in (
        ("/v1/chat/completions", {**chat, "max_tokens": most}, ("usage", "completion_tokens")),
        ("/v1/responses", {"input": story, **asked, "max_output_tokens": most}, ("usage", "output_tokens")),
        ("/v1/completions", {"prompt": "Once upon", **asked, "max_tokens": most}, ("usage", "completion_tokens")),
    ):
        answer = server.post(path, body)
        assert answer.status_code == 200, answer.text
        assert answer.json()[made[0]][made[1]] == most
