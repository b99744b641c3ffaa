"""How models write calls of tools: the marks around them, and the grammar of a text that may hold some.

A format is a row of `FORMATS`. Its marks may be control tokens of a model or ordinary text, which a grammar finds out
when it is written for the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..sampling import WHITESPACE, Grammar


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""


@dataclass(frozen=True)
class Format:
    """What stands around names and arguments. White space that is written here may be more or less in a text."""

    name: str
    begin: str
    """Before the first call; empty: a text that begins with a brace is a call."""
    open: str
    """Before each name."""
    middle: str
    """Between a name and its arguments."""
    close: str
    """After the arguments."""
    between: str = "\n"
    """Between two calls."""
    end: str = ""
    """After the last call."""
    marks: tuple[str, ...] = ()
    """Those parts of the above that may be control tokens."""
    tagged: bool = False
    """Arguments are written ``<parameter=NAME>`` value ``</parameter>``, not as JSON."""
    several: bool = True
    """Whether a text may have more than one call."""
    reasoning: tuple[str, str] = ("<think>", "</think>")
    """Around what a model thinks before it answers."""

    @property
    def lead(self) -> tuple[str, str]:
        """The mark that `begin` begins with, and the rest of it."""
        mark = next((mark for mark in self.marks if self.begin.startswith(mark)), self.begin)
        return mark, self.begin[len(mark) :]


PLAIN = Format("plain", "", '{"name": "', '", "arguments": ', "}")
_DEEPSEEK = Format(
    "deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "",
    "<｜tool▁calls▁end｜>",
    tuple(f"<｜tool▁{part}｜>" for part in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")),
)  # fmt: skip
_HERMES = Format(
    "hermes", "<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n<tool_call>",
    marks=("<tool_call>", "</tool_call>"),
)  # fmt: skip
_MISTRAL = Format("mistral", "[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", ", ", "]", ("[TOOL_CALLS]",))

# Texts that a template holds all of, and texts of which it holds none.
FORMATS: tuple[tuple[tuple[str, ...], tuple[str, ...], Format], ...] = (
    (
        ("[TOOL_CALLS]", "[ARGS]"), (),
        Format("mistral-args", "[TOOL_CALLS]", "", "[ARGS]", "", "[TOOL_CALLS]", marks=("[TOOL_CALLS]", "[ARGS]")),
    ),
    (("[TOOL_CALLS]",), (), _MISTRAL),
    (
        ("<｜tool▁calls▁begin｜>", "```json"), (),
        replace(
            _DEEPSEEK, name="deepseek-json", open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            middle="\n```json\n", close="\n```<｜tool▁call▁end｜>", between="\n",
        ),
    ),
    (("<｜tool▁calls▁begin｜>",), (), _DEEPSEEK),
    (
        ("<tool_call>", "<function=", "<parameter="), (),
        Format(
            "qwen-tagged", "<tool_call>", "\n<function=", ">\n", "</function>\n</tool_call>", "\n<tool_call>",
            marks=("<tool_call>", "</tool_call>"), tagged=True,
        ),
    ),
    (("<tool_call>", "arguments", "name"), ("<arg_key>",), _HERMES),
    (
        ("<|start_header_id|>", '"parameters": '), (),
        Format("llama3", "", '{"name": "', '", "parameters": ', "}", several=False, marks=("<|python_tag|>",)),
    ),
)  # fmt: skip


def choose_format(template: str) -> Format:
    """Return the format that a chat template writes calls in; one that writes none gets the plain one."""
    found = PLAIN
    for wanted, unwanted, form in FORMATS:
        if all(text in template for text in wanted) and not any(text in template for text in unwanted):
            found = form
            break
    return replace(found, reasoning=("[THINK]", "[/THINK]")) if "[THINK]" in template else found


def is_readable(schema: Any) -> bool:
    """Whether what is read here of a schema is of the right kind; the rest of it is for who compiles it."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    options, properties = [schema.get(key, []) for key in ("anyOf", "oneOf")], schema.get("properties", {})
    lists = [*options, *(schema.get(key, []) for key in ("enum", "required"))]
    if not all(isinstance(one, (list, tuple)) for one in lists) or not isinstance(properties, Mapping):
        return False
    parts = [*properties.values(), *(option for several in options for option in several)]
    return isinstance(schema.get("type", ""), (str, list, tuple)) and all(map(is_readable, parts))


