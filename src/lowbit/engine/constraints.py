"""What a text must be: a JSON schema, a regular expression or a grammar, as the tokens that may come next.

The library llguidance does the parsing (extra ``serve``). A grammar is compiled in a thread of its own, under limits,
so that no step waits for it. While a text is made, each token that was chosen is told to the parser, which says what
may follow: one token alone is appended without being computed, else a mask goes to the sampler.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._kernels.sequence import Sequence
from ..errors import ConstraintError, LowbitError, one_line
from ..sampling import WHITESPACE, Grammar
from ..tokenizers import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from llguidance import LLMatcher, LLTokenizer

MOST_SOURCE = 1 << 20
"""Characters of a schema, an expression or a grammar."""
MOST_RULES = 1000
"""Rules of a GBNF grammar, whose translation takes the square of their number."""
MARK = "\x02"
"""What a text is encoded behind, where a tokenizer puts a space before the first character."""
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 2_000_000,
    "step_lexer_fuel": 500_000,
    "step_max_items": 100_000,
    "max_lexer_states": 50_000,  # of up to 2 kB
    "max_grammar_size": 500_000,
}
"""What a grammar may cost, when it is compiled and at each token; each is some milliseconds, or some megabytes."""


class Compiler:
    """Makes constraints for the texts of one model.

    Parameters
    ----------
    tokenizer : Tokenizer, optional
    ends : frozenset of int
        Tokens that end a text.
    vocab_size : int
        Tokens of the model, which may have more than its tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer | None, ends: frozenset[int], vocab_size: int) -> None:
        self.tokenizer, self.ends, self.vocab_size = tokenizer, ends, vocab_size
        self._vocabulary: LLTokenizer | None = None
        self.renew()

    def renew(self) -> None:
        """For a child process, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def constraint(
        self, json_schema: Any = None, regex: str | None = None, grammar: str | Grammar | None = None
    ) -> Constraint | None:
        """Return what the arguments ask for, which is still to be compiled; None if they are all None.

        Raises
        ------
        ConstraintError
            If there is more than one of them, or one is of the wrong kind or too large.
        LowbitError
            If llguidance is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return None
        if len(given) > 1:
            raise ConstraintError(f"{' and '.join(given)} cannot be asked for together")
        if self.tokenizer is None:
            raise ConstraintError(f"{next(iter(given))} needs a tokenizer, and the model has none")
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise LowbitError(
                f"{next(iter(given))} needs the package llguidance; pip install 'lowbit[serve]' installs it"
            ) from None
        shown: dict[int, bytes] = {}
        if json_schema is not None:
            kind, source = "json_schema", _schema_text(json_schema)
        elif isinstance(grammar, Grammar):
            names = {self.tokenizer.piece(token): token for token in self.tokenizer.control_ids}
            kind, source = "grammar", grammar.write(names)
            shown = {names[name]: name.encode() for name in grammar.shown if name in names}
        else:
            ((kind, source),) = given.items()
            if not isinstance(source, str):
                raise ConstraintError(f"{kind} must be text, not {type(source).__name__}")
        if len(source) > MOST_SOURCE:
            raise ConstraintError(f"{kind} has {len(source)} characters, limit {MOST_SOURCE}")
        return Constraint(self, kind, source, shown)

    def submit(self, job: Callable[[], None]) -> None:
        """Have something done by the thread that compiles."""
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(1, "lowbit grammar")
            self._pool.submit(job)

    def matcher(self, kind: str, source: str) -> LLMatcher:
        """Compile a grammar; ConstraintError if that cannot be done."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            matcher = LLMatcher(
                self._tokens(), _translated(kind, source), log_level=0,
                limits=LLParserLimits(**LIMITS, verbose_errors=False),
            )  # fmt: skip
            fault = matcher.get_error()
        except MemoryError:
            raise
        except BaseException as error:  # a panic of the library's is no Exception
            fault = str(error) or type(error).__name__
        if fault:
            raise ConstraintError(f"the {kind} cannot be compiled: {one_line(fault)}")
        return matcher

    def _tokens(self) -> LLTokenizer:
        """The vocabulary as the library wants it, made once: it takes a second and some megabytes."""
        if self._vocabulary is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            assert self.tokenizer is not None
            wrapped = TokenizerWrapper(_Vocabulary(self.tokenizer, self.ends, self.vocab_size))
            self._vocabulary = LLTokenizer(wrapped, eos_token=sorted(self.ends) or [self.vocab_size])
        return self._vocabulary


class _Vocabulary:
    """A tokenizer as llguidance sees it: bytes of each token, control tokens after 0xFF."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        hidden = tokenizer.control_ids | ends | (set() if tokenizer.unk_id is None else {tokenizer.unk_id})
        known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [
            b"\xff" + tokenizer.piece(i).encode() if i in hidden else tokenizer.token_bytes(i) for i in range(known)
        ]
        self.tokens += [b""] * (vocab_size - known)
        if not ends:
            self.tokens.append(b"\xffend")  # the library wants one; the model has no such token to choose
        self.special_token_ids = sorted(hidden)
        self.bos_token_id = None
        self.eos_token_id = min(ends, default=vocab_size)

        self._ids = {token: i for i, token in enumerate(self.tokens) if token[:1] != b"\xff"}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Encode what stands in the middle of a text, as the model was taught if that gives these bytes."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        for before in ("", MARK):
            start = self._encode(before)
            ids = self._encode(before + data.decode())
            if ids[: len(start)] == start and b"".join(self.tokens[i] for i in ids[len(start) :]) == data:
                return ids[len(start) :]
        return self._longest_first(data)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer._encode_text(text, False) if text else []

    def _longest_first(self, data: bytes) -> list[int]:
        ids: list[int] = []
        while data:
            for size in range(min(self._longest, len(data)), 0, -1):
                if data[:size] in self._ids:
                    ids.append(self._ids[data[:size]])
                    data = data[size:]
                    break
            else:
                break
        return ids


