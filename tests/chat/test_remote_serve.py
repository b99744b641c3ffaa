"""`lowbit chat --url` with the real server of this package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest

import lowbit
from lowbit.chat import ChatSession
from lowbit.chat.remote import RemoteChat, Server

pytest.importorskip("lowbit.serve", reason="there is no server in this build")
pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "lowbit", "serve", "--port", "0", "--api-key", "secret", "-t", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"http://[0-9.]+:[0-9]+", line):
                yield found[0]
                break
    finally:
        process.terminate()
        process.communicate(timeout=1200)


def test_a_conversation_reads_as_with_the_model_on_this_machine(url):
    sampling = {"seed": 7, "max_tokens": 24, "temperature": 0.7, "top_k": 30, "stop": ["The end"]}
    here = ChatSession(lowbit.load(threads=1), system="Tell stories.")
    there = RemoteChat(Server(url, "secret"), system="Tell stories.")
    assert there.model == "lowbit-tiny"
    for text in ("A cat and a dog.", "And then?"):
        assert "".join(there.stream(text, **sampling)) == "".join(here.stream(text, **sampling))
    assert there.messages == here.messages
    assert len(there.messages) == 5


def test_an_answer_that_is_closed_is_not_made_any_further(url):
    chat = RemoteChat(Server(url, "secret"))
    answer = chat.stream("Hi", max_tokens=400, seed=1)
    assert next(answer)
    answer.close()
    end = time.monotonic() + 60
    while True:
        request = urllib.request.Request(f"{url}/slots", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=1200) as response:
            if not any(slot["is_processing"] for slot in json.load(response)):
                break
        assert time.monotonic() < end
    assert len(chat.messages) == 2


def test_what_the_server_refuses_is_its_own_words(url):
    with pytest.raises(lowbit.RemoteError, match=r"answers 401: .*API key"):
        RemoteChat(Server(url))
    with pytest.raises(lowbit.RemoteError, match="answers 404: there is no model of that name"):
        list(RemoteChat(Server(url, "secret"), model="nope").stream("Hi"))
    with pytest.raises(lowbit.RemoteError, match="answers 400: "):
        list(RemoteChat(Server(url, "secret")).stream("Hi", nonsense=1))
