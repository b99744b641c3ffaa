"""How byte-level vocabularies cut text into pieces before they merge: rules that are known by name or by pattern.

A pattern from a file is never compiled, only looked up here: one with nested repetition could take for ever. The
names are those of ``tokenizer.ggml.pre``; the patterns are those that the models' own ``tokenizer.json`` files hold,
but for some that look at the rest of a run from each place in it: `LINEAR` has them in a form that looks once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    raw : bool
        Tokens are text, with bytes as ``<0x0A>`` for characters without a token; else GPT-2's alphabet of bytes.
    meta : bool
        Raw tokens write a space as U+2581.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    raw: bool = False
    meta: bool = True


_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_LEAD}\p{{L}}+"


def _by_case(upper: str, lower: str, end: str, rest: str) -> str:
    """Words that end where a capital follows a small letter, as in OpenAI's o200k."""
    return rf"{_LEAD}{upper}*{lower}+{end}|{_LEAD}{upper}+{lower}*{end}|{rest}|{_SPACES}"


_CASE_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_NOT_HAN = r"&&[^\p{Han}]]"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACES}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_OTHER}|{_SPACES}"
QWEN35 = rf"{_CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_OTHER}|{_SPACES}"
SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_OTHER}|\s*[\r\n]|\s+(?!\S)|\s+"
UFAKZEKA = rf"{_WORD}|\p{{N}}|{_OTHER}|{_SPACES}"
EXAONE_MOE = (
    rf"{_CONTRACTIONS}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|\s*[\r\n]+|" + (
    "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}"
)
TEKKEN = _by_case(_UPPER, _LOWER, "", rf"\p{{N}}|{_CASE_OTHER}")
GPT4O = _by_case(_UPPER, _LOWER, _CONTRACTIONS + "?", rf"\p{{N}}{{1,3}}|{_CASE_OTHER}")
YOUTU = _by_case(_UPPER, _LOWER, _CONTRACTIONS + "?", rf"\p{{N}}|{_CASE_OTHER}")
KIMI_K2 = r"[\p{Han}]+|" + _by_case(
    _UPPER[:-1] + _NOT_HAN, _LOWER[:-1] + _NOT_HAN, _CONTRACTIONS + "?", rf"\p{{N}}{{1,3}}|{_OTHER}"
)
_LINES = r"[^\n]+|[\n]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_KANA_AND_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    _KANA_AND_HAN,
    rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_THREE_DIGITS = "[0-9][0-9][0-9]"
_CASED = (
    "[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]"
)
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_CASED}+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_AND_HANGUL,
    r"\p{N}+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_HANGUL_MARKS_BOPOMOFO_KANA = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _KANA_AND_HAN
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT2,
)


def _by_threes(digit: str, end: str) -> str:
    """Runs of digits in threes that count from the end: the first three or fewer, and three after the last match."""
    return rf"(?<!{digit}){digit}{{1,3}}(?=(?:{digit}{{3}})*{end})|\G(?<={digit}){digit}{{3}}"


_THREES_FROM_END = _by_threes(r"\p{N}", r"(?!\p{N})")
_THREES_TO_BOUNDARY = r"\d{1,3}(?=(?:\d{3})*\b)"
_BETWEEN_THREES = r"(?=(\d{3})+(?!\d))"

LINEAR = {
    r"\s+$": r"(?<!\s)\s+$",
    _THREES_TO_BOUNDARY: _by_threes(r"\d", r"\b"),
    # What comes before the threes belongs to no match, like the text before an empty one. (What follows them in a run
    # of numbers without being a digit, as ½, is a piece of its own here.)
    _BETWEEN_THREES: r"(?<!\d)\d{0,2}\K\d{3}(?=(?:\d{3})*(?!\d))|\G(?<=\d)\d{3}",
}
"""Patterns that make the same pieces as those of the keys, in time that grows with the text and not its square."""

COVERING_PATTERNS = frozenset((GPT2, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O))
"""Patterns whose matches leave nothing between them."""

