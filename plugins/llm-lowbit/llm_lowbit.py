"""Models of lowbit in the tool llm: conversations, schemas, tools, embeddings, at once or piece by piece."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import llm
from llm.parts import StreamEvent
from pydantic import Field

if TYPE_CHECKING:
    from lowbit import Engine, Stream
    from lowbit.chat import Delta, ToolCalls

EMBEDDED = "lowbit"
"""Name of the model that comes with lowbit."""
MAX_TOKENS = 1024


def config_file() -> Path:
    """Where the names of models are kept."""
    return llm.user_dir() / "lowbit.json"


def known_models() -> dict[str, str | None]:
    """Names of models, and their files; None is the embedded one."""
    path = config_file()
    return {EMBEDDED: None} | (json.loads(path.read_text("utf-8")) if path.exists() else {})


@llm.hookimpl
def register_models(register: Any) -> None:
    for name, path in known_models().items():
        register(LowbitModel(name, path), AsyncLowbitModel(name, path))


@llm.hookimpl
def register_embedding_models(register: Any) -> None:
    for name, path in known_models().items():
        register(LowbitEmbedding(name, path))


@llm.hookimpl
def register_commands(cli: Any) -> None:
    @cli.group(name="lowbit")
    def group() -> None:
        """Name the models that lowbit runs."""

    @group.command(name="list")
    def list_models() -> None:
        """List the models."""
        for name, path in known_models().items():
            click.echo(f"{name}: {path or 'comes with lowbit'}")

    @group.command(name="add")
    @click.argument("name")
    @click.argument("path", type=click.Path(exists=True))
    def add(name: str, path: str) -> None:
        """Name a model's file or folder."""
        if name == EMBEDDED:
            raise click.ClickException(f"{name} is the model that comes with lowbit")
        _save({**known_models(), name: str(Path(path).resolve())})

    @group.command(name="remove")
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a name; the file stays."""
        models = known_models()
        if models.pop(name, None) is None:
            raise click.ClickException(f"there is no model {name} to forget")
        _save(models)


def _save(models: dict[str, str | None]) -> None:
    named = {name: path for name, path in models.items() if path is not None}
    config_file().write_text(json.dumps(named, indent=2) + "\n", "utf-8")


_engines: dict[str | None, Engine] = {}
_loading = threading.Lock()


def engine_of(path: str | None) -> Engine:
    """Return the engine of a model, which is loaded once."""
    import lowbit

    with _loading:
        if path not in _engines:
            _engines[path] = lowbit.Engine(lowbit.load() if path is None else lowbit.load(path))
        return _engines[path]


class Options(llm.Options):
    """Settings of a request."""

    max_tokens: int = Field(MAX_TOKENS, description="Most tokens of an answer", ge=0)
    temperature: float | None = Field(None, description="0 takes the likeliest token")
    top_k: int | None = Field(None, description="Keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = Field(None, description="Keep the likeliest tokens up to this sum")
    min_p: float | None = Field(None, description="Drop tokens below this share of the likeliest")
    repeat_penalty: float | None = Field(None, description="Make recent tokens less likely; 1 is off")
    seed: int | None = Field(None, description="Same seed, same text")
    stop: str | None = Field(None, description="End before this text")


class _Shared:
    """What models for threads and for asyncio have in common."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, model_id: str, path: str | None) -> None:
        self.model_id, self.path = model_id, path

    def __str__(self) -> str:
        return f"lowbit: {self.model_id}"

    def _ask(self, prompt: llm.Prompt) -> tuple[Stream, ToolCalls]:
        """Submit a request; its stream, and what parses its answer."""
        from lowbit.chat import TEMPLATES, ToolCalls, find_template, in_thought, render
        from lowbit.errors import UnsupportedModelError

        engine = engine_of(self.path)
        info, tokenizer = engine.model.info(), engine.model.tokenizer
        metadata = {
            "general.architecture": info.get("architecture"),
            "tokenizer.chat_template": info.get("chat_template"),
        }
        try:
            template = find_template(metadata, tokenizer)
        except UnsupportedModelError:
            template = TEMPLATES["plain"]
        tools = [_described(tool) for tool in prompt.tools]
        if tools and prompt.schema:
            raise llm.ModelError("lowbit takes tools or a schema, not both")
        ids = render(_messages(prompt), {}, tokenizer, template, tools=tools or None)
        calls = ToolCalls(tools, "auto", True, template.source, in_thought(ids, tokenizer, template.source))
        sampling = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        sampling["stop"] = ((sampling["stop"],) if "stop" in sampling else ()) + template.stops
        must = {"json_schema": prompt.schema} if prompt.schema else {"grammar": calls.grammar}
        return engine.submit(ids, fresh=True, **must, **sampling), calls


