"""Reading and writing SentencePiece's ModelProto, the protobuf message inside ``tokenizer.model``.

Of the message only these fields matter here (google/sentencepiece, ``sentencepiece_model.proto``)::

    1 pieces (repeated): 1 text, 2 score (float32), 3 type (default 1, normal)
    2 trainer_spec:      3 model_type (2 is BPE), 24 treat_whitespace_as_suffix, 35 byte_fallback, 44 unk_surface,
                         46 bos_piece, 47 eos_piece
    3 normalizer_spec:   1 name, 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                         5 escape_whitespaces
    5 denormalizer_spec
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError
from .base import MAX_PIECES
from .vocabulary import BYTE, NORMAL, UNKNOWN, Specs, Vocabulary

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2
UNK_SURFACE = " \N{DOUBLE QUESTION MARK} ".encode()


@dataclass(frozen=True)
class ModelProto:
    """A parsed ``tokenizer.model``."""

    vocabulary: Vocabulary
    specs: Specs
    unk_surface: bytes
    """What an unknown token decodes to."""
    bos_piece: bytes
    eos_piece: bytes
    plain: bool
    """It is a BPE model that takes text as it is, with no Unicode normalisation, and spaces before words."""
    rest: bytes
    """All fields other than the pieces, as stored."""


def read_model_proto(data: bytes, path: str) -> ModelProto:
    """Parse and check a serialized ModelProto.

    Raises
    ------
    FormatError
        If the bytes are not one, or its vocabulary is not sound.
    """
    tokens: list[bytes] = []
    scores = bytearray()
    types = array("q")
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    rest = bytearray()
    has_denormalizer = False
    try:
        for number, value, start, end in _fields(data):
            if number == 1 and isinstance(value, bytes):
                text, score, token_type = _piece(value)
                if not text:
                    raise FormatError(f"{path}: token {len(tokens)} has no text")
                if len(tokens) == MAX_PIECES:
                    raise FormatError(f"{path}: the vocabulary has more than {MAX_PIECES} tokens")
                tokens.append(text)
                scores += score
                types.append(token_type)
                continue
            has_denormalizer |= number == 5 and value != b""
            if number in (2, 3) and isinstance(value, bytes):
                (trainer if number == 2 else normalizer).update((n, v) for n, v, _, _ in _fields(value))
            rest += data[start:end]
    except (IndexError, struct.error) as error:
        raise FormatError(f"{path}: not a SentencePiece model, or one that is cut off") from error
    vocabulary = Vocabulary.checked(tokens, np.frombuffer(scores, "<f4"), np.frombuffer(types, np.int64), path)
    if vocabulary.ids_of(BYTE) and not trainer.get(35):
        raise FormatError(f"{path}: the vocabulary has byte tokens, but the model does not use them")
    return ModelProto(
        vocabulary,
        Specs(bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), bool(normalizer.get(5, 1))),
        _bytes(trainer.get(44)) or UNK_SURFACE,
        _bytes(trainer.get(46)) or b"<s>",
        _bytes(trainer.get(47)) or b"</s>",
        trainer.get(3) == _BPE and not trainer.get(24) and not normalizer.get(2) and not has_denormalizer,
        bytes(rest),
    )


def write_model_proto(vocabulary: Vocabulary, specs: Specs, rest: bytes | None) -> tuple[bytes, int]:
    """Serialize a vocabulary for SentencePiece, with `rest` for all other fields, or as a BPE model of these `specs`.

    Returns
    -------
    tuple of (bytes, int)
        The message, and the id of its unknown piece; that is one past the vocabulary where it has none of its own.
    """
    texts, types = vocabulary.encodable()
    if rest is None:
        trainer = _varint_field(3, _BPE) + _varint_field(35, int((types == BYTE).any()))
        normalizer = bytes_field(1, b"identity")
        for number, flag in enumerate(
            (specs.add_dummy_prefix, specs.remove_extra_whitespaces, specs.escape_whitespaces), 3
        ):
            normalizer += _varint_field(number, int(flag))
        rest = bytes_field(2, trainer) + bytes_field(3, normalizer)
    return _pieces(texts, vocabulary.scores, types) + rest, int(np.argmax(types == UNKNOWN))


def _pieces(texts: list[bytes], scores: np.ndarray, types: np.ndarray) -> bytes:
    # Everything but the text has the same form in each piece: 15 score, 18 type.
    tails = np.zeros(len(texts), dtype=[("score_tag", "u1"), ("score", "<f4"), ("type_tag", "u1"), ("type", "u1")])
    tails["score_tag"], tails["type_tag"] = 0x15, 0x18
    tails["score"][: len(scores)] = scores
    tails["type"] = types
    tail = tails.tobytes()
    heads = {size: _piece_head(size) for size in set(map(len, texts))}
    return b"".join([x for i, text in enumerate(texts) for x in (heads[len(text)], text, tail[7 * i : 7 * i + 7])])


def _piece(message: bytes) -> tuple[bytes, bytes, int]:
    """Return text, the four bytes of the score, and type of one piece."""
    # Nearly all pieces are written as: 0a length text, 15 score, perhaps 18 type. Going field by field takes long.
    if len(message) > 6 and message[0] == 0x0A and message[1] < 0x80:
        end = 2 + message[1]
        if len(message) == end + 5 and message[end] == 0x15:
            return message[2:end], message[end + 1 :], NORMAL
        if len(message) == end + 7 and message[end] == 0x15 and message[end + 5] == 0x18 and message[end + 6] < 0x80:
            return message[2:end], message[end + 1 : end + 5], message[end + 6]
    text, score, token_type = b"", bytes(4), NORMAL
    for number, value, _, _ in _fields(message):
        if number == 1:
            text = _bytes(value)
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = value
        elif number == 3 and isinstance(value, int):
            token_type = min(value, 2**31)
    return text, score, token_type


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, int, int]]:
    """Yield number, value, start and end of each field; IndexError where the message is cut off or malformed."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            if wire == _BYTES:
                size, at = _varint(data, at)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise IndexError(f"wire type {wire}")
            if number == 0 or size > len(data) - at:
                raise IndexError("field 0, or a value longer than the message")
            value = data[at : at + size]
            at += size
        yield number, value, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value, shift = value & 0x7F, 7
    while shift < 70:
        at += 1
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return value, at + 1
        shift += 7
    raise IndexError("a varint of more than ten bytes")


def _bytes(value: int | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def encode_varint(value: int) -> bytes:
    """Write a number as protobuf does, seven bits to a byte."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | _VARINT) + encode_varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """Write a length-delimited field of a protobuf message."""
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(value)) + value


def _piece_head(text_size: int) -> bytes:
    inner = encode_varint(1 << 3 | _BYTES) + encode_varint(text_size)
    return encode_varint(1 << 3 | _BYTES) + encode_varint(len(inner) + text_size + 7) + inner
