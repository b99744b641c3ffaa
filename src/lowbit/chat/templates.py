"""Chat templates of the families, and from their text to token ids.

Names of special tokens count only where the template writes them: a user who types ``<|im_end|>`` says these ten
characters. So what is said is disguised, character by character (`lowbit.chat.disguise`), names are looked for in what
the template made of it, and only then the characters are shown again. The built-in templates disguise a content when
they have done with it; a file's own sees true contents, and runs where it is known what becomes of them
(`lowbit.chat.tracking`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ContextLengthError, UnsupportedModelError, one_line
from ..tokenizers import Tokenizer
from ..tokenizers.base import without_surrogates
from .disguise import Disguise
from .sandbox import MAX_TEMPLATE, render_jinja
from .toolformats import PLAIN, choose_format
from .toolmessages import as_taught, in_plain_words, more_of, with_tools

Message = Mapping[str, Any]
"""``role`` (system, user, assistant or tool) and ``content``; an assistant's ``tool_calls`` and ``reasoning_content``;
a tool's ``tool_call_id`` and ``name``."""
ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 4096
LIKE_THIS = 'a list of dicts such as {"role": "user", "content": "Hello"}'


@dataclass(frozen=True)
class Template:
    """How one family writes a conversation."""

    name: str
    write: Callable[[Sequence[Message], str, str, Disguise], str]
    """(messages, text of BOS, text of EOS, disguise) -> the prompt, up to where the assistant's answer begins, and of
    what was said only the disguise."""
    stops: tuple[str, ...] = ()
    """Texts that end an answer, where no token does."""
    source: str = ""
    """The file's own template, whose like it is."""


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as plain dicts.

    Raises
    ------
    ValueError
        If there is none, or one has another role than system, user, assistant or tool, or no text.
    TypeError
        If they are no list of mappings.
    ContextLengthError
        If there are more than any model has room for.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be {LIKE_THIS}, not {one_line(repr(messages))}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {i} must be as in {LIKE_THIS}, not {one_line(repr(message))}")
    _refuse_media(messages)
    if not messages:
        raise ValueError("a conversation has at least one message")
    if len(messages) > MAX_MESSAGES:
        raise ContextLengthError(f"the conversation has {len(messages)} messages, limit {MAX_MESSAGES}")
    checked: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {i}: the role is {role!r}, not system, user, assistant or tool")
        if role == "tool" and not (checked and (checked[-1]["role"] == "tool" or "tool_calls" in checked[-1])):
            raise ValueError(f"message {i}: a tool answers a message with tool_calls")
        if content is None and role == "assistant" and message.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            raise ValueError(f"message {i}: the content is no text")
        kept = {"role": str(role), "content": without_surrogates(content)}
        checked.append(kept | more_of(i, message))
    return checked


