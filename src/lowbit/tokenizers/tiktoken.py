"""Llama 3's ``tokenizer.model``: a line of base64 and a rank for each token (OpenAI's tiktoken).

The file holds neither the merges nor the splitting rule nor the special tokens, so only the one known vocabulary can
be used: 128,000 ranks, and 256 special tokens after them (meta-llama/llama-models, ``tokenizer.py``).
"""

from __future__ import annotations

import binascii

from ..errors import FormatError, UnsupportedModelError
from .bpe import BytePairTokenizer, Parts, Recipe, Vocabulary, make_engine
from .byte_alphabet import to_letters
from .gpt2 import surface
from .hub import Settings
from .splitting import BY_NAME, split_steps

_LLAMA3_RANKS, _LLAMA3_SPECIALS = 128_000, 256
_MAX_TOKEN = 256
_MAX_TOTAL = 16 * _LLAMA3_RANKS
"""Bytes in all tokens; they bound the number of merges to try."""

_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}


def is_rank_file(data: bytes) -> bool:
    """Tell whether the first line is base64, a space and a rank."""
    token, _, rank = data[:4096].partition(b"\n")[0].rstrip().partition(b" ")
    return (
        bool(token)
        and rank.isdigit()
        and len(token) % 4 == 0
        and token.rstrip(b"=").replace(b"+", b"").replace(b"/", b"").isalnum()
    )


def from_rank_file(data: bytes, path: str, settings: Settings) -> BytePairTokenizer:
    """Make a tokenizer from the bytes of a rank file.

    Raises
    ------
    FormatError
        If a line is malformed, or a rank is missing.
    UnsupportedModelError
        If it is another vocabulary than Llama 3's.
    """
    parts = read_rank_file(data, path, settings)
    return BytePairTokenizer(parts, make_engine(parts, path), surface, path)


def read_rank_file(data: bytes, path: str, settings: Settings) -> Parts:
    """Check the bytes of a rank file, and recover its merges; as `from_rank_file`, without the library."""
    if data.count(b"\n") + (data[-1:] != b"\n") != _LLAMA3_RANKS:
        raise UnsupportedModelError(
            f"{path}: tiktoken rank files are not supported, but for that of Llama 3 with its {_LLAMA3_RANKS} tokens"
        )
    tokens: list[bytes] = []
    total = 0
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        encoded, _, rank = line.partition(b" ")
        try:
            token = binascii.a2b_base64(encoded)
        except binascii.Error:
            token = b""
        sound = binascii.b2a_base64(token, newline=False) == encoded and rank == b"%d" % number
        if not sound or not 0 < len(token) <= _MAX_TOKEN:
            raise FormatError(f"{path}: line {number + 1} is not a token of 1 to {_MAX_TOKEN} bytes and its rank")
        tokens.append(token)
        total += len(token)
    if total > _MAX_TOTAL or len(set(tokens)) < len(tokens):
        raise FormatError(f"{path}: its tokens repeat, or have more than {_MAX_TOTAL} bytes in all")
    ids = {to_letters(token): rank for rank, token in enumerate(tokens)}
    control = _special_tokens(settings)
    vocabulary = Vocabulary(_LLAMA3_RANKS + _LLAMA3_SPECIALS, ids, control)
    splitting = BY_NAME["llama3"]
    recipe = Recipe(pre_tokenizer=split_steps(splitting.patterns), ignore_merges=splitting.ignore_merges)
    return Parts(
        vocabulary,
        _merges(list(ids)),
        recipe,
        bos_id=control.get(settings.bos or _NAMES[0]),
        eos_id=control.get(settings.eos or _NAMES[1]),
        add_bos=splitting.add_bos if settings.add_bos is None else settings.add_bos,
        add_eos=bool(settings.add_eos),
    )


def _special_tokens(settings: Settings) -> dict[str, int]:
    names: dict[int, str] = {}
    reserved = 0
    for i in range(_LLAMA3_SPECIALS):
        if i not in _NAMES:
            names[i] = f"<|reserved_special_token_{reserved}|>"
            reserved += 1
    names.update(_NAMES)
    for i, (name, _) in settings.added.items():  # later versions name some of the reserved ones
        if 0 <= i - _LLAMA3_RANKS < _LLAMA3_SPECIALS:
            names[i - _LLAMA3_RANKS] = name
    return {name: _LLAMA3_RANKS + i for i, name in sorted(names.items())}


def _merges(tokens: list[str]) -> list[tuple[str, str]]:
    """Recover the merges: every way to put a token together from two others, in order of its rank."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for token in tokens:
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        if len(ways) > 1:
            ways.sort(key=lambda way: (ranks[way[0]], ranks[way[1]]))
        merges += ways
    return merges
