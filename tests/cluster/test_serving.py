"""A model served on a real cluster of Ray; the tests before `served` are those for which nothing may be served yet."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from served_cluster import Served, Stream, client_of, command, free_port, httpx, ray, serve
from small_model import write_small_model

import lowbit

pytestmark = pytest.mark.ray
LONG = {"ignore_eos": True, "seed": 1}
CONTEXT = 65536
DOCS = Path(__file__).parents[2] / "docs"


def refused(cluster, *arguments):
    _, line = command(cluster.address, *arguments)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stderr


@pytest.mark.long
def test_a_model_that_a_node_cannot_load_is_one_line_that_names_the_node(cluster):
    said = refused(cluster, "-m", "/nowhere/model.gguf")
    assert re.fullmatch(r"lowbit: error: node \S+ \(\w{8}\): .*/nowhere/model.gguf.*\n", said)


@pytest.mark.long
def test_another_version_on_a_node_is_one_line_that_names_the_node(cluster, odd_node):
    said = refused(cluster)
    assert re.fullmatch(r"lowbit: error: node \S+ \(\w{8}\) has another version than the others: lowbit-9.9.9\n", said)


@pytest.mark.long
def test_more_replicas_than_there_is_room_for_are_refused(cluster):
    said = refused(cluster, "--replicas", "1:3")
    assert said == "lowbit: error: the cluster has room for 2 replicas of 1 processors, not for 3\n"


def test_a_deployment_may_have_a_route_of_its_own(cluster):
    """As docs/scale.md has it, whose block runs here as it stands there."""
    [block] = re.findall(r"```python\n(from ray import serve.*?)```", DOCS.joinpath("scale.md").read_text(), re.S)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    try:
        port = free_port()
        serve.start(http_options={"port": port}, proxy_location="HeadOnly")
        exec(compile(block, "block", "exec"), {"__name__": "pasted"})
        url = f"http://127.0.0.1:{port}/stories"
        asked = {"prompt": "Once upon a time", "max_tokens": 8, "seed": 1}
        answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json()
        assert answer["choices"][0]["text"] == lowbit.load(threads=1).generate(asked.pop("prompt"), **asked).text
        assert httpx.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
        assert refused(cluster).startswith("lowbit: error: the cluster serves something else already: stories; ")
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    """Two replicas of a model whose texts last as long as a test wants."""
    model = write_small_model(tmp_path_factory.mktemp("served") / "long.gguf", CONTEXT)
    served = Served(cluster.address, "-m", model, "--context", CONTEXT, "--parallel", 4, "--queue", 8)
    served.model = model
    yield served
    status, said = served.stop()
    assert (status, said) == (0, ""), "it has ended in order and said nothing"


def test_an_answer_is_that_of_one_process(served):
    model = lowbit.load(str(served.model), threads=1, context=CONTEXT)
    for seed in range(4):
        asked = {"prompt": f"once upon {seed}", "max_tokens": 24, "seed": seed}
        wanted = model.generate(asked["prompt"], max_tokens=24, seed=seed).text
        assert served.post("/v1/completions", **asked).json()["choices"][0]["text"] == wanted

        async def stream(prompt=asked["prompt"], seed=seed):
            async with client_of(served.url) as client:
                stream = Stream(client, prompt=prompt, n_predict=24, seed=seed)
                await stream.task
                return stream

        stream = asyncio.run(stream())
        assert (stream.text, stream.error, stream.whole) == (wanted, None, True)
        assert stream.events > 1


def test_a_request_that_is_refused_says_why(served):
    assert served.http.get("/nowhere").status_code == 404
    answer = served.post("/v1/completions", prompt="a", max_tokens="many")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    assert served.http.get("/health").json() == {"status": "ok"}


def test_clients_that_leave_free_their_blocks_on_the_replicas(served):
    before = served.until_idle(2)

    async def leave():
        async with client_of(served.url) as client:
            # as many as one replica takes at a time: asked at once, all may go to the same
            streams = [Stream(client, **LONG, prompt=f"{i} upon", n_predict=60_000) for i in range(4)]
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
            stats = await asyncio.to_thread(served.stats, 2)
            assert sum(one["running"] for one in stats.values()) == 4
            assert any(one["kv"]["held"] for one in stats.values())
            for stream in streams:
                stream.task.cancel()
            await asyncio.wait([stream.task for stream in streams])

    asyncio.run(leave())
    after = served.until_idle(2)
    assert sum(after[pid]["cancelled"] - before[pid]["cancelled"] for pid in before) == 4


def test_requests_that_begin_alike_meet_at_one_replica(served):
    before = served.until_idle(2)
    text = "once upon a time there was a cat and a dog and a house " * 6
    for i in range(6):
        assert served.post("/v1/completions", prompt=f"{text}{i}", max_tokens=1).status_code == 200
    after = served.until_idle(2)
    finished = [after[pid]["finished"] - before[pid]["finished"] for pid in before]
    assert sorted(finished) == [0, 6]


@pytest.mark.long
def test_a_replica_that_is_killed_ends_its_own_streams_alone(served):
    before = served.until_idle(2)

    async def kill():
        async with client_of(served.url) as client:
            streams = [Stream(client, **LONG, prompt=f"{i} upon", n_predict=4000) for i in range(8)]
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
            stats = await asyncio.to_thread(served.stats, 2)
            victim = max(stats, key=lambda pid: stats[pid]["running"])
            os.kill(victim, signal.SIGKILL)
            await asyncio.wait([stream.task for stream in streams])
            again = [Stream(client, **LONG, prompt=f"{i} upon", n_predict=8) for i in range(8)]
            await asyncio.wait([stream.task for stream in again])
            return served.given(before, stats)[victim], streams, again

    given, streams, again = asyncio.run(kill())
    lost = [stream.error for stream in streams if not stream.whole]
    assert 1 <= len(lost) <= given < 8
    assert {error["code"] for error in lost} == {"replica_lost"}
    assert all(stream.error is None for stream in streams if stream.whole)
    assert all(stream.whole and stream.error is None for stream in again), "another one serves them"
    served.until_idle(2)


@pytest.mark.long
def test_a_second_server_on_a_cluster_is_refused(cluster, served):
    assert refused(cluster) == "lowbit: error: lowbit is being served on this cluster already\n"


@pytest.mark.parametrize("replicas", ["0", "3:2", "a", "1:", "1:2:3"])
def test_replicas_are_one_number_or_two(replicas, capsys):
    from lowbit.cli import main

    assert main(["serve", "--ray", "127.0.0.1:1", "--replicas", replicas]) == 2
    assert "must be a number, or two as 1:8" in capsys.readouterr().err


def test_a_busy_replica_comes_after_the_others():
    from lowbit.ray.routing import rank

    idle = dict.fromkeys("abcd", 0)
    for key in range(20):
        first = rank(key, idle, 2)
        assert rank(key, {**idle, first[0]: 1}, 2) == first, "it is not full yet"
        assert rank(key, {**idle, first[0]: 2}, 2) == [*first[1:], first[0]]
        assert rank(key, dict.fromkeys(idle, 5), 2) == first, "all are as busy"
        fewer = {name: 0 for name in "abcd" if name != first[0]}
        assert rank(key, fewer, 2) == first[1:], "one that goes moves its own requests alone"


def test_all_turns_of_a_conversation_have_one_key():
    from lowbit.ray.routing import key_of
    from lowbit.serve.http import encode

    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    longer = [*talk, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "How are you?"}]
    other = [talk[0], {"role": "user", "content": "Good day"}]
    assert key_of(encode({"messages": talk})) == key_of(encode({"messages": longer, "seed": 1}))
    assert key_of(encode({"messages": talk})) != key_of(encode({"messages": other}))
    assert key_of(encode({"prompt": "a" * 300})) == key_of(encode({"prompt": "a" * 400}))
    assert key_of(encode({"prompt": "a"})) != key_of(encode({"prompt": "b"}))
    for odd in (b"", b"[1]", b"{", b"[" * 100_000, b'{"messages": [1, {"role": []}]}', b'{"input": "\\ud800"}'):
        key_of(odd)
