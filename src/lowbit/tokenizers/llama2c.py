"""llama2.c's ``tokenizer.bin``: uint32 longest token, then per token float32 score, uint32 length, bytes.

The file is a SentencePiece vocabulary without its types: ids 0 to 2 are unknown, BOS and EOS, and 3 to 258 are the
bytes. llama2.c merges just as SentencePiece does, but in text where a space is a space: U+2581 has no special meaning.
"""

from __future__ import annotations

import os
import struct
from array import array

import numpy as np

from ..errors import FormatError
from .base import MAX_PIECES, MAX_TOKEN_BYTES
from .spm import SentencePieceTokenizer
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, Specs, Vocabulary

_UNK, _BOS, _EOS, _FIRST_BYTE = 0, 1, 2, 3
_BYTE_TOKENS = [b"<0x%02X>" % i for i in range(256)]
_RECORD = struct.Struct("<fI")


def is_tokenizer_bin(data: bytes) -> bool:
    """Tell whether the fourth token of a file read as tokenizer.bin is the first byte token."""
    at = 4
    for _ in range(_FIRST_BYTE):
        if len(data) < at + _RECORD.size:
            return False
        at += _RECORD.size + _RECORD.unpack_from(data, at)[1]
    return data[at + _RECORD.size : at + _RECORD.size + 6] == _BYTE_TOKENS[0]


def tokenizer_beside(checkpoint: str, vocab_size: int) -> str | None:
    """Return the path of the tokenizer that lies beside a llama2.c checkpoint of `vocab_size` tokens, if one does."""
    folder = os.path.dirname(os.path.abspath(checkpoint))
    for name in (f"tok{vocab_size}.bin", "tokenizer.bin"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return None


def read_vocabulary(data: bytes, path: str, vocab_size: int | None = None) -> Vocabulary:
    """Read the tokens of a llama2.c ``tokenizer.bin``.

    Parameters
    ----------
    data : bytes
    path : str
        Name of the file, for messages.
    vocab_size : int, optional
        Number of tokens that the model has; the file does not say. None reads to the end of the file.

    Raises
    ------
    FormatError
        If the file is cut off, or has more or fewer than `vocab_size` tokens, or its bytes are not at 3 to 258.
    """
    tokens: list[bytes] = []
    scores = array("f")
    at = 4
    while at < len(data):
        if len(data) < at + _RECORD.size:
            raise FormatError(f"{path}: cut off in token {len(tokens)}")
        score, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if size > MAX_TOKEN_BYTES or size > len(data) - at:
            raise FormatError(f"{path}: token {len(tokens)} claims {size} bytes")
        if len(tokens) == MAX_PIECES:
            raise FormatError(f"{path}: the vocabulary has more than {MAX_PIECES} tokens")
        tokens.append(data[at : at + size])
        scores.append(score)
        at += size
    if vocab_size is not None and len(tokens) != vocab_size:
        raise FormatError(f"{path}: holds {len(tokens)} tokens, but the model has {vocab_size}")
    if tokens[_FIRST_BYTE : _FIRST_BYTE + 256] != _BYTE_TOKENS:
        raise FormatError(f"{path}: tokens 3 to 258 are not the bytes <0x00> to <0xFF>")
    types = np.full(len(tokens), NORMAL, dtype=np.int32)
    types[[_UNK, _BOS, _EOS]] = UNKNOWN, CONTROL, CONTROL
    types[_FIRST_BYTE : _FIRST_BYTE + 256] = BYTE
    for i in (_BOS, _EOS):
        tokens[i] = tokens[i].strip(b"\n")  # the exporter writes "\n<s>\n"
    return Vocabulary.checked(tokens, np.array(scores, dtype=np.float32), types, path)


def from_tokenizer_bin(data: bytes, path: str, vocab_size: int | None = None) -> SentencePieceTokenizer:
    """Make a tokenizer from the bytes of a llama2.c ``tokenizer.bin``; arguments and errors as of `read_vocabulary`."""
    return SentencePieceTokenizer(
        read_vocabulary(data, path, vocab_size),
        Specs(escape_whitespaces=False),
        path,
        bos_id=_BOS,
        eos_id=_EOS,
        unk_id=_UNK,
        # These models never learned EOS: their stories follow each other with a BOS between them.
        eos_ids={_BOS},
    )
