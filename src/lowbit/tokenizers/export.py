"""The tokenizer of a model folder as the ``tokenizer.ggml.*`` keys of a GGUF file.

GGUF knows two kinds that matter here: ``llama``, SentencePiece's BPE with a score per token, and ``gpt2``, byte-level
BPE with merges and the name of a splitting rule. A ``tokenizer.json`` with merges over text rather than bytes is a
SentencePiece vocabulary in another form: its scores follow from the order of the merges. What GGUF has no key for
(Unicode normalisation, names that swallow white space, a space before text that begins with none) gets a key of
lowbit's own; other programs do not look at it.

Nothing is taken on trust: the keys are made into a tokenizer again, and that one must treat every token and a set of
awkward texts as the folder's does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from . import find_tokenizer_file, from_gguf_metadata, load_tokenizer, read_tokenizer_file
from .base import Tokenizer, end_markers
from .bpe import Parts
from .bpe import Vocabulary as BytePairVocabulary
from .gpt2 import NORMALIZER_KEY, SPACES_TO_META, STRIP_KEYS
from .hub import read_settings
from .modelproto import ModelProto
from .splitting import BY_NAME, GPT2
from .spm import PREFIX_KEY, read_model_file
from .tiktoken import is_rank_file, read_rank_file
from .tokenizer_json import read_tokenizer_json
from .vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, looks_like_byte

Keys = dict[str, "tuple[Any, str]"]
"""Values by key, with the type in which GGUF stores them."""

_PREFIX = {"type": "Prepend", "prepend": "▁"}
PROBES = (
    "Hello, world", " two  spaces   three ", "\n\ttabs\r\n\n lines \n", "I'm, you'LL we've 'tis",
    "a1b22c333 4444 55555,6",
    "x=f(y)[0]; // ok?\n#!<=>", "Füße, naïve, e\u0301 \u1e9b\u0323", "Война и мир", "日本語の文章。", "العربية हिन्दी",
    "🙂👩‍👧\u200d ﬁ ½", "\x00\x01\x7f\u2028\ufeff", "▁▁ ▁a", "<0x0A> <unk> <s></s>", "aaaaaaaaaaaaaaaaaaaa",
)  # fmt: skip
"""Texts that a wrong rule would take apart in another way."""


def gguf_keys(folder: str | os.PathLike[str], vocab_size: int) -> Keys:
    """Translate the tokenizer of a model folder.

    Parameters
    ----------
    folder : path
    vocab_size : int
        Number of tokens the model has; what the tokenizer lacks is filled up with unused tokens.

    Returns
    -------
    dict of str to (value, type)
        For `lowbit.formats.gguf_writer.GGUFWriter.add_metadata`.

    Raises
    ------
    FormatError
        If the tokenizer is not sound, or larger than the model's vocabulary.
    UnsupportedModelError
        If lowbit does not know it, or GGUF has no words for it.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > vocab_size:
        raise FormatError(f"{folder}: {tokenizer.vocab_size} token texts for a vocabulary of {vocab_size}")
    path = find_tokenizer_file(Path(folder))
    data, settings = read_tokenizer_file(str(path)), read_settings(Path(folder))
    if data[:1] == b"\n":
        keys = _sentencepiece(read_model_file(data, str(path), settings), str(path))
    elif data[:1] == b"{":
        parts = read_tokenizer_json(data, str(path), settings)
        keys = _byte_level(parts, str(path)) if parts.recipe.byte_level else _scored(parts, str(path))
    elif is_rank_file(data):
        keys = _byte_level(read_rank_file(data, str(path), settings), str(path))
    else:
        raise _no_words(str(path), "is of a kind that only llama2.c uses")
    _fill_up(keys, vocab_size)
    _add_special(keys, tokenizer)
    _check_equal(keys, tokenizer, str(path))
    return keys


def _no_words(path: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path}: GGUF has no words for this tokenizer, which {why}")


def _sentencepiece(model: ModelProto, path: str) -> Keys:
    if not model.plain or not model.specs.escape_whitespaces:
        raise _no_words(path, "is no plain BPE model")
    return {
        "tokenizer.ggml.model": ("llama", "string"),
        "tokenizer.ggml.tokens": (_as_in_text(model.vocabulary.tokens, model.vocabulary.types), "string"),
        "tokenizer.ggml.scores": (model.vocabulary.scores, "f32"),
        "tokenizer.ggml.token_type": (model.vocabulary.types.astype(np.int32), "i32"),
        "tokenizer.ggml.add_space_prefix": (model.specs.add_dummy_prefix, "bool"),
        "tokenizer.ggml.remove_extra_whitespaces": (model.specs.remove_extra_whitespaces, "bool"),
    }