def _llama2(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    out, system = "", ""
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            system += f"<<SYS>>\n{say.hide(content)}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            said = (system + say.hide(content.rstrip() if system else content.strip())).rstrip()
            out += f"{bos}[INST] {said} [/INST]"
            system = ""
        else:
            out += f" {say.hide(content.strip())} {eos}"
    if system:
        raise ValueError("messages: instructions come before what the user says in this template")
    return out


def _llama3(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    turns = (f"{_llama3_head(m['role'])}{say.hide(m['content'].strip())}<|eot_id|>" for m in messages)
    return bos + "".join(turns) + _llama3_head("assistant")


def _llama3_head(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _chatml(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    turns = (f"<|im_start|>{m['role']}\n{say.hide(m['content'])}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _chatml_with(system: str) -> Callable[[Sequence[Message], str, str, Disguise], str]:
    """ChatML for models that are told something before a conversation that tells them nothing."""

    def write(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
        told = messages[0]["role"] == "system"
        return _chatml(messages if told else [{"role": "system", "content": system}, *messages], bos, eos, say)

    return write


def _qwen3(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    # What the model thought before earlier answers is not told again.
    spoken = [
        {**m, "content": m["content"].rpartition("</think>")[2].lstrip("\n")} if m["role"] == "assistant" else m
        for m in messages
    ]
    return _chatml(spoken, bos, eos, say)


def _deepseek_r1(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    # Nor here; and the answer begins with a thought.
    out = bos
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            out += f"<｜Assistant｜>{say.hide(content.rpartition('</think>')[2])}{eos}"
        else:
            out += f"{'<｜User｜>' if message['role'] == 'user' else ''}{say.hide(content)}"
    return out + "<｜Assistant｜><think>\n"


def _bitnet(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    turns = (f"{m['role'].capitalize()}: {say.hide(m['content'].strip())}<|eot_id|>" for m in messages)
    return bos + "".join(turns) + "Assistant: "


def _falcon3(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    turns = (f"<|{m['role']}|>\n{say.hide(m['content'])}{eos if m['role'] == 'assistant' else ''}\n" for m in messages)
    return "".join(turns) + "<|assistant|>\n"


def _plain(messages: Sequence[Message], bos: str, eos: str, say: Disguise) -> str:
    turns = (f"{m['role'].capitalize()}: {say.hide(m['content'].strip())}\n" for m in messages)
    return bos + "".join(turns) + "Assistant:"


def _refuse_media(messages: Sequence[Message]) -> None:
    """Raise ValueError, by its name, for a part of a message that no text stands for: an image, a sound, a video."""
    for i, message in enumerate(messages):
        content: Any = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"message {i}: a part of the type {kind[:40]!r} is not supported, only text")


TEMPLATES = {
    template.name: template
    for template in (
        Template("llama2", _llama2),
        Template("llama3", _llama3),
        Template("chatml", _chatml),
        Template("qwen3", _qwen3),
        Template("deepseek-r1", _deepseek_r1),
        Template("bitnet", _bitnet),
        Template("falcon3", _falcon3),
        Template("plain", _plain, stops=("\nUser:", "\nSystem:")),
    )
}
"""Built-in templates by name; ``plain`` is for models that were never taught any."""

# What a file's template must and must not contain to be the like of a built-in one. Anything that a template does
# beyond roles and contents (tools, dates, thinking) is a reason to run the file's own.
_EXTRAS = r"tools|strftime|date_string|think|enable_|namespace|macro|documents"
_MARKS: tuple[tuple[str, tuple[tuple[str, ...], ...], str], ...] = (
    ("llama2", (("[INST]", "<<SYS>>"), ("<<SYS>>", "[INST]")), _EXTRAS),
    ("llama3", (("<|start_header_id|>", "<|eot_id|>"),), _EXTRAS),
    # Qwen 2 and 3 have a part for tools, which is silent when there are none.
    ("chatml", (("<|im_start|>", "<|im_end|>"),), _EXTRAS.replace("tools|", "") + r"|trim|strip|bos_token"),
    ("qwen3", (("<|im_start|>", "</think>", "enable_thinking"),), r"strftime|date_string|macro|documents|bos_token"),
    (
        "bitnet",
        tuple(pair for role in ("capitalize", "Assistant: ") for pair in ((role, "<|eot_id|>"), ("<|eot_id|>", role))),
        _EXTRAS,
    ),
    (
        "falcon3",
        (("<|system|>", "<|user|>", "<|assistant|>"),),
        _EXTRAS + r"|trim|strip|(user\|>|system\|>)[^<]{0,80}(eos_token|</s>|<\|end)",
    ),
)
"""Name, texts one of whose rows must occur in this order, and a pattern that must not: all found in linear time."""

_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^<{}'\"]+)<\|im_end\|>")


def find_template(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> Template:
    """Choose how to write a conversation for a model.

    Parameters
    ----------
    metadata : mapping
        With GGUF's keys ``general.architecture`` and ``tokenizer.chat_template``; either may be missing.
    tokenizer : Tokenizer

    Returns
    -------
    Template
        A built-in one where the file's template is its like; else the file's own, to be run in the sandbox.

    Raises
    ------
    UnsupportedModelError
        If the model has no template, and its architecture has none either.
    """
    source = metadata.get("tokenizer.chat_template")
    if not source:
        if str(metadata.get("general.architecture")) in ("bitnet-b1.58", "bitnet-25"):
            return TEMPLATES["bitnet"]
        raise UnsupportedModelError("the model has no chat template; it was not made for conversations")
    if not isinstance(source, str):
        raise UnsupportedModelError("the model's chat template is no text")
    for name, wanted, unwanted in _MARKS if len(source) <= MAX_TEMPLATE else ():
        if any(_in_order(row, source) for row in wanted) and not re.search(unwanted, source):
            default = _DEFAULT_SYSTEM.search(source) if name == "chatml" else None
            found = TEMPLATES[name] if default is None else Template(name, _chatml_with(default[1]))
            return replace(found, source=source)
    return Template("jinja", _by_jinja(source, None), source=source)


def _by_jinja(
    source: str, tools: Sequence[Mapping[str, Any]] | None, values: Mapping[str, Any] | None = None
) -> Callable[[Sequence[Message], str, str, Disguise], str]:
    return lambda messages, bos, eos, say: render_jinja(
        source, messages, bos, eos, disguise=say, tools=tools, values=values
    )


def _in_order(marks: Sequence[str], source: str) -> bool:
    at = 0
    for mark in marks:
        at = source.find(mark, at)
        if at < 0:
            return False
        at += len(mark)
    return True


def render(
    messages: Sequence[Message], metadata: Mapping[str, Any], tokenizer: Tokenizer, template: Template | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None, begun: str = "", values: Mapping[str, Any] | None = None,
) -> list[int]:  # fmt: skip
    """Write a conversation as the token ids after which the model answers.

    Parameters
    ----------
    messages : sequence of mappings with ``role`` and ``content``
    metadata : mapping
        See `find_template`; not looked at if `template` is given.
    tokenizer : Tokenizer
    template : Template, optional
    tools : sequence of mappings, optional
        Functions that the model may call, as `ToolCalls` takes them.
    begun : str
        How the answer begins.
    values : mapping, optional
        What the template is told besides. ``enable_thinking`` false asks for an answer without thoughts, also where a
        template knows no such value.

    Returns
    -------
    list of int
        With BOS once at the beginning, if the model wants it.

    Raises
    ------
    UnsupportedModelError
        If the model has no template, or its own cannot be run.
    FormatError
        If its own fails.
    ValueError
        If the messages are no conversation.
    """
    template = find_template(metadata, tokenizer) if template is None else template
    text, disguise = write(messages, tokenizer, template, tools, begun, values)
    ids = tokenizer.encode_template(text, disguise.shown)
    if tokenizer.bos_id is not None:
        while ids[:2] == [tokenizer.bos_id] * 2:  # the template wrote one, and so did its caller
            del ids[0]
        if tokenizer.add_bos and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
    return ids


def write(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template,
    tools: Sequence[Mapping[str, Any]] | None = None, begun: str = "", values: Mapping[str, Any] | None = None,
) -> tuple[str, Disguise]:  # fmt: skip
    """Write a conversation, and the beginning of its answer, as text in which what was said is in disguise."""
    bos = "" if tokenizer.bos_id is None else tokenizer.piece(tokenizer.bos_id)
    eos = "" if tokenizer.eos_id is None else tokenizer.piece(tokenizer.eos_id)
    disguise = Disguise("".join(tokenizer.special_texts()))
    spoken, run = check_messages(messages), template.write
    told = _told(values or {}, template)
    if told:
        run = _by_jinja(template.source, None, told)
    if tools or any(message["role"] == "tool" or "tool_calls" in message for message in spoken):
        source, form = template.source, choose_format(template.source)
        if tools and (form.name == PLAIN.name or not re.search(r"\btools\b", source)):
            spoken, tools = with_tools(spoken, tools, form), None
        if form.name == PLAIN.name:
            spoken = in_plain_words(spoken)
        else:
            run, spoken = _by_jinja(source, tools or None, told), as_taught(spoken, source)
    text = run(spoken, bos, eos, disguise)
    if values and values.get("enable_thinking") is False:
        opening, closing = choose_format(template.source).reasoning
        text += closing if text.rstrip().endswith(opening) else ""
    return text + disguise.hide(without_surrogates(begun)), disguise


_NAMES = {"today": r"\b(strftime_now|date_string|datetime)\b"}
"""What templates call a value that has another name here."""


def _told(values: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """Return the values that a template asks for; ValueError for one that it does not."""
    told = {name: value for name, value in values.items() if re.search(_NAMES.get(name, rf"\b{re.escape(name)}\b"),
            template.source)}  # fmt: skip
    for name, value in values.items():
        if name not in told and (name, value) != ("enable_thinking", False) and name not in _NAMES:
            raise ValueError(f"chat_template_kwargs: the template does not ask for {name}")
    return told
