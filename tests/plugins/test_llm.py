"""The plugin for llm: what people do with a model there works with ours, and says what `lowbit` says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

import lowbit

llm = pytest.importorskip("llm")
pytest.importorskip("llguidance")
PLUGIN = str(Path(__file__).parents[2] / "plugins" / "llm-lowbit")
sys.path.insert(0, PLUGIN)
plugin = pytest.importorskip("llm_lowbit")

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
          "additionalProperties": False}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def model():
    return plugin.LowbitModel("lowbit", None)


@pytest.fixture
def asynchronous():
    return plugin.AsyncLowbitModel("lowbit", None)


def test_it_says_what_the_model_says(model):
    want = lowbit.load().chat([{"role": "user", "content": "Hi"}], max_tokens=20, seed=1)
    response = model.prompt("Hi", max_tokens=20, seed=1)
    assert list(response)
    assert response.text() == want.text
    assert (response.input_tokens, response.output_tokens) == (want.prompt_tokens, len(want.tokens))


def test_asyncio_gives_the_same(model, asynchronous):
    async def ask(seed):
        return await asynchronous.prompt("Hi", max_tokens=20, seed=seed).text()

    async def all_of_them():
        return await asyncio.gather(*(ask(seed) for seed in range(3)))

    assert asyncio.run(all_of_them()) == [model.prompt("Hi", max_tokens=20, seed=i).text() for i in range(3)]


def test_a_schema_holds(model, asynchronous):
    for seed in range(3):
        assert 0 <= json.loads(model.prompt("A number", schema=SCHEMA, seed=seed).text())["n"] <= 9
    text = asyncio.run(_text(asynchronous.prompt("A number", schema=SCHEMA, seed=2)))
    assert text == model.prompt("A number", schema=SCHEMA, seed=2).text()


async def _text(response):
    return await response.text()


def test_a_conversation_remembers(model):
    talk = model.conversation()
    first = talk.prompt("Hi", max_tokens=8, seed=1).text()
    second = talk.prompt("Bye", max_tokens=8, seed=2)
    second.text()
    assert [message.role for message in second.prompt.messages] == ["user", "assistant", "user"]
    sent = plugin._messages(second.prompt)
    assert sent[1] == {"role": "assistant", "content": first}


def test_tools_are_called_and_their_results_read(model, monkeypatch):
    def get_number(of: bool) -> int:
        """A number."""
        return 7

    from lowbit.chat import tools

    real, asked = tools.ToolCalls.__init__, []
    only = {"type": "function", "function": {"name": "get_number"}}

    def demanding(self, given, choice, *rest):
        real(self, given, only if not asked else "none", *rest)
        asked.append(given)

    monkeypatch.setattr(tools.ToolCalls, "__init__", demanding)
    chain = model.chain("How many?", tools=[get_number], options={"max_tokens": 300, "seed": 3})
    responses = list(chain.responses())
    assert len(responses) == 2
    (call,) = responses[0].tool_calls()[:1]
    assert call.name == "get_number"
    assert isinstance(call.arguments["of"], bool)
    assert asked[0][0]["function"]["parameters"]["required"] == ["of"]
    assert plugin._messages(responses[1].prompt)[-1]["content"] == "7"


def test_texts_become_vectors():
    model = plugin.LowbitEmbedding("lowbit", None)
    vectors = list(model.embed_multi(["a cat", "a dog"]))
    want = lowbit.load().embed(["a cat", "a dog"], "mean")
    assert vectors == want.tolist()


def test_models_are_named_listed_and_forgotten(folder):
    from click.testing import CliRunner
    from llm.cli import cli

    if not any(name == "lowbit" for name in cli.commands):
        plugin.register_commands(cli)
    run, path = CliRunner(), folder / "model.gguf"
    path.write_bytes(b"x")
    assert run.invoke(cli, ["lowbit", "add", "mine", str(path)]).exit_code == 0
    assert f"mine: {path}" in run.invoke(cli, ["lowbit", "list"]).output
    assert list(plugin.known_models()) == ["lowbit", "mine"]
    registered = []
    plugin.register_models(lambda *models: registered.append(models))
    plugin.register_embedding_models(registered.append)
    assert [str(one[0]) for one in registered[:2]] == ["lowbit: lowbit", "lowbit: mine"]
    assert run.invoke(cli, ["lowbit", "remove", "mine"]).exit_code == 0
    assert run.invoke(cli, ["lowbit", "remove", "mine"]).exit_code != 0
    assert run.invoke(cli, ["lowbit", "add", "lowbit", str(path)]).exit_code != 0


def test_importing_it_loads_no_model():
    import subprocess

    code = "import sys; import llm_lowbit; print('lowbit' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": PLUGIN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False"]