def _as_in_text(tokens: Sequence[bytes], types: np.ndarray) -> list[bytes]:
    """Tokens with the user-defined ones as GGUF has them: llama.cpp looks for them before it escapes spaces."""
    return [t.replace(SPACE, b" ") if kind == USER_DEFINED else t for t, kind in zip(tokens, types.tolist())]


def _table(vocabulary: BytePairVocabulary) -> tuple[list[bytes], np.ndarray]:
    """Texts and types by id."""
    tokens, types = [b""] * vocabulary.size, np.full(vocabulary.size, UNUSED, np.int32)
    for kind, ids in zip((NORMAL, USER_DEFINED, CONTROL), vocabulary.by_kind()):
        for text, i in ids.items():
            tokens[i], types[i] = text.encode("utf-8", "surrogateescape"), kind
    return tokens, types


def _byte_level(parts: Parts, path: str) -> Keys:
    recipe, vocabulary = parts.recipe, parts.vocabulary
    forms = [str(step["type"]) for step in recipe.normalizer]
    if len(forms) > 1 or any(not form.startswith("NF") for form in forms):
        raise _no_words(path, f"changes text before it is split ({', '.join(forms)})")
    rule = (_patterns(recipe.pre_tokenizer), recipe.ignore_merges)
    name = next(
        (n for n, s in BY_NAME.items() if n != "default" and not s.raw and (s.patterns, s.ignore_merges) == rule), None
    )
    if name is None:
        raise _no_words(path, "splits text by a rule that has no name there")
    if any(" " in part for merge in parts.merges for part in merge):
        raise _no_words(path, "merges tokens with spaces")
    tokens, types = _table(vocabulary)
    keys: Keys = {
        "tokenizer.ggml.model": ("gpt2", "string"),
        "tokenizer.ggml.pre": (name, "string"),
        "tokenizer.ggml.tokens": (tokens, "string"),
        "tokenizer.ggml.token_type": (types, "i32"),
        "tokenizer.ggml.merges": ([" ".join(merge) for merge in parts.merges], "string"),
    }
    if forms:
        keys[NORMALIZER_KEY] = (forms[0], "string")
    for side, key in enumerate(STRIP_KEYS):
        ids = sorted(i for i, sides in vocabulary.strips.items() if sides[side])
        if ids:
            keys[key] = (np.array(ids, np.int32), "i32")
    return keys


def _patterns(steps: Any) -> tuple[str, ...] | None:
    """The regular expressions that cut text, one within the pieces of the other; None if something else happens too."""
    patterns: list[str] = []
    for step in steps:
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step["use_regex"] else []
        elif step["type"] == "Digits":
            patterns.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif step["type"] == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated":
            patterns.append(step["pattern"]["Regex"])
        else:
            return None
    return tuple(patterns)


def _scored(parts: Parts, path: str) -> Keys:
    """Merges over text: the tokens in the order in which merging makes them, the first with the best score."""
    recipe, vocabulary = parts.recipe, parts.vocabulary
    normalizer, steps = list(recipe.normalizer), list(recipe.pre_tokenizer)
    spaces = [step for step in steps if step["type"] == "Metaspace" and not step["split"]]
    scheme = "never"
    if normalizer in ([_PREFIX, SPACES_TO_META], [SPACES_TO_META]) and not steps:
        prefix = _PREFIX in normalizer
    elif not normalizer and len(spaces) == len(steps) == 1:
        scheme = str(spaces[0]["prepend_scheme"])
        prefix = scheme != "never"
    else:
        raise _no_words(path, "splits text by a rule that has no name there")
    if recipe.ignore_merges:
        raise _no_words(path, "ignores merges")
    tokens, types = _table(vocabulary)
    for i, token in enumerate(tokens):
        if types[i] == NORMAL and looks_like_byte(token):
            types[i] = BYTE
    if parts.unk_id is not None:
        types[parts.unk_id] = UNKNOWN
    keys: Keys = {
        "tokenizer.ggml.model": ("llama", "string"),
        "tokenizer.ggml.tokens": (_as_in_text(tokens, types), "string"),
        "tokenizer.ggml.scores": (_scores(parts, path), "f32"),
        "tokenizer.ggml.token_type": (types, "i32"),
        "tokenizer.ggml.add_space_prefix": (prefix, "bool"),
        "tokenizer.ggml.remove_extra_whitespaces": (False, "bool"),
    }
    if scheme != "never":
        keys[PREFIX_KEY] = (scheme, "string")
    return keys


