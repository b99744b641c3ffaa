"""Byte pair encoding by the tokenizers library, from vocabularies and merges that were checked here."""

from __future__ import annotations

import contextlib
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Foreign, FormatError, UnsupportedModelError
from .base import MAX_TOKEN_BYTES, MAX_VOCAB_SIZE, Tokenizer, end_markers
from .byte_alphabet import TEXT_LETTERS
from .names import NameSplitter
from .splitting import LINEAR

_MAX_MERGES = 4 * MAX_VOCAB_SIZE
_MAX_PART = 1_000_000
_BYTE_TOKENS = frozenset(f"<0x{i:02X}>" for i in range(256))
_BOUNDARY = re.compile("(?<=[a-z]) (?=[a-z])")


@dataclass
class Vocabulary:
    """Tokens by what they are; an id may be missing from all of them."""

    size: int
    ids: dict[str, int]
    """Tokens that merging makes, by their text."""
    control: dict[str, int]
    """Tokens without text, which only `parse_special` finds."""
    literal: dict[str, int] = field(default_factory=dict)
    """Tokens that are found in any text before it is cut into pieces; merging may make them, too."""
    strips: dict[int, tuple[bool, bool]] = field(default_factory=dict)
    """Tokens of the last two kinds that swallow the white space to their left and right."""
    unused: frozenset[int] = frozenset()
    """Tokens that no text becomes and that have no text."""

    def hide(self, ids: Iterable[int | None]) -> None:
        """Make these tokens, and those whose text is a known end marker, control tokens."""
        wanted = {i for i in ids if i is not None}
        ends = self.ends()
        for tokens in (self.ids, self.literal):
            # Merging makes words of "</s>", too, in vocabularies that do not end texts with it.
            marked = [n for n in ends if n in tokens and (tokens is self.literal or n[1] in "|｜")]
            for name in marked + [n for n, i in tokens.items() if i in wanted]:
                if name in tokens:
                    self.control[name] = tokens.pop(name)

    def ends(self) -> set[str]:
        """Return the names of tokens that end a text, as far as names tell."""
        return end_markers(ChainMap(*self.by_kind()))

    def by_kind(self) -> tuple[dict[str, int], ...]:
        """Return the tokens with a text, in the order of which one counts least."""
        return self.ids, self.literal, self.control

    def check(self, path: str) -> None:
        """Raise FormatError unless the sizes are within the limits."""
        if not 0 < self.size <= MAX_VOCAB_SIZE:
            raise FormatError(f"{path}: the vocabulary has {self.size} tokens, not 1 to {MAX_VOCAB_SIZE}")
        for tokens in self.by_kind():
            if max(map(len, tokens), default=0) > MAX_TOKEN_BYTES:
                raise FormatError(f"{path}: a token is longer than {MAX_TOKEN_BYTES} bytes")


@dataclass(frozen=True)
class Recipe:
    """What happens to text around the merging, in the terms of ``tokenizer.json``; every part is a known one."""

    normalizer: Sequence[Mapping[str, Any]] = ()
    pre_tokenizer: Sequence[Mapping[str, Any]] = ()
    ignore_merges: bool = False
    byte_fallback: bool = False
    fuse_unk: bool = False
    byte_level: bool = True
    """Tokens are written in GPT-2's alphabet of bytes; else they are text, with ▁ for a space."""
    keep_lacking: bool = False
    """A byte without a token takes its place among the symbols until they have merged, as in llama.cpp, and is left
    out then; else it is left out before, and what stood beside it merges, as the library does it."""

    def lacking(self, ids: Mapping[str, int]) -> frozenset[str]:
        """Return the bytes of text, as tokens are written, that have no token of their own."""
        if self.byte_level:
            return TEXT_LETTERS - ids.keys()
        return _BYTE_TOKENS - ids.keys() if self.byte_fallback else frozenset()


@dataclass
class Parts:
    """What a tokenizer file with merges holds, checked and ready to be put together."""

    vocabulary: Vocabulary
    merges: list[tuple[str, str]]
    recipe: Recipe
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None = None
    unk: str | None = None
    """Token of text that merging cannot write, if the engine needs one."""
    add_bos: bool = False
    add_eos: bool = False
    strip_space: bool = False
    """The first token of a text loses one leading space."""


