"""Jinja that knows which characters of its output somebody said, whatever a template did with them.

A template must see the true contents of the messages (it may look for ``</think>`` in them), and no name of a control
token may come of them. So a content is a `Said`: a str with its true characters, for everything that a template asks
of it, beside it the same text in disguise (`lowbit.chat.disguise`), and the disguised text is what is written in the
end. What makes a new text of such texts (an operator, a filter, a method) is done to both; where the disguised result
shows as the true one, it tells for each character where it came from. Where it does not (``upper``, or a cut at a word
that was said) all of the result counts as said.

This is closed, not patched from case to case: in a sandbox Jinja makes texts in few places only, all of which pass
through the methods here, and what these do not know counts as said. The price of a doubt is a control token that is
written as text, never text that becomes a control token. (Markup that was said is plain text.) Only truth and numbers
leave no trace: a template may decide and count by what was said.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.environment import Environment
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from .disguise import Disguise

_LISTS = (list, tuple, ItemsView, KeysView, ValuesView)
_SILENT = (str, bool, int, float, range, type(None), Undefined, Environment, Context, EvalContext)
"""Arguments that hold no text, or none that is not at hand."""


class Said(str):
    """A text of which somebody said at least one character."""

    _hidden: str
    """The same text, what was said in disguise."""

    # A template reaches neither: the sandbox closes names that begin with an underscore.
    __slots__ = ("_hidden",)

    def __new__(cls, true: str, hidden: str | None = None) -> Any:
        # Jinja makes a text of the type of another where it formats one.
        if hidden is None:
            return str.__str__(true)
        text = super().__new__(cls, true)
        text._hidden = hidden
        return text

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> str:
        true, hidden = super().__getitem__(key), self._hidden[key]
        return true if true == hidden else cast(str, Said(true, hidden))


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 (Jinja's name)
        self.write("environment.join_all((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """What transformers adds to Jinja: marks around what the model is to learn, which write nothing."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TrackingEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates."""

    code_generator_class = _Generator
    intercepted_binops = frozenset("+*%")

    def __init__(self, disguise: Disguise) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._text)
        self._disguise = disguise

    def track_filters(self) -> None:
        """Watch the filters, once all are there."""
        self.filters = {name: self._tracked(function) for name, function in self.filters.items()}

    def said(self, text: str) -> str:
        """Return a text all of which was said."""
        hidden = self._disguise.hide(text)
        return text if hidden == text else cast(str, Said(text, hidden))

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> Any:
        if source.find(nodes.EvalContextModifier):
            raise TemplateError("autoescape is not supported")
        return super()._generate(source, *args, **options)

    def _text(self, value: Any) -> str:
        """Turn a value into text, as it is written."""
        if isinstance(value, str):
            return value
        return str(value) if isinstance(value, _SILENT) else self.said(str(value))

    def concat(self, texts: Iterable[str]) -> str:
        """Do what compiled templates do with what they write."""
        pieces = list(texts)
        true = "".join(pieces)
        hidden = "".join([piece._hidden if isinstance(piece, Said) else piece for piece in pieces])
        return true if true == hidden else cast(str, Said(true, hidden))

    def join_all(self, values: tuple[Any, ...]) -> str:
        """Do what ``~`` does."""
        return self.concat(map(self._text, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self._track(self.binop_table[operator], (left, right), {})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        call = super().call
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", __obj)
        if isinstance(owner, str):

            def method(text: str, *args: Any, **kwargs: Any) -> Any:
                return call(__context, __self.getattr(text, __obj.__name__), *args, **kwargs)

            return __self._track(method, (owner, *args), kwargs)
        result = call(__context, __obj, *args, **kwargs)
        if isinstance(owner, (dict, list, tuple, type)) or type(owner).__module__ in ("jinja2.runtime", "jinja2.utils"):
            return result  # what they return was given to them, or passed through `concat`
        return __self._marked(result, None, {})

    def _tracked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # with the marks that tell Jinja what to pass
        def tracked(*args: Any, **kwargs: Any) -> Any:
            return self._track(function, args, kwargs)

        return tracked

    def _track(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that does nothing but return a value, and find out what in it was said."""
        given: dict[int, Any] = {}
        hidden_args, hidden_kwargs = self._hidden(args, given), self._hidden(kwargs, given)
        true = function(*args, **kwargs)
        if isinstance(true, GeneratorType):
            true = list(true)  # `given` of the next call looks into it
        opaque = any(not isinstance(value, (*_SILENT, *_LISTS, dict)) for value in given.values())
        if not opaque and not any(isinstance(value, Said) for value in given.values()):
            return true
        hidden = None
        if not opaque:
            with contextlib.suppress(Exception):
                hidden = function(*hidden_args, **hidden_kwargs)
        return self._marked(true, hidden, given)

    def _hidden(self, value: Any, given: dict[int, Any]) -> Any:
        """Copy a value with the disguised texts; all that it holds is noted in `given`."""
        given[id(value)] = value
        if isinstance(value, Said):
            return value._hidden
        if isinstance(value, dict):
            return {self._hidden(k, given): self._hidden(v, given) for k, v in value.items()}
        if isinstance(value, _LISTS):
            copy = [self._hidden(v, given) for v in value]
            return tuple(copy) if isinstance(value, tuple) else copy
        return value

    def _marked(self, true: Any, hidden: Any, given: dict[int, Any]) -> Any:
        """Find out what was said in a result, by the result of the disguised texts."""
        if isinstance(true, Said):
            return true
        if isinstance(true, str):
            if isinstance(hidden, str) and self._disguise.show(hidden) == true:
                return true if hidden == true else Said(true, hidden)
            # Python keeps texts of one character, so that such a text may only look like one that was given.
            return true if id(true) in given and len(true) > 1 else self.said(true)
        if id(true) in given:
            return true
        if isinstance(true, dict):
            pairs = self._marked(list(true.items()), list(hidden.items()) if isinstance(hidden, dict) else None, given)
            return dict(pairs)
        if isinstance(true, _LISTS):
            values = list(true)
            others = list(hidden) if isinstance(hidden, (*_LISTS, GeneratorType)) else []
            others += [None] * (len(values) - len(others))
            marked = [self._marked(v, h, given) for v, h in zip(values, others)]
            if isinstance(true, tuple):
                return true._make(marked) if hasattr(true, "_make") else tuple(marked)
            return marked
        return true
