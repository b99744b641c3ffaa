"""SentencePiece: Llama 1 and 2, 1bitLLM's BitNet, TinyStories. GGUF calls this kind ``llama``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import Foreign, FormatError, UnsupportedModelError
from .base import END_MARKERS, Tokenizer, end_markers, without_surrogates
from .hub import Settings
from .metadata import get, special_id
from .modelproto import UNK_SURFACE, ModelProto, read_model_proto, write_model_proto
from .vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Specs, Texts, Vocabulary, looks_like_byte

PREFIX_KEY = "lowbit.tokenizer.space_prefix"
"""A key of lowbit's own, since GGUF has none."""

_END_MARKERS = frozenset(map(str.encode, END_MARKERS))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary, encoded by the sentencepiece library and decoded here.

    Parameters
    ----------
    vocabulary : Vocabulary
    specs : Specs
    path : str
        File the vocabulary came from, for messages.
    bos_id, eos_id, unk_id : int or None
    add_bos : bool
    eos_ids : set of int
        Further tokens that end a generation; `eos_id` and tokens with a known end marker as text are added.
    rest : bytes, optional
        SentencePiece's own settings, if the file has them; otherwise they are made from `specs`.
    unk_surface : bytes
        What an unknown token decodes to.
    prefix : str
        Where a space is put before text that begins with none: ``first`` at the start alone, ``always`` after each
        control token too. Empty for SentencePiece's own rule, which puts one before any text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        specs: Specs,
        path: str,
        *,
        bos_id: int | None,
        eos_id: int | None,
        unk_id: int | None,
        add_bos: bool = True,
        eos_ids: set[int] | None = None,
        rest: bytes | None = None,
        unk_surface: bytes = UNK_SURFACE,
        prefix: str = "",
    ) -> None:
        import sentencepiece

        marked = [(text.decode(), i) for i, text in enumerate(vocabulary.tokens) if text in _END_MARKERS]
        markers = end_markers({name for name, _ in marked})
        ends = {eos_id, *(eos_ids or ()), *(i for name, i in marked if name in markers)}
        self.eos_ids = frozenset(i for i in ends if i is not None)
        # Some converters forget to mark these; text from a user must not be able to begin or end a turn.
        vocabulary = vocabulary.with_types(sorted(self.eos_ids.union(() if bos_id is None else (bos_id,))), CONTROL)
        self.vocab_size = len(vocabulary.tokens)
        self.control_ids = frozenset(vocabulary.ids_of(CONTROL))
        self.bos_id, self.eos_id, self.add_bos = bos_id, eos_id, add_bos
        self.unk_id = None if unk_id in self.control_ids else unk_id
        self._vocabulary = replace(vocabulary, tokens=Texts(vocabulary.tokens))
        self._unk_surface, self._escapes = unk_surface, specs.escape_whitespaces
        self._prefix = b"" if not specs.add_dummy_prefix else SPACE if specs.escape_whitespaces else b" "
        self._own_prefix = prefix
        if prefix:
            specs = replace(specs, add_dummy_prefix=False)
        proto, self._proto_unk = write_model_proto(vocabulary, specs, rest)
        self._guard = Foreign("sentencepiece", path)
        with self._guard:
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.LoadFromSerializedProto(proto)

    def token_bytes(self, token: int, first: bool = False) -> bytes:
        self._check_id(token)
        data = self._vocabulary.decoded(token, self._unk_surface, self._escapes)
        if first and self._prefix and data[:1] == b" " and self._vocabulary.tokens[token].startswith(self._prefix):
            return data[1:]
        return data

    def piece(self, token: int) -> str:
        self._check_id(token)
        return self._vocabulary.tokens[token].decode("utf-8", "replace")

    def _encode_text(self, text: str, start: bool) -> list[int]:
        if self._own_prefix and (start or self._own_prefix == "always") and text[0] not in " ▁":
            text = " " + text
        with self._guard:
            ids: list[int] = self._processor.EncodeAsIds(text)
        if self._proto_unk != self.unk_id and self._proto_unk in ids:
            instead = [] if self.unk_id is None else [self.unk_id]
            ids = [j for i in ids for j in (instead if i == self._proto_unk else [i])]
        return ids

    def _special_texts(self) -> dict[str, int | None]:
        # User-defined tokens are sentencepiece's business, but a control token's name inside of one is not a name.
        tokens = self._vocabulary.tokens
        found: dict[str, int | None] = {}
        names = sorted(self.control_ids.union(self._vocabulary.ids_of(UNKNOWN)))
        for ids, special in ((self._vocabulary.ids_of(USER_DEFINED), False), (names, True)):
            for i in ids:
                try:
                    found[tokens[i].decode()] = i if special else None
                except UnicodeDecodeError:
                    continue  # no text can hold it
        found.pop("", None)
        return found