class Constraint:
    """What one text must be, and how far it is.

    Parameters
    ----------
    compiler : Compiler
    kind, source : str
        ``json_schema``, ``regex`` or ``grammar``, and its text.
    shown : mapping of int to bytes
        Control tokens that are part of the text, and how they are written.

    Attributes
    ----------
    error : BaseException or None
        What went wrong when it was compiled.
    ended : bool
        Whether the text is whole, and nothing may follow.
    """

    def __init__(self, compiler: Compiler, kind: str, source: str, shown: Mapping[int, bytes]) -> None:
        self._compiler, self._kind, self._source, self.shown = compiler, kind, source, shown
        self.ended = False
        self.error: BaseException | None = None
        self._matcher: LLMatcher | None = None
        self._mask = np.zeros((compiler.vocab_size + (not compiler.ends) + 31) // 32, np.uint32)
        self._seen = 0  # tokens that the parser knows
        self._whole = True  # whether that is so: a signal can arrive in between
        self._masked = False

    def compile(self, told: Callable[[], None]) -> None:
        """Compile it in another thread, and call `told` when that is done, or has failed."""

        def job() -> None:
            try:
                self._matcher = self._compiler.matcher(self._kind, self._source)
            except BaseException as error:
                self.error = error
            told()

        self._compiler.submit(job)

    @property
    def compiled(self) -> bool:
        """Whether a text can begin."""
        return self._matcher is not None

    def guide(self, sequence: Sequence, prompt: int, force: bool) -> None:
        """Take in the tokens that were made, append those that must follow, and tell the sampler what may come next.

        Parameters
        ----------
        sequence : Sequence
        prompt : int
            Tokens of it that were given.
        force : bool
            Append what alone may follow; if not, each token is computed, to the same text.

        Raises
        ------
        ConstraintError
            If the text took the parser to one of its limits.
        """
        matcher = self._matcher
        assert matcher is not None
        assert sequence.sampler is not None
        if not self._whole:
            matcher.reset()
            self._seen, self._masked = 0, False
        new = sequence.tokens(prompt + self._seen).tolist()
        if self._masked and not new:
            return
        self._whole = False
        matcher.consume_tokens(new)
        self._seen += len(new)
        if force and not sequence.ended and not matcher.is_stopped():
            forced = matcher.compute_ff_tokens()
            if forced:
                forced = forced[: sequence.append(forced)]
                matcher.consume_tokens(forced)
                self._seen += len(forced)
        if matcher.is_error():
            raise ConstraintError(f"the text cannot be held to its {self._kind}: {one_line(matcher.get_error())}")
        self.ended = matcher.is_stopped()
        if self.ended:
            sequence.end()
        elif not sequence.ended:
            matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            if not self._mask.any():
                raise ConstraintError(f"no token of the vocabulary can continue the text as its {self._kind} demands")
            sequence.sampler.allow(self._mask)
        self._masked = self._whole = True


def _schema_text(schema: Any) -> str:
    """Return a schema as JSON; what is no schema raises ConstraintError."""
    try:
        if isinstance(schema, str):
            if len(schema) > MOST_SOURCE:
                raise ConstraintError(f"json_schema has {len(schema)} characters, limit {MOST_SOURCE}")
            schema = json.loads(schema)
        if not isinstance(schema, (dict, bool)):
            raise ConstraintError(f"json_schema must be an object or its text, not {type(schema).__name__}")
        _check_counts(schema)
        return json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise ConstraintError("json_schema is nested too deeply") from None
    except ConstraintError:
        raise
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"json_schema is no JSON: {one_line(error)}") from None