_GPT2 = Splitting((GPT2,))
_LLAMA3 = Splitting((LLAMA3,), ignore_merges=True, add_bos=True)
_LLAMA3_MERGES = Splitting((LLAMA3,))
_QWEN2 = Splitting((QWEN2,))
_SINGLE_DIGITS = Splitting((r"\p{N}", GPT2))
_GPT4O = Splitting((GPT4O,))
_DEEPSEEK_V3 = Splitting(DEEPSEEK_V3)
_BAILING = Splitting((BAILING,))
_BLOOM_WORDS = Splitting((_BLOOM,))
_GEMMA4 = Splitting((_LINES,), raw=True)
_TINY_AYA = Splitting((_THREES_TO_BOUNDARY, GPT4O))

_RULES: tuple[tuple[str, Splitting], ...] = (
    ("default", Splitting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", _THREE_DIGITS))),
    # falcon_e is written by bitnet.cpp; ik_llama.cpp reads it the same way.
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 falcon_e pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3),
    ("smaug-bpe dbrx chatglm-bpe", _LLAMA3_MERGES),
    ("glm4 glm5", Splitting((LLAMA3,), ignore_merges=True)),
    ("qwen2 deepseek-r1-qwen stablelm2 hunyuan kormo f2llmv2 megrez solar-open grok-2", _QWEN2),
    ("qwen35", Splitting((QWEN35,))),
    ("minicpm5", Splitting((r"\p{N}{1,3}", MINICPM5), ignore_merges=True)),
    ("seed-coder", Splitting((SEED_CODER,))),
    ("bailingmoe bailingmoe2 llada-moe", _BAILING),
    ("ufakzeka", Splitting((UFAKZEKA,))),
    ("laguna", Splitting((_LINES, QWEN2))),
    ("exaone-moe", Splitting((EXAONE_MOE,))),
    ("jais-2", Splitting((JAIS2,))),
    ("gpt-2 mpt olmo jais phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert", _GPT2),
    ("exaone4 trillion granite-docling jina-v1-en jina-v2-code roberta-bpe", _GPT2),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _SINGLE_DIGITS),
    ("falcon", Splitting((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, _THREE_DIGITS))),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O),
    ("granite-embed-multi-97m", Splitting((GPT4O,), ignore_merges=True)),
    ("tiny_aya cohere2moe", _TINY_AYA),
    ("tekken", Splitting((TEKKEN,), ignore_merges=True, add_bos=True)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK_V3),
    (
        "spark2_5",
        Splitting((*DEEPSEEK_V3[:2], rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    ),
    ("deepseek-llm", Splitting(DEEPSEEK_LLM)),
    ("deepseek-coder", Splitting(DEEPSEEK_CODER)),
    ("youtu", Splitting((_HANGUL_MARKS_BOPOMOFO_KANA, YOUTU), ignore_merges=True)),
    ("afmoe", Splitting((_THREES_FROM_END, _ASIAN, DEEPSEEK_V3[2]))),
    ("kimi-k2", Splitting((KIMI_K2,))),
    ("superbpe", Splitting((r"\p{N}+", _BETWEEN_THREES))),
    ("bloom poro-chat gpt3-finnish", _BLOOM_WORDS),
    ("viking", Splitting((_BLOOM, r"\p{N}"))),
    ("gemma4 granite-embed-multi-311m", Splitting((_LINES,), add_bos=True, raw=True)),
    ("sarvam-moe", Splitting((_LINES,), raw=True)),
    ("chameleon", Splitting(_CHAMELEON, add_bos=True)),
    ("whitespace", Splitting((r"\S+",), raw=True, meta=False)),
)

BY_NAME = {name: rule for names, rule in _RULES for name in names.split()}
"""Rules by ``tokenizer.ggml.pre``."""

KNOWN_PATTERNS = frozenset(pattern for _, rule in _RULES for pattern in rule.patterns) | {
    GPT2.removesuffix(r"|\s+"),
    # The same with possessive repetition, which finds the same where nothing after it could match less.
    BAILING.replace(_LEAD, _LEAD + "+").replace("{N}]+", "{N}]++"),
    r"\d{1,3}",
}
"""Every pattern that a ``tokenizer.json`` may split by."""


def split_steps(patterns: tuple[str, ...], raw: bool = False) -> list[dict[str, Any]]:
    """Describe patterns, and the change to the byte alphabet after them, as a ``tokenizer.json`` would."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    if raw:
        return steps
    return [*steps, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]