def is_text(schema: Any) -> bool:
    """Whether a value of this schema is written as plain text where arguments are tagged."""
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema or "enum" in schema:
        return any(isinstance(value, str) for value in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type")
    if kinds is None:
        options = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return not options or any(is_text(option) for option in options)
    return "string" in ([kinds] if isinstance(kinds, str) else kinds)


def grammar_of(form: Format, tools: Sequence[Tool], required: bool, several: bool, thinks: bool) -> Grammar:
    """Return the grammar of a text with calls.

    Parameters
    ----------
    form : Format
    tools : sequence of Tool, at least one
    required : bool
        It is a call from the start; else it is free until a call begins.
    several : bool
        Whether more than one call may come.
    thinks : bool
        The prompt ends within a thought, which comes first.
    """

    def write(names: Mapping[str, int]) -> str:
        return _Writer(form, tools, names).text(required, several and form.several, thinks)

    return Grammar(write, (*form.marks, *form.reasoning))


class _Writer:
    """Writes a grammar in Lark.

    Parameters
    ----------
    form : Format
    tools : sequence of Tool
    names : mapping of str to int
        The model's control tokens.
    """

    def __init__(self, form: Format, tools: Sequence[Tool], names: Mapping[str, int]) -> None:
        self._form, self._tools = form, tools
        self._control = {mark: names[mark] for mark in (*form.marks, *form.reasoning) if mark in names}
        self._rules: list[str] = []

    def text(self, required: bool, several: bool, thinks: bool) -> str:
        form = self._form
        calls = [self._call(i, tool) for i, tool in enumerate(self._tools)]
        self._rules.append(f"call: {' | '.join(calls)}")
        more = f"({self._literal(form.between)} call)*" if several else ""
        rest = f"call {more} {self._literal(form.end)}"
        whole = f"{self._literal(form.begin)} {rest}"
        if "<|python_tag|>" in self._control:
            whole = f"{self._token('<|python_tag|>')}? {whole}"
        if thinks:
            self._until("thought", "TEXT", form.reasoning[1])
        if required:
            start = f"thought /\\s{{0,4}}/ {whole}" if thinks else whole
        elif form.begin:
            mark, after = form.lead
            self._until("lead", "TEXT", mark)
            start = f"TEXT? | lead {self._literal(after)} {rest} /\\s{{0,2}}/"
        else:
            self._rules.append("FREE: /[^{](.|\\n)*/")
            start = f"FREE? | {whole}" if not thinks else f"TEXT? | thought /\\s{{0,4}}/ {whole}"
        self._rules.append("TEXT: /(.|\\n)*/")
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, ""])

    def _until(self, rule: str, terminal: str, mark: str) -> None:
        """A rule for a text up to the first of these marks."""
        lazy = "" if mark in self._control else "[lazy]"
        self._rules.append(f"{rule}{lazy}: {terminal} {self._literal(mark)}")

    def _token(self, mark: str) -> str:
        return f"<[{self._control[mark]}]>"

    def _literal(self, text: str) -> str:
        """Write a text, its control tokens as such."""
        for mark in self._control:
            before, found, after = text.partition(mark)
            if found:
                return f"{self._literal(before)} {self._token(mark)} {self._literal(after)}".strip()
        return json.dumps(text, ensure_ascii=False) if text else ""

    def _call(self, i: int, tool: Tool) -> str:
        form = self._form
        arguments = self._tagged(i, tool) if form.tagged else f"args_{i}"
        if not form.tagged:
            self._rules.append(f"args_{i}: {_json(tool.parameters)}")
        self._rules.append(
            f"call_{i}: {self._literal(form.open + tool.name + form.middle)} {arguments} {self._literal(form.close)}"
        )
        return f"call_{i}"

    def _tagged(self, i: int, tool: Tool) -> str:
        """Write the parameters one after the other; all that are required, in the order of the schema."""
        schema = tool.parameters
        properties = schema.get("properties", {})
        end = "\n</parameter>\n"
        if any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref")):
            self._until(f"some_{i}", "TEXT", end)
            self._rules.append(f'any_{i}: "<parameter=" /[^>\\n]+/ ">\\n" some_{i}')
            return f"any_{i}*"
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        out = []
        for j, (name, value) in enumerate(properties.items()):
            rule = f"p_{i}_{j}"
            begin = self._literal(f"<parameter={name}>\n")
            if isinstance(value, Mapping) and "enum" in value and all(isinstance(v, str) for v in value["enum"]):
                options = " | ".join(self._literal(v) or '""' for v in value["enum"])
                self._rules.append(f"{rule}: {begin} ({options}) {self._literal(end)}")
            elif is_text(value):
                self._until(f"v_{i}_{j}", "TEXT", end)
                self._rules.append(f"{rule}: {begin} v_{i}_{j}")
            else:
                self._rules.append(f"{rule}: {begin} {_json({**value, **shared})} {self._literal(end)}")
            out.append(rule + ("" if name in schema.get("required", ()) else "?"))
        return " ".join(out)


def _json(schema: Mapping[str, Any]) -> str:
    options = {"whitespace_pattern": WHITESPACE, "lenient": False}
    return "%json " + json.dumps({**schema, "x-guidance": options})