def from_gguf(metadata: Mapping[str, Any], path: str) -> SentencePieceTokenizer:
    """Make a tokenizer from the ``tokenizer.ggml.*`` keys of a GGUF file; see `lowbit.tokenizers.from_gguf_metadata`.

    Raises
    ------
    FormatError
        If a key is missing, has another type than GGUF gives it, or contradicts another.
    """
    # The tokens come last: a list of them takes more memory than their bytes in the file.
    scores = get(metadata, "scores", np.ndarray, path)
    types = get(metadata, "token_type", np.ndarray, path, default=None)
    if scores is None:
        raise FormatError(f"{path}: the vocabulary has no scores")
    if scores.dtype not in (np.float32, np.int32):
        raise FormatError(f"{path}: tokenizer.ggml.scores must be float32 or int32, not {scores.dtype}")
    if types is not None and types.dtype not in (np.int32, np.uint32):
        raise FormatError(f"{path}: tokenizer.ggml.token_type must be int32 or uint32, not {types.dtype}")

    tokens = get(metadata, "tokens", list, path)
    if tokens is None:
        raise FormatError(f"{path}: the vocabulary has no tokens")
    if not all(isinstance(token, bytes) for token in tokens):
        raise FormatError(f"{path}: tokenizer.ggml.tokens must be an array of strings")

    special = partial(special_id, metadata, n_tokens=len(tokens), path=path)
    bos, eos, unk = special("bos", default=1), special("eos", default=2), special("unknown", default=0)
    if types is None:
        types = np.array([BYTE if looks_like_byte(token) else NORMAL for token in tokens], dtype=np.int32)
        for token, token_type in ((unk, UNKNOWN), (bos, CONTROL), (eos, CONTROL)):
            if token is not None:
                types[token] = token_type
    if types.shape == (len(tokens),):
        # Converters write these as they stand in a text, SentencePiece finds them in one whose spaces are escaped.
        tokens = [
            token.replace(b" ", SPACE) if t == USER_DEFINED else token for token, t in zip(tokens, types.tolist())
        ]
    if not scores.any():
        scores = _ranks(tokens, get(metadata, "merges", list, path, default=[]), scores)
    vocabulary = Vocabulary.checked(tokens, scores, types, path)
    return SentencePieceTokenizer(
        vocabulary,
        Specs(
            get(metadata, "add_space_prefix", bool, path, default=True),
            get(metadata, "remove_extra_whitespaces", bool, path, default=False),
        ),
        path,
        bos_id=bos,
        eos_id=eos,
        unk_id=unk,
        add_bos=get(metadata, "add_bos_token", bool, path, default=True),
        eos_ids={i for i in (special("eot"), special("eom")) if i is not None},
        prefix=_prefix(metadata, path),
    )


def _ranks(tokens: list[bytes], merges: list[bytes], scores: np.ndarray) -> np.ndarray:
    """Scores for a file of zeros that has the merges of a tokenizer.json: the sooner a token is made, the better.

    llama.cpp does not look at the merges, and cuts texts of such files into other tokens than their models know.
    """
    ranks = {merge.replace(b" ", b"", 1): -rank for rank, merge in reversed([*enumerate(merges)])}
    found = [ranks.get(token, -len(merges)) for token in tokens]
    return np.array(found, np.float32) if merges else scores


def read_model_file(data: bytes, path: str, settings: Settings) -> ModelProto:
    """Check the bytes of a SentencePiece ``tokenizer.model``, and add the tokens that the files beside it add."""
    model = read_model_proto(data, path)
    known = model.vocabulary
    tokens, types, scores = list(known.tokens), known.types.tolist(), known.scores.tolist()
    for i, (name, special) in sorted(settings.added.items()):
        if i == len(tokens) and (settings.rows is None or i < settings.rows):
            text = without_surrogates(name).encode()
            tokens.append(text if special else text.replace(b" ", SPACE))
            types.append(CONTROL if special else USER_DEFINED)
            scores.append(0.0)
    if len(tokens) == len(known.tokens):
        return model
    return replace(model, vocabulary=Vocabulary.checked(tokens, np.array(scores, np.float32), np.array(types), path))


def from_model_file(data: bytes, path: str, settings: Settings) -> SentencePieceTokenizer:
    """Make a tokenizer from the bytes of a SentencePiece ``tokenizer.model``, and what the files beside it say."""
    import sentencepiece

    model = read_model_file(data, path, settings)
    named = {model.vocabulary.tokens[i]: i for kind in (USER_DEFINED, CONTROL) for i in model.vocabulary.ids_of(kind)}
    bos, eos = (without_surrogates(name or "").encode() for name in (settings.bos, settings.eos))
    unknown = model.vocabulary.ids_of(UNKNOWN)
    if len(unknown) != 1:
        raise FormatError(f"{path}: the vocabulary has {len(unknown)} unknown tokens instead of one")
    if not model.plain and _version(sentencepiece.__version__) < (0, 2, 1):
        # Older ones follow the offsets in a normalisation table without looking.
        raise UnsupportedModelError(f"{path}: is not a plain BPE model, which takes sentencepiece 0.2.1 or later")
    return SentencePieceTokenizer(
        model.vocabulary,
        model.specs,
        path,
        bos_id=named.get(bos, named.get(model.bos_piece)),
        eos_id=named.get(eos, named.get(model.eos_piece)),
        unk_id=unknown[0],
        rest=model.rest,
        unk_surface=model.unk_surface,
    )


def _prefix(metadata: Mapping[str, Any], path: str) -> str:
    prefix = metadata.get(PREFIX_KEY, "")
    if not isinstance(prefix, str) or prefix not in ("", "first", "always"):
        raise UnsupportedModelError(f"{path}: {PREFIX_KEY} is {str(prefix)[:40]!r}, not first or always")
    return prefix


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