_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems")


def _check_counts(schema: Any) -> None:
    """Refuse what the library accepts but does not hold: draft 3, and names that may come twice where they count."""
    left = [schema]
    while left:
        one = left.pop()
        if not isinstance(one, dict):
            continue
        old = [key for key in ("divisibleBy", "extends", "disallow") if key in one]
        if old or "draft-03" in str(one.get("$schema", "")):
            raise ConstraintError(f"json_schema is of draft 3 ({', '.join(old) or '$schema'}), which is not supported")
        least, named = one.get("minProperties", 0), one.get("properties", {})
        if isinstance(least, int) and isinstance(named, dict) and least > len(named) + 1:
            raise ConstraintError(f"json_schema has minProperties {least}, but names only {len(named)} properties")
        for key in _MAPS:
            left += one[key].values() if isinstance(one.get(key), dict) else ()
        for key in _LISTS:
            left += one[key] if isinstance(one.get(key), list) else ()
        left += [one[key] for key in _ONES if key in one]


def _translated(kind: str, source: str) -> str:
    """Return a grammar in the form that the library compiles."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if kind == "json_schema":
        options: Any = {"whitespace_pattern": WHITESPACE, "lenient": False, "item_separator": ",", "key_separator": ":"}
        return LLMatcher.grammar_from_json_schema(source, overrides=options)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(source)
    if "::=" in source and re.search(r"(?m)^\s*(%llguidance\b|[?!]?start\b[^:\n]*:(?!:))", source) is None:
        if source.count("::=") > MOST_RULES:
            raise ValueError(f"more than {MOST_RULES} rules")
        source = gbnf_to_lark(re.sub(r"\\(?:\\|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))", _character, source))
    return LLMatcher.grammar_from_lark(source)


def _character(escape: re.Match[str]) -> str:
    r"""Write ``\u`` escapes of GBNF as what they stand for; the library takes their leading zeros away."""
    code = escape[1] or escape[2]
    if code is None:
        return escape[0]
    return f"\\x{int(code, 16):02x}" if int(code, 16) < 128 else chr(int(code, 16))
