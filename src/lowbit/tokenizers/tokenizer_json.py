"""``tokenizer.json``, the format of Hugging Face's tokenizers library, as far as language models with BPE use it.

Nothing of the file reaches the library unseen. Each part of it must be one of those listed here: leaving out one that
is not known would give wrong ids, and a pattern of the file's own could take for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from .base import MAX_VOCAB_SIZE
from .bpe import BytePairTokenizer, Parts, Recipe, Vocabulary, make_engine
from .gpt2 import SPACES_TO_META, text_surface
from .gpt2 import surface as byte_level_surface
from .hub import Settings, parse_json
from .splitting import COVERING_PATTERNS, KNOWN_PATTERNS

_BEHAVIORS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>")
_EOS_NAMES = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>", "<｜end▁of▁sentence｜>")
_META = "▁"


def from_tokenizer_json(data: bytes, path: str, settings: Settings) -> BytePairTokenizer:
    """Make a tokenizer from the bytes of a ``tokenizer.json``, and what the files beside it say.

    Raises
    ------
    FormatError
        If the file is malformed, or its parts contradict each other.
    UnsupportedModelError
        If it has a part that lowbit does not know, or the tokenizers library is not installed.
    """
    parts = read_tokenizer_json(data, path, settings)
    recipe = parts.recipe

    def build(scheme: str) -> Any:
        steps = _with_scheme(recipe.pre_tokenizer, scheme)
        return make_engine(replace(parts, recipe=replace(recipe, pre_tokenizer=steps)), path)

    # The library's "first" looks at the whole text, of which it sees only parts here.
    first_only = any(step.get("prepend_scheme") == "first" for step in recipe.pre_tokenizer)
    return BytePairTokenizer(
        parts,
        build("always"),
        byte_level_surface if recipe.byte_level else text_surface,
        path,
        raw_literals=recipe.byte_level,
        inner_engine=build("never") if first_only else None,
    )


def read_tokenizer_json(data: bytes, path: str, settings: Settings) -> Parts:
    """Check the bytes of a ``tokenizer.json``; as `from_tokenizer_json`, without the library."""
    root = parse_json(data, path)
    model = root.get("model")
    if not isinstance(model, dict):
        raise FormatError(f"{path}: has no model")
    reader = _Reader(path)
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UnsupportedModelError(f"{path}: tokenizers of kind {str(kind)[:40]!r} are not supported, only BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedModelError(f"{path}: BPE with {name} is not supported")
    normalizer = reader.normalizer(root.get("normalizer"))
    pre_tokenizer = reader.pre_tokenizer(root.get("pre_tokenizer"))
    if normalizer and normalizer[-1] == SPACES_TO_META:  # so nothing is left to split at
        pre_tokenizer = [step for step in pre_tokenizer if step.get("pattern") != {"String": " "}]
    byte_level = any(step["type"] == "ByteLevel" for step in pre_tokenizer)
    recipe = Recipe(
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        ignore_merges=reader.flag(model, "ignore_merges"),
        byte_fallback=reader.flag(model, "byte_fallback"),
        fuse_unk=reader.flag(model, "fuse_unk"),
        byte_level=byte_level,
    )
    strip_space = reader.decoder(root.get("decoder"), byte_level)
    vocabulary = reader.vocabulary(model.get("vocab"), root.get("added_tokens"), settings)
    named = {**vocabulary.ids, **vocabulary.literal, **vocabulary.control}
    before, after = reader.template(root.get("post_processor"))
    bos = _first(named, vocabulary.control, (settings.bos, *before), _BOS_NAMES)
    eos = _first(named, vocabulary.control, (settings.eos, *after), _EOS_NAMES)
    unk = model.get("unk_token")
    if unk is not None and (not isinstance(unk, str) or unk not in named):
        raise FormatError(f"{path}: its unknown token {str(unk)[:40]!r} is not in the vocabulary")
    vocabulary.hide((bos, eos))
    unk_id = None if unk is None else named[unk]
    engine_unk = None
    if unk is not None and ((not byte_level and not recipe.byte_fallback) or recipe.lacking(vocabulary.ids)):
        engine_unk = unk
        vocabulary.ids[unk] = named[unk]
    return Parts(
        vocabulary,
        reader.merges(model.get("merges")),
        recipe,
        bos_id=bos,
        eos_id=eos,
        unk_id=unk_id,
        unk=engine_unk,
        add_bos=bool(before) if settings.add_bos is None else settings.add_bos,
        add_eos=bool(after) if settings.add_eos is None else settings.add_eos,
        strip_space=strip_space,
    )


def _with_scheme(steps: Sequence[Mapping[str, Any]], scheme: str) -> list[Mapping[str, Any]]:
    return [{**step, "prepend_scheme": scheme} if step.get("prepend_scheme") == "first" else step for step in steps]


def _first(
    named: Mapping[str, int], control: Mapping[str, int], given: tuple[str | None, ...], usual: tuple[str, ...]
) -> int | None:
    for name in given:
        if name is not None and name in named:
            return named[name]
    return next((control[name] for name in usual if name in control), None)


class _Reader:
    """Checks of each part of the file; every method returns what is left to do, or refuses."""

    def __init__(self, path: str) -> None:
        self.path = path

    def flag(self, part: Mapping[str, Any], name: str) -> bool:
        value = part.get(name)
        if value is not None and not isinstance(value, bool):
            raise FormatError(f"{self.path}: {name} must be true or false")
        return bool(value)

    def unknown(self, what: str, part: Any) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.path}: {what} is not supported: {str(part)[:120]!r}")

    def steps(self, part: Any, what: str, inner: str) -> list[dict[str, Any]]:
        """Return the steps of a part that may be a sequence of parts."""
        if part is None:
            return []
        if not isinstance(part, dict):
            raise FormatError(f"{self.path}: its {what} is not an object")
        found = part.get(inner) if part.get("type") == "Sequence" else [part]
        if not isinstance(found, list) or not all(isinstance(step, dict) for step in found) or len(found) > 16:
            raise FormatError(f"{self.path}: its {what} is not a sequence of up to 16 objects")
        return found

    def normalizer(self, part: Any) -> list[dict[str, Any]]:
        steps = self.steps(part, "normalizer", "normalizers")
        for step in steps:
            kind, pattern = step.get("type"), step.get("pattern")
            if kind in ("NFC", "NFD", "NFKC", "NFKD"):
                continue
            if kind == "Prepend" and _short(step.get("prepend")):
                continue
            content = step.get("content")
            if (
                kind == "Replace"
                and isinstance(pattern, dict)
                and _short(pattern.get("String"))
                and isinstance(content, str)
                and len(content) <= len(pattern["String"])  # or a few steps make terabytes of a sentence
            ):
                continue
            raise self.unknown("the normalizer", step)
        return steps

    def pre_tokenizer(self, part: Any) -> list[dict[str, Any]]:
        steps = self.steps(part, "pre-tokenizer", "pretokenizers")
        return [self._pre_tokenizer(step) for step in steps]

    def _pre_tokenizer(self, step: dict[str, Any]) -> dict[str, Any]:
        kind = step.get("type")
        if kind == "ByteLevel":
            return {
                "type": kind,
                "add_prefix_space": step.get("add_prefix_space", True) is True,
                "use_regex": step.get("use_regex", True) is True,
            }
        if kind == "Digits":
            return {"type": kind, "individual_digits": self.flag(step, "individual_digits")}
        if kind == "Punctuation" and step.get("behavior", "Isolated") in _BEHAVIORS:
            return {"type": kind, "behavior": step.get("behavior", "Isolated")}
        if kind == "Metaspace" and step.get("replacement") == _META:
            legacy = "always" if step.get("add_prefix_space", True) is True else "never"
            scheme = step.get("prepend_scheme", legacy)
            if scheme in ("always", "first", "never"):
                return {
                    "type": kind,
                    "replacement": _META,
                    "prepend_scheme": scheme,
                    "split": step.get("split", True) is True,
                }
        pattern, behavior = step.get("pattern"), step.get("behavior")
        if kind == "Split" and isinstance(pattern, dict):
            inverted = self.flag(step, "invert")
            # Some files hold the two line ends themselves where others hold their escapes.
            regex = str(pattern.get("Regex")).replace("\r", r"\r").replace("\n", r"\n")
            if (regex in KNOWN_PATTERNS and behavior == "Isolated" and not inverted) or (
                regex in COVERING_PATTERNS and behavior == "Removed" and inverted  # what does not match is removed
            ):
                return {"type": kind, "pattern": {"Regex": regex}, "behavior": "Isolated"}
            if _short(pattern.get("String")) and behavior in _BEHAVIORS and not inverted:
                return {"type": kind, "pattern": {"String": pattern["String"]}, "behavior": behavior}
        raise self.unknown("the pre-tokenizer", step)

    def decoder(self, part: Any, byte_level: bool) -> bool:
        """Tell whether the first token of a text loses its leading space."""
        steps = self.steps(part, "decoder", "decoders")
        strips = False
        for step in steps:
            kind = step.get("type")
            if byte_level:
                known = kind in ("ByteLevel", "Fuse")
            elif kind == "Replace":
                known = step.get("pattern") == {"String": _META} and step.get("content") == " "
            elif kind == "Strip":
                known = (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)
                strips = True
            elif kind == "Metaspace":
                known = step.get("replacement") == _META
                strips = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space") is not False
            else:
                known = kind in ("ByteFallback", "Fuse")
            if not known:
                raise self.unknown("the decoder", step)
        if not byte_level and not steps:
            raise self.unknown("text without a decoder", part)
        return strips

    def template(self, part: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the tokens before and after a text."""
        before: list[str] = []
        after: list[str] = []
        for step in self.steps(part, "post-processor", "processors"):
            if step.get("type") == "ByteLevel":
                continue
            pieces = step.get("single")
            if step.get("type") != "TemplateProcessing" or not isinstance(pieces, list):
                raise self.unknown("the post-processor", step)
            into = before
            for piece in pieces:
                special = piece.get("SpecialToken") if isinstance(piece, dict) else None
                if isinstance(piece, dict) and "Sequence" in piece and into is before:
                    into = after
                elif isinstance(special, dict) and isinstance(special.get("id"), str):
                    into.append(special["id"])
                else:
                    raise self.unknown("the post-processor", step)
        if len(before) > 1 or len(after) > 1:
            raise self.unknown("a text between several special tokens", part)
        return tuple(before), tuple(after)

    def vocabulary(self, vocab: Any, added: Any, settings: Settings) -> Vocabulary:
        if not isinstance(vocab, dict) or not vocab:
            raise FormatError(f"{self.path}: has no vocabulary")
        if not isinstance(added if added is not None else [], list):
            raise FormatError(f"{self.path}: added_tokens is not a list")
        ids: dict[str, int] = dict(vocab)
        control: dict[str, int] = {}
        literal: dict[str, int] = {}
        strips: dict[int, tuple[bool, bool]] = {}
        for token in added or []:
            if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
                raise FormatError(f"{self.path}: an added token has no text")
            name, number = token["content"], token.get("id")
            beyond = settings.rows is not None and type(number) is int and number >= settings.rows
            if beyond and name not in ids and name not in (settings.bos, settings.eos):
                continue  # a model that sees no images, say, has no row for their token
            if self.flag(token, "single_word"):
                raise self.unknown("an added token that must be a word", token)
            special = self.flag(token, "special")
            if special or ids.get(name) != number:
                ids.pop(name, None)  # else merging makes it, too: of "  ", say, where "▁▁" is an added token
            (control if special else literal)[name] = number  # type: ignore[assignment]
            sides = (self.flag(token, "lstrip"), self.flag(token, "rstrip"))
            if any(sides) and type(number) is int:
                strips[number] = sides
        both = ids.keys() & literal.keys()
        numbers = [*ids.values(), *(i for name, i in literal.items() if name not in both), *control.values()]
        if not set(map(type, numbers)) <= {int} or min(numbers) < 0 or max(numbers) >= MAX_VOCAB_SIZE:
            raise FormatError(f"{self.path}: token ids are not numbers from 0 to {MAX_VOCAB_SIZE - 1}")
        if len(set(numbers)) < len(numbers):
            raise FormatError(f"{self.path}: two tokens have the same id")
        for name in (*ids, *literal, *control):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise FormatError(f"{self.path}: a token holds half of a surrogate pair") from None
        return Vocabulary(max(numbers) + 1, ids, control, literal, strips)

    def merges(self, found: Any) -> list[tuple[str, str]]:
        if not isinstance(found, list):
            raise FormatError(f"{self.path}: has no list of merges")
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in found]
        if not {*map(type, merges)} <= {list} or any(len(m) != 2 or {*map(type, m)} != {str} for m in merges):
            raise FormatError(f"{self.path}: a merge is not two tokens")
        return [(left, right) for left, right in merges]


def _short(text: Any) -> bool:
    return isinstance(text, str) and 0 < len(text) <= 16
