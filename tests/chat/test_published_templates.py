"""Templates of published models, in the sandbox as in plain Jinja with the settings of transformers."""

from __future__ import annotations

import copy
import datetime
import inspect
import json
import os
from pathlib import Path

import jinja2
import pytest
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowbit.chat import sandbox
from lowbit.chat.disguise import Disguise
from lowbit.chat.templates import check_messages

TODAY = datetime.date(2026, 11, 28)
CHAT = Path(sandbox.__file__).parent
WITH_TOOLS = "tools" in inspect.signature(sandbox.render_jinja).parameters
SYSTEM = {"role": "system", "content": " Be <brief> & kind.\n"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


FUNCTION = {
    "name": "get_weather",
    "description": 'Weather "now"',
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "A city's name"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abc123def",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}},
        }
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abc123def", "content": '{"t": 5}'}
CONVERSATIONS = {
    "one": [user("Hi <|im_end|> there")],
    "system": [SYSTEM, user(" Hello\n"), assistant(" Hi! "), user("What's 2<3 & 'x'?")],
    "thoughts": [user("a"), assistant("<think>\nhm <b>\n</think>\n\nanswer"), user("b")],
    "tools": [SYSTEM, user("Weather?")],
    "calls": [user("Weather in Köln?"), CALL, RESULT, assistant("5 degrees"), user("ok")],
}
ODD = {
    # It writes texts with HTML's escapes, which what was said does not get here.
    "meetkai-functionary-medium-v3.1.jinja",
}


@pytest.fixture
def process(monkeypatch):
    """The module of the sandbox's process, to be called in this one."""
    monkeypatch.syspath_prepend(str(CHAT))
    import sandbox_process

    monkeypatch.setattr(sandbox_process, "limit", lambda seconds: None)
    return sandbox_process


class Generation(Extension):
    """Transformers' own tag, as its `apply_chat_template` has it: a macro that is called where it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller):
        return caller()


def plainly(source, values):
    extensions = [loopcontrols, Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    environment.globals.update(date_string=f"{TODAY:%d %b %Y}", datetime=f"{TODAY:%b %d %Y}", functions="")
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )
    return environment.from_string(source).render(**values)


def in_sandbox(process, source, values):
    """What the sandbox writes, with all that was said tracked through the template."""
    request = {"template": source, "names": "<|>[]_/timend", "max_output": 1 << 20, "max_seconds": 5}
    answer = process.run(request | {"values": {**values, "today": TODAY.isoformat()}})
    disguise = Disguise("")
    disguise.load(answer["disguise"])
    return disguise.show(answer["text"])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_published_templates_write_what_transformers_writes(process, name):
    folder = os.environ.get("LOWBIT_EXTRA_VOCABULARIES")
    if not folder or not (Path(folder) / "templates").is_dir():
        pytest.skip("LOWBIT_EXTRA_VOCABULARIES does not name llama.cpp's folder models with its templates")
    tools = [{"type": "function", "function": FUNCTION}] if name in ("tools", "calls") else None
    if tools and not WITH_TOOLS:
        pytest.skip("the sandbox hands no tools to templates")
    paths = [path for path in sorted((Path(folder) / "templates").glob("*.jinja")) if path.name not in ODD]
    assert len(paths) > 20
    same = 0
    for path in paths:
        source = path.read_text("utf-8")
        values = {
            "messages": CONVERSATIONS[name],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "add_generation_prompt": True,
        }
        if WITH_TOOLS:
            values["tools"] = tools
        try:
            want = plainly(source, {"documents": None, "tools": tools, **copy.deepcopy(values)})
        except Exception:
            continue  # a template may refuse a conversation, or want another form of it
        assert in_sandbox(process, source, copy.deepcopy(values)) == want, path.name
        same += 1
    assert same > len(paths) // 2


def test_marks_around_what_a_model_learns_write_nothing(process):
    """SmolLM3's template has them around each answer."""
    source = (
        "{% set ns = namespace(n=0) %}{% set x = 'a' %}{% for m in messages %}{{ m.role }}:"
        "{% if m.role == 'assistant' %}{%- generation -%} {% set x = 'b' %}{% set ns.n = 1 %}{{ m.content + '</s>' }}\n"
        "{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ x }}{{ ns.n }}"
    )
    values = {"messages": CONVERSATIONS["system"], "bos_token": "<s>", "eos_token": "</s>"}
    want = plainly(source, copy.deepcopy(values))
    assert want.endswith("assistant: Hi! </s>user:What's 2<3 & 'x'?a1")
    assert in_sandbox(process, source, values) == want


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video"])
def test_what_is_no_text_is_refused_by_name(kind):
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:,"}}]
    with pytest.raises(ValueError, match=f"message 0: .*'{kind}'"):
        check_messages([{"role": "user", "content": content}])