def make_engine(parts: Parts, path: str) -> Any:
    """Return a tokenizers.Tokenizer that knows nothing of special tokens.

    Raises
    ------
    FormatError
        If a merge names a token that does not exist, or no byte has a token.
    UnsupportedModelError
        If the tokenizers library is not installed.
    """
    try:
        import tokenizers
        from tokenizers import models
    except ImportError as error:
        raise UnsupportedModelError(f"{path}: its tokenizer needs: pip install tokenizers") from error
    vocabulary, merges, recipe = parts.vocabulary, parts.merges, parts.recipe
    vocabulary.check(path)
    ids = vocabulary.ids
    lacking = recipe.lacking(ids)
    if recipe.byte_level and lacking == TEXT_LETTERS:
        raise FormatError(f"{path}: all {len(lacking)} bytes have no token")
    if recipe.keep_lacking:
        # Ids behind the vocabulary; no merge is of them, and `BytePairTokenizer` leaves them out.
        ids = {**ids, **{letter: vocabulary.size + i for i, letter in enumerate(sorted(lacking))}}
    if len(merges) > _MAX_MERGES:
        raise FormatError(f"{path}: has {len(merges)} merges, more than {_MAX_MERGES}")
    options = {
        "unk_token": parts.unk,
        "fuse_unk": recipe.fuse_unk,
        "byte_fallback": recipe.byte_fallback,
        "ignore_merges": recipe.ignore_merges,
    }
    # The library itself finds out whether all tokens of a merge exist, but must not see one longer than any token.
    model = None
    if _is_within(ids, merges):
        with contextlib.suppress(FormatError), Foreign("tokenizers", path):
            model = models.BPE(ids, merges, **options)
    if model is None:
        ids = {token: i for token, i in ids.items() if _is_text(token)}
        merges = _possible(vocabulary, ids, merges, path)
    with Foreign("tokenizers", path):
        engine = tokenizers.Tokenizer(models.BPE(ids, merges, **options) if model is None else model)
        if recipe.normalizer:
            engine.normalizer = tokenizers.normalizers.Sequence([_normalizer(step) for step in recipe.normalizer])
        if recipe.pre_tokenizer:
            steps = [_pre_tokenizer(step) for step in recipe.pre_tokenizer]
            engine.pre_tokenizer = steps[0] if len(steps) == 1 else tokenizers.pre_tokenizers.Sequence(steps)
    return engine


def _is_within(ids: Mapping[str, int], merges: list[tuple[str, str]]) -> bool:
    """Tell whether all is text, and no merge makes more bytes than the longest token has."""
    try:
        longest = max(map(len, map(str.encode, ids)), default=0)
        return max(map(len, map(str.encode, map("".join, merges))), default=0) <= longest
    except UnicodeEncodeError:
        return False


def _possible(
    vocabulary: Vocabulary, ids: Mapping[str, int], merges: list[tuple[str, str]], path: str
) -> list[tuple[str, str]]:
    """Leave out merges from or to tokens that text must not or cannot become."""
    kept = []
    for i, (left, right) in enumerate(merges):
        tokens = (left, right, left + right)
        if all(token in ids for token in tokens):
            kept.append((left, right))
        elif not all(any(t in known for known in vocabulary.by_kind()) for t in tokens):
            raise FormatError(f"{path}: merge {i} of {left[:40]!r} and {right[:40]!r} is not of tokens to a token")
    return kept


def _is_text(token: str) -> bool:
    try:
        token.encode()
    except UnicodeEncodeError:
        return False
    return True


def _normalizer(step: Mapping[str, Any]) -> Any:
    from tokenizers import normalizers

    if step["type"] == "Prepend":
        return normalizers.Prepend(step["prepend"])
    if step["type"] == "Replace":
        return normalizers.Replace(step["pattern"]["String"], step["content"])
    return {"NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC, "NFKD": normalizers.NFKD}[
        step["type"]
    ]()