def _scores(parts: Parts, path: str) -> np.ndarray:
    """Scores that make the same merges; refused where the order of the merges is not one of tokens.

    SentencePiece merges whatever becomes a token, and takes the best token first. So all merges to one token must stand
    together, and every way to put a token together from two others must be among them. Tokens that are found before
    text is merged need no merges, and may have any.
    """
    ids, literal = parts.vocabulary.ids, parts.vocabulary.literal
    order: dict[str, int] = {}
    ways: dict[str, int] = {}
    before = ""
    for left, right in parts.merges:
        token = left + right
        if token != before and token in order and token not in literal:
            raise _no_words(path, f"merges to {token[:20]!r} at two different ranks")
        order.setdefault(token, len(order))
        ways[token] = ways.get(token, 0) + 1
        before = token
    for token in ids:
        if token in literal or looks_like_byte(token.encode()):
            continue
        possible = sum(token[:i] in ids and token[i:] in ids for i in range(1, len(token)))
        if possible != ways.get(token, 0):
            raise _no_words(path, f"makes {token[:20]!r} in {ways.get(token, 0)} of {possible} possible ways")
    scores = np.full(parts.vocabulary.size, -float(len(order)), np.float32)
    for token, rank in order.items():
        if token in ids:
            scores[ids[token]] = -rank
    return scores


def _fill_up(keys: Keys, vocab_size: int) -> None:
    tokens, kind = keys["tokenizer.ggml.tokens"]
    # SentencePiece writes out the names of unused tokens; these have no text.
    filler_type = CONTROL if keys["tokenizer.ggml.model"][0] == "llama" else UNUSED
    tokens = [text or b"[PAD%d]" % i for i, text in enumerate(tokens)]
    tokens += [b"[PAD%d]" % i for i in range(len(tokens), vocab_size)]
    for key, filler in (("token_type", filler_type), ("scores", -1e9)):
        if f"tokenizer.ggml.{key}" in keys:
            values, value_kind = keys[f"tokenizer.ggml.{key}"]
            padded = np.full(vocab_size, filler, values.dtype)
            padded[: len(values)] = values
            keys[f"tokenizer.ggml.{key}"] = (padded, value_kind)
    keys["tokenizer.ggml.tokens"] = (tokens, kind)


def _add_special(keys: Keys, tokenizer: Tokenizer) -> None:
    """Special tokens as the folder's files name them together."""
    # What ends a text besides EOS, and is not known to do so by its name, takes the places of two other ends.
    known = end_markers(set(tokenizer.special_texts()))
    ends = sorted(i for i in tokenizer.eos_ids - {tokenizer.eos_id} if tokenizer.piece(i) not in known)
    eot, eom = (*ends, None, None)[:2]
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "eot": eot, "eom": eom}
    for name, token in special.items():
        if token is not None:
            keys[f"tokenizer.ggml.{name}_token_id"] = (token, "u32")
    keys["tokenizer.ggml.add_bos_token"] = (tokenizer.add_bos, "bool")
    keys["tokenizer.ggml.add_eos_token"] = (tokenizer.add_eos, "bool")


def _check_equal(keys: Mapping[str, tuple[Any, str]], tokenizer: Tokenizer, path: str) -> None:
    """Refuse keys that make another tokenizer than the folder's."""
    types = keys["tokenizer.ggml.token_type"][0].tolist()
    values = {key: value for key, (value, _) in keys.items()}
    for key in ("tokenizer.ggml.merges",):  # as a reader of GGUF hands it out
        if key in values:
            values[key] = [merge.encode("utf-8", "surrogateescape") for merge in values[key]]
    made = from_gguf_metadata(values, path)
    for name in ("bos_id", "eos_id", "add_bos", "add_eos", "eos_ids"):
        if getattr(made, name) != getattr(tokenizer, name):
            raise _no_words(path, f"has {name} {getattr(tokenizer, name)}, and would get {getattr(made, name)}")
    for i in range(tokenizer.vocab_size):
        for first in (False, True) if i != tokenizer.unk_id else ():  # no model writes what it cannot read
            if made.token_bytes(i, first) != tokenizer.token_bytes(i, first):
                raise _no_words(path, f"decodes the token {i} in another way")
    names = sorted(tokenizer.special_texts())[:16]
    # SentencePiece takes ▁ in a text for a space, and tokenizer.json does not where runs of either are tokens (Gemma).
    runs = any(kind == USER_DEFINED and b"  " in t for t, kind in zip(keys["tokenizer.ggml.tokens"][0], types))
    for text in (*PROBES, *(f"a {name} b{name}" for name in names), "".join(names)):
        if runs and "▁" in text:
            continue
        for parse in (False, True):
            if made.encode(text, parse_special=parse) != tokenizer.encode(text, parse_special=parse):
                raise _no_words(path, f"splits {text[:40]!r} in another way")
