"""BPE with merges in GGUF files: the kind ``gpt2``, over bytes (Llama 3, BitNet 2B4T, Falcon3, Qwen, GPT-2), and the
kind ``gemma4``, over text with ▁ for a space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from .base import MAX_VOCAB_SIZE
from .bpe import BytePairTokenizer, Parts, Recipe, Vocabulary, make_engine
from .byte_alphabet import to_bytes
from .metadata import get, special_id
from .splitting import BY_NAME, split_steps
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, looks_like_byte

SPACES_TO_META = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""The normaliser after which tokens write a space as U+2581."""

NORMALIZER_KEY = "lowbit.tokenizer.normalizer"
STRIP_KEYS = ("lowbit.tokenizer.lstrip", "lowbit.tokenizer.rstrip")

_JOINED = 1 << 15
_LLAMA3_ARCHITECTURES = ("bitnet-b1.58", "bitnet-25")


def surface(text: str) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary stands for."""
    data = to_bytes(text)
    return text.encode("utf-8", "surrogateescape") if data is None else data


def text_surface(text: str, meta: bool = True) -> bytes:
    """Return the bytes that a token of a vocabulary of text stands for; `meta` tells whether ▁ is a space."""
    data = text.encode("utf-8", "surrogateescape")
    if looks_like_byte(data):
        return bytes([int(data[3:5], 16)])
    return data.replace("▁".encode(), b" ") if meta else data


def from_gguf(metadata: Mapping[str, Any], path: str) -> BytePairTokenizer:
    """Make a tokenizer from the ``tokenizer.ggml.*`` keys of a GGUF file; see `lowbit.tokenizers.from_gguf_metadata`.

    Raises
    ------
    FormatError
        If a key is missing, has another type than GGUF gives it, or contradicts another.
    UnsupportedModelError
        If ``tokenizer.ggml.pre`` is unknown, or the tokenizers library is not installed.
    """
    is_gemma4 = metadata.get("tokenizer.ggml.model") == "gemma4"
    name = "gemma4" if is_gemma4 else get(metadata, "pre", str, path)
    if name is None:
        # The published BitNet files leave it out; for others llama.cpp has a rule of this name.
        name = "llama-bpe" if metadata.get("general.architecture") in _LLAMA3_ARCHITECTURES else "default"
    if name not in BY_NAME:
        raise UnsupportedModelError(f"{path}: splits text by an unknown rule, tokenizer.ggml.pre = {name[:40]!r}")
    splitting = BY_NAME[name]
    tokens = _strings(metadata, "tokens", path)
    merges = _merges(_strings(metadata, "merges", path), path)
    types = _types(metadata, len(tokens), BYTE if splitting.raw else UNUSED, path)
    special = partial(special_id, metadata, n_tokens=len(tokens), path=path)
    bos, eos, unk = special("bos"), special("eos"), special("unknown")
    kinds = sorted(set(types.tolist()))  # np.unique would import numpy.ma
    if kinds == [NORMAL]:
        vocabulary = Vocabulary(len(tokens), dict(zip(tokens, range(len(tokens)))), {})
    else:
        of_kind = {kind: np.flatnonzero(types == kind).tolist() for kind in kinds}
        control = {tokens[i]: i for kind in (UNKNOWN, CONTROL) for i in of_kind.get(kind, ())}
        literal = {tokens[i]: i for i in of_kind.get(USER_DEFINED, ()) if tokens[i]}
        ids = {tokens[i]: i for kind in (BYTE, NORMAL) for i in of_kind.get(kind, ())}
        vocabulary = Vocabulary(len(tokens), ids, control, literal, unused=frozenset(of_kind.get(UNUSED, ())))
    vocabulary.hide((bos, eos, unk))
    vocabulary.strips = _strips(metadata, len(tokens), path)
    recipe = Recipe(
        normalizer=[*_normalizer(metadata, path), *([SPACES_TO_META] if splitting.raw and splitting.meta else [])],
        pre_tokenizer=split_steps(splitting.patterns, splitting.raw),
        ignore_merges=splitting.ignore_merges,
        byte_fallback=splitting.raw,
        byte_level=not splitting.raw,
        keep_lacking=True,
    )
    # Gemma is nothing without BOS, and some of its files deny that.
    add_bos = get(metadata, "add_bos_token", bool, path, default=splitting.add_bos) or is_gemma4
    add_eos = get(metadata, "add_eos_token", bool, path, default=False)
    parts = Parts(vocabulary, merges, recipe, bos, eos, unk, add_bos=add_bos, add_eos=add_eos)
    return BytePairTokenizer(
        parts,
        make_engine(parts, path),
        partial(text_surface, meta=splitting.meta) if splitting.raw else surface,
        path,
        eos_ids=(special("eot"), special("eom")),
        raw_literals=not splitting.raw,
    )


def _strings(metadata: Mapping[str, Any], name: str, path: str) -> list[str]:
    raw = get(metadata, name, list, path)
    if raw is None:
        raise FormatError(f"{path}: the vocabulary has no {name}")
    if not set(map(type, raw)) <= {bytes}:
        raise FormatError(f"{path}: tokenizer.ggml.{name} must be an array of strings")
    if len(raw) > 4 * MAX_VOCAB_SIZE:
        raise FormatError(f"{path}: tokenizer.ggml.{name} has {len(raw)} entries")
    # One long string is decoded faster than many short ones; joining takes 80 bytes for each of them meanwhile.
    decoded: list[str] = []
    for start in range(0, len(raw), _JOINED):
        part = raw[start : start + _JOINED]
        texts = b"\0".join(part).decode("utf-8", "surrogateescape").split("\0")
        decoded += texts if len(texts) == len(part) else [t.decode("utf-8", "surrogateescape") for t in part]
    return decoded


def _merges(lines: list[str], path: str) -> list[tuple[str, str]]:
    if any(line.count(" ") != 1 for line in lines):
        bad = next(i for i, line in enumerate(lines) if line.count(" ") != 1)
        raise FormatError(f"{path}: merge {bad} is not two tokens with a space between them")
    if not lines:
        return []
    parts = " ".join(lines).split(" ")
    return list(zip(parts[::2], parts[1::2]))


def _types(metadata: Mapping[str, Any], n: int, most: int, path: str) -> np.ndarray:
    types = get(metadata, "token_type", np.ndarray, path)
    if types is None:
        return np.full(n, NORMAL, dtype=np.int32)
    if types.dtype not in (np.int32, np.uint32):
        raise FormatError(f"{path}: tokenizer.ggml.token_type must be int32 or uint32, not {types.dtype}")
    if types.shape != (n,):
        raise FormatError(f"{path}: the vocabulary has {n} tokens, but {types.size} token types")
    bad = np.flatnonzero((types < 0) | (types > most))
    if bad.size:
        raise FormatError(f"{path}: token {bad[0]} of a vocabulary with merges has type {types[bad[0]]}")
    return np.where(types == 0, NORMAL, types)


def _normalizer(metadata: Mapping[str, Any], path: str) -> list[dict[str, str]]:
    """What happens to text before it is split: a key of lowbit's own, since GGUF has none."""
    form = metadata.get(NORMALIZER_KEY)
    if form is None:
        return []
    if not isinstance(form, str) or form not in ("NFC", "NFD", "NFKC", "NFKD"):
        raise UnsupportedModelError(f"{path}: {NORMALIZER_KEY} is {str(form)[:40]!r}, which is no form of Unicode")
    return [{"type": form}]


def _strips(metadata: Mapping[str, Any], n: int, path: str) -> dict[int, tuple[bool, bool]]:
    """Special tokens whose names swallow white space: keys of lowbit's own, since GGUF has none."""
    sides = []
    for key in STRIP_KEYS:
        ids = metadata.get(key, np.zeros(0, np.int32))
        if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ((ids < 0) | (ids >= n)).any():
            raise FormatError(f"{path}: {key} is not a list of token ids")
        sides.append(set(ids.tolist()))
    left, right = sides
    return {i: (i in left, i in right) for i in left | right}
