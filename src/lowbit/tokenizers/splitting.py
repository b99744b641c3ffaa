"""How byte-level vocabularies cut text into pieces before they merge: rules that are known by name or by pattern.

A pattern from a file is never compiled, only looked up here: one with nested repetition could take for ever. The
names are those of ``tokenizer.ggml.pre``; the patterns are those that the models' own ``tokenizer.json`` files hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["BY_NAME", "COVERING_PATTERNS", "KNOWN_PATTERNS", "Splitting", "split_steps"]


@dataclass(frozen=True)
class Splitting:
    """One way to cut text into pieces.

    Parameters
    ----------
    patterns : tuple of str
        Applied one after the other, each within the pieces that the ones before it made; what lies between two
        matches is a piece, too.
    ignore_merges : bool
        A piece that is a token as a whole becomes that token, whatever merges there are.
    add_bos : bool
        The models begin every text with BOS.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}|{_SPACES}"
QWEN2 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_OTHER}|{_SPACES}"
QWEN35 = rf"{_CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
_THREE_DIGITS = "[0-9][0-9][0-9]"

COVERING_PATTERNS = frozenset((GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O))
"""Patterns whose matches leave nothing between them."""

KNOWN_PATTERNS = COVERING_PATTERNS | {
    GPT2.removesuffix(r"|\s+"),
    *DEEPSEEK_V3,
    _THREE_DIGITS,
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r"\d{1,3}",
}
"""Every pattern that a ``tokenizer.json`` may split by."""

_GPT2 = Splitting((GPT2,))
_LLAMA3 = Splitting((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = Splitting((QWEN2,))
_SINGLE_DIGITS = Splitting((r"\p{N}", GPT2))

# One row per value of tokenizer.ggml.pre.
BY_NAME: dict[str, Splitting] = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", _THREE_DIGITS)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "falcon_e": _LLAMA3,  # written by bitnet.cpp; ik_llama.cpp reads it the same way
    "pixtral": _LLAMA3,
    "smaug-bpe": Splitting((LLAMA3,)),
    "dbrx": Splitting((LLAMA3,)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "hunyuan": _QWEN2,
    "qwen35": Splitting((QWEN35,)),
    "gpt-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "jais": _GPT2,
    "phi-2": _GPT2,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "smollm": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "deepseek-v3": Splitting(DEEPSEEK_V3),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, _THREE_DIGITS)),
    "tekken": Splitting((TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": Splitting((GPT4O,)),
}


def split_steps(patterns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Describe patterns, and the change to the byte alphabet after them, as a ``tokenizer.json`` would."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return [*steps, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]
