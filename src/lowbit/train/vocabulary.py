"""The vocabulary of a model as ``tokenizer.ggml.*`` keys of GGUF: trained from the corpus, or taken from a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from ..formats.files import reading
from ..formats.gguf import GGUFFile
from ..formats.gguf_writer import GGUFWriter
from ..tokenizers.modelproto import read_model_proto

SMALLEST, LARGEST = 512, 8192
CUT = 1000
"""Longest run of characters given to the trainer at once: it drops lines of more than 4192 bytes without a word."""
PREFIX = "tokenizer.ggml."
CHAT_START, CHAT_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, as other engines read it; `lowbit.chat` writes it without running it."""


def train_vocabulary(
    documents: Sequence[str], size: int, most_characters: int = 20_000_000, chat: bool = False
) -> dict[str, Any]:
    """Train a byte-pair vocabulary with byte fallback, so that any text can be encoded.

    Text is taken as it is, without Unicode normalisation, since readers of GGUF do none. A line's end may be part of a
    token, so that a new paragraph costs as little as a full stop.

    Parameters
    ----------
    documents : training text
    size : number of tokens, 512..8192, of which 3 are special and 256 are bytes
    most_characters : text beyond this is left out; it changes little, and bounds time and memory
    chat : with the special tokens of ChatML, one of which then ends any text

    Returns
    -------
    dict
        GGUF metadata, ready for `lowbit.tokenizers.from_gguf_metadata`.

    Raises
    ------
    FormatError
        If the size is out of range, or larger than the text allows.
    """
    from sentencepiece import SentencePieceTrainer

    if not SMALLEST <= size <= LARGEST:
        raise FormatError(f"the vocabulary must have {SMALLEST} to {LARGEST} tokens, not {size}")
    lines: list[str] = []
    room = most_characters
    for document in documents:
        lines += [document[i : i + CUT] for i in range(0, len(document), CUT)]
        room -= len(document)
        if room < 0:
            break
    model = io.BytesIO()
    special: dict[str, Any] = {"eos_piece": CHAT_END, "control_symbols": [CHAT_START]} if chat else {}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=size, byte_fallback=True,
            character_coverage=0.9995, split_digits=True, allow_whitespace_only_pieces=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2, **special,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        most = re.search(r"value <= (\d+)", str(error))
        reason = f"at most {most[1]}" if most else " ".join(str(error).split())[-160:]
        if most and int(most[1]) < SMALLEST:
            reason += f", and the least is {SMALLEST}: give it more text, or --vocabulary FILE"
        raise FormatError(f"this text does not allow a vocabulary of {size} tokens: {reason}") from None
    keys = _from_proto(model.getvalue(), "the new vocabulary")
    return {**keys, CHAT_TEMPLATE_KEY: CHAT_TEMPLATE} if chat else keys


def read_vocabulary(path: str | Path) -> dict[str, Any]:
    """Take the vocabulary from a GGUF file, with tensors or without, or from a SentencePiece model.

    Raises
    ------
    FormatError, UnsupportedModelError
        If the file holds no SentencePiece vocabulary, or one that normalises text, which GGUF cannot say.
    """
    with reading(str(path)):
        data = Path(path).read_bytes()
    if data[:4] == b"GGUF":
        file = GGUFFile(str(path))
        keys = {k: v for k, v in file.metadata.items() if k.startswith(PREFIX) or k == CHAT_TEMPLATE_KEY}
        file.close()
        if keys.get(PREFIX + "model") != "llama":
            raise UnsupportedModelError(f"{path}: holds no SentencePiece vocabulary")
        return keys
    return _from_proto(data, str(path))


def _from_proto(data: bytes, path: str) -> dict[str, Any]:
    model = read_model_proto(data, path)
    if not model.plain:
        raise UnsupportedModelError(f"{path}: is not a plain BPE model, and GGUF has no place for its normalisation")
    vocabulary = model.vocabulary
    special = {"bos": model.bos_piece, "eos": model.eos_piece}
    ids = {name: vocabulary.tokens.index(piece) for name, piece in special.items() if piece in vocabulary.tokens}
    if len(ids) < 2:
        raise FormatError(f"{path}: has no beginning-of-text or no end-of-text token")
    return {
        PREFIX + "model": "llama",
        PREFIX + "tokens": list(vocabulary.tokens),
        PREFIX + "scores": vocabulary.scores.astype(np.float32),
        PREFIX + "token_type": vocabulary.types.astype(np.int32),
        **{f"{PREFIX}{name}_token_id": i for name, i in ids.items()},
        PREFIX + "add_bos_token": True,
        PREFIX + "add_space_prefix": model.specs.add_dummy_prefix,
        PREFIX + "remove_extra_whitespaces": model.specs.remove_extra_whitespaces,
    }


def write_vocabulary(path: Path, keys: Mapping[str, Any]) -> None:
    """Write a GGUF file that holds the vocabulary and no tensor."""
    with GGUFWriter(path, "lowbit-vocabulary") as writer:
        for key, value in keys.items():
            writer.add_metadata(key, value)