def _pre_tokenizer(step: Mapping[str, Any]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if step["type"] == "Split":
        regex = step["pattern"].get("Regex")
        pattern = step["pattern"]["String"] if regex is None else Regex(LINEAR.get(regex, regex))
        return pre_tokenizers.Split(pattern, _snake(step["behavior"]), step.get("invert", False))
    if step["type"] == "Digits":
        return pre_tokenizers.Digits(step.get("individual_digits", False))
    if step["type"] == "Punctuation":
        return pre_tokenizers.Punctuation(_snake(step.get("behavior", "Isolated")))
    if step["type"] == "Metaspace":
        return pre_tokenizers.Metaspace(step["replacement"], step["prepend_scheme"], step["split"])
    return pre_tokenizers.ByteLevel(step.get("add_prefix_space", True), use_regex=step.get("use_regex", True))


def _cut(text: str) -> Iterator[str]:
    """Cut text before the library's regular expressions give up on it, after ten million steps in one match.

    All rules begin a new piece at a space between two letters; text of half a million characters without one is
    hardly text, and is cut anywhere.
    """
    start = 0
    while len(text) - start > _MAX_PART:
        end = start + _MAX_PART
        for boundary in _BOUNDARY.finditer(text, start + _MAX_PART // 2, end):
            end = boundary.start()
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class BytePairTokenizer(Tokenizer):
    """A vocabulary with merges, encoded by the tokenizers library and decoded here.

    Parameters
    ----------
    parts : Parts
    engine : tokenizers.Tokenizer
        What `make_engine` makes of them.
    surface : callable
        Returns the bytes of a token of `Vocabulary.ids` by its text.
    path : str
        File the vocabulary came from, for messages.
    eos_ids : iterable of int
        Further tokens that end a generation; `eos_id` and tokens with a known end marker as text are added.
    raw_literals : bool
        Tokens of `Vocabulary.literal` are bytes as they stand there, which `surface` is not asked about.
    inner_engine : tokenizers.Tokenizer, optional
        Takes the place of `engine` for text that is not at the start.

    Notes
    -----
    Bytes that the vocabulary lacks are lost where text is encoded, in all programs (see `Recipe.keep_lacking`).
    """

    def __init__(
        self,
        parts: Parts,
        engine: Any,
        surface: Callable[[str], bytes],
        path: str,
        eos_ids: Iterable[int | None] = (),
        raw_literals: bool = True,
        inner_engine: Any = None,
    ) -> None:
        vocabulary = parts.vocabulary
        self.vocab_size = vocabulary.size
        self.bos_id, self.eos_id, self.unk_id = parts.bos_id, parts.eos_id, parts.unk_id
        self.add_bos, self.add_eos = parts.add_bos, parts.add_eos
        ends = {parts.eos_id, *eos_ids, *(vocabulary.control.get(name) for name in vocabulary.ends())}
        self.eos_ids = frozenset(i for i in ends if i is not None)
        self.strips = vocabulary.strips
        self._vocabulary, self._engine, self._inner = vocabulary, engine, inner_engine or engine
        self._surface, self._strip_space = surface, parts.strip_space
        self._guard = Foreign("tokenizers", path)
        self._texts: dict[int, str] = {}
        for tokens in vocabulary.by_kind():
            self._texts.update(zip(tokens.values(), tokens.keys()))
        self.control_ids = frozenset(vocabulary.control.values()) | vocabulary.unused
        self._literal_ids = frozenset(vocabulary.literal.values() if raw_literals else ())
        self._literals = NameSplitter(vocabulary.literal, vocabulary.strips) if vocabulary.literal else None

    def token_bytes(self, token: int, first: bool = False) -> bytes:
        self._check_id(token)
        if token in self.control_ids or token not in self._texts:
            return b""
        text = self._texts[token]
        data = text.encode("utf-8", "surrogateescape") if token in self._literal_ids else self._surface(text)
        # As in SentencePiece, a space that is written as a byte stays.
        return data[1:] if first and self._strip_space and text[0] == "▁" else data

    def piece(self, token: int) -> str:
        self._check_id(token)
        return self._texts.get(token, "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _encode_text(self, text: str, start: bool) -> list[int]:
        ids: list[int] = []
        for part in (text,) if self._literals is None else self._literals.split(text):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                for cut in _cut(part) if self._engine.pre_tokenizer is not None else (part,):
                    engine = self._engine if start and not ids else self._inner
                    with self._guard:
                        found = engine.encode(cut, add_special_tokens=False).ids
                    # Ids behind the vocabulary are bytes that it lacks.
                    size = self.vocab_size
                    ids += found if max(found, default=0) < size else [i for i in found if i < size]
        return ids

    def _special_texts(self) -> dict[str, int | None]:
        # A control token's name inside of a token that is found in any text is not a name.
        return {**dict.fromkeys(self._vocabulary.literal), **self._vocabulary.control}