class LowbitModel(_Shared, llm.Model):
    """A model for threads."""

    Options = Options

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[Any]:
        """Answer a prompt."""
        answer, calls = self._ask(prompt)
        reader = _Reader()
        try:
            for piece in answer:
                yield from reader.events(calls.push(piece))
            yield from reader.events(calls.finish())
        finally:
            answer.cancel()
        reader.tell(response, answer)


class AsyncLowbitModel(_Shared, llm.AsyncModel):
    """A model for asyncio."""

    Options = Options

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        """Answer a prompt."""
        import asyncio

        answer, calls = await asyncio.to_thread(self._ask, prompt)
        reader = _Reader()
        try:
            async for piece in answer:
                for event in reader.events(calls.push(piece)):
                    yield event
            for event in reader.events(calls.finish()):
                yield event
        finally:
            answer.cancel()
        reader.tell(response, answer)


class _Reader:
    """Turns deltas into what llm shows and keeps."""

    def __init__(self) -> None:
        self._calls: list[list[str]] = []

    def events(self, deltas: Iterable[Delta]) -> Iterator[Any]:
        """Yield texts and events."""
        for delta in deltas:
            if delta.reasoning:
                yield StreamEvent(type="reasoning", chunk=delta.reasoning)
            if delta.text:
                yield StreamEvent(type="text", chunk=delta.text)
            if delta.name:
                self._calls.append([delta.id, delta.name, ""])
                yield StreamEvent(type="tool_call_name", chunk=delta.name, tool_call_id=delta.id)
            if delta.arguments:
                self._calls[-1][2] += delta.arguments
                yield StreamEvent(type="tool_call_args", chunk=delta.arguments, tool_call_id=self._calls[-1][0])

    def tell(self, response: Any, answer: Stream) -> None:
        """Note the calls, and what was used."""
        for call_id, name, arguments in self._calls:
            with contextlib.suppress(ValueError):  # if it was cut off
                response.add_tool_call(llm.ToolCall(name=name, arguments=json.loads(arguments), tool_call_id=call_id))
        out = answer.result()
        response.set_usage(input=out.prompt_tokens, output=len(out.tokens))


class LowbitEmbedding(llm.EmbeddingModel):
    """Vectors of texts: the mean over all tokens of what the output head reads."""

    batch_size = 32

    def __init__(self, model_id: str, path: str | None) -> None:
        self.model_id, self.path = model_id, path

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Return the vector of each text."""
        texts = [item if isinstance(item, str) else item.decode() for item in items]
        return iter(engine_of(self.path).model.embed(texts, "mean").tolist()) if texts else iter(())


def _described(tool: Any) -> dict[str, Any]:
    if not hasattr(tool, "input_schema"):
        raise llm.ModelError("lowbit has no tools of its own")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _messages(prompt: llm.Prompt) -> list[dict[str, Any]]:
    """Turn llm's messages into those of a chat template."""
    out: list[dict[str, Any]] = []
    for message in prompt.messages:
        text, calls, results = "", [], []
        for part in message.parts:
            kind = type(part).__name__
            if kind == "TextPart":
                text += part.text
            elif kind == "ToolCallPart":
                function = {"name": part.name, "arguments": part.arguments}
                calls.append({"id": part.tool_call_id, "type": "function", "function": function})
            elif kind == "ToolResultPart":
                results.append(
                    {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.name, "content": part.output}
                )
            elif kind != "ReasoningPart":
                raise llm.ModelError("lowbit reads text only")
        out += results
        if text or calls or not results:
            said = {"role": message.role, "content": text}
            out.append({**said, "tool_calls": calls} if calls else said)
    if [one["role"] for one in out] == ["system"]:
        out.append({"role": "user", "content": ""})
    return out
