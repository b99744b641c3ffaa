"""Rules that cut text into pieces: what each does, and that none takes long on any text."""

from __future__ import annotations

import random

import pytest
from work import LITTLE, Work

from lowbit.tokenizers import bpe
from lowbit.tokenizers.splitting import BY_NAME, LINEAR, split_steps

tokenizers = pytest.importorskip("tokenizers")


def cutter(patterns):
    return tokenizers.pre_tokenizers.Sequence([bpe._pre_tokenizer(step) for step in split_steps(patterns, raw=True)])


def cut(name, text):
    return [piece for piece, _ in cutter(BY_NAME[name].patterns).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("glm4", "it'S 12345 a.\n\nb", ["it", "'S", " ", "123", "45", " a", ".\n\n", "b"]),
        ("kormo", "it'S 123 a.\n\nb", ["it", "'S", " ", "1", "2", "3", " a", ".\n\n", "b"]),
        ("qwen35", "e\u0301a b", ["e\u0301a", " b"]),
        ("qwen2", "e\u0301a b", ["e", "\u0301a", " b"]),
        ("minicpm5", "a12345", ["a", "123", "45"]),
        ("seed-coder", "a.\n\nb", ["a", ".", "\n\n", "b"]),
        ("bailingmoe", "we'LL\n\n\nb12", ["we", "'LL", "\n\n\n", "b", "1", "2"]),
        ("ufakzeka", "it's", ["it", "'s"]),
        ("ufakzeka", "we'll", ["we", "'ll"]),
        ("laguna", "a \n b", ["a", " ", "\n", " b"]),
        ("exaone-moe", "so it is, 1", ["so it is", ",", " ", "1"]),
        ("jais-2", "a" + " " * 21 + "b", ["a", " " * 16, " " * 4, " b"]),
        ("gigachat", "it'S 12345 a", ["it", "'", "S", " 12345", " a"]),
        ("exaone", "a 12", ["a", " ", "1", "2"]),
        ("llama4", "HTTPServer'S 1234/\n", ["HTTPServer'S", " ", "123", "4", "/\n"]),
        ("gpt-4o", "camelCase", ["camel", "Case"]),
        ("tekken", "it's 12", ["it", "'s", " ", "1", "2"]),
        ("tiny_aya", "1234567 12345a", ["1", "234", "567", " ", "123", "45", "a"]),
        ("hy_v4", "12345日本a.b", ["123", "45", "日本", "a", ".b"]),
        ("spark2_5", "a.\nb", ["a", ".", "\n", "b"]),
        ("deepseek-llm", "He said: 日本 123\n", ["He", " said", ":", " ", "日本", " ", "123", "\n"]),
        ("deepseek-llm", "a  ", ["a", "  "]),
        ("deepseek-coder", "He said: 12\n", ["He", " said", ":", " ", "1", "2", "\n"]),
        ("youtu", "가나ㄱ日本aB12", ["가나ㄱ", "日本", "a", "B", "1", "2"]),
        ("afmoe", "12345678 1 日a", ["12", "345", "678", " ", "1", " ", "日", "a"]),
        ("kimi-k2", "日本abc本 it's 1234", ["日本", "abc", "本", " it's", " ", "123", "4"]),
        ("superbpe", "a b1234567c 123 12", ["a b", "1", "234", "567", "c ", "123", " ", "12"]),
        ("bloom", "a b(c).d", ["a", " b", "(", "c", ").", "d"]),
        ("viking", "a12", ["a", "1", "2"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("chameleon", "IMGIMGABZa, 12", ["IMGIMGABZ", "a", ",", " ", "1", "2"]),
        ("whitespace", "a b", ["a", " ", "b"]),
        ("falcon", "a`b 1234", ["a", "`", "b", " ", "123", "4"]),
    ],
)
def test_rules_cut_where_the_published_patterns_do(name, text, pieces):
    assert cut(name, text) == pieces


def test_what_looks_once_cuts_like_what_looks_again_and_again():
    rng = random.Random(1)
    alphabet = list("123٣½a_.é一 \t\u0301")
    for slow, fast in LINEAR.items():
        both = [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated").pre_tokenize_str
            for pattern in (slow, fast)
        ]
        for _ in range(3000):
            # One of them is used within numbers alone, and takes apart only those of digits.
            letters = "123٣" if slow.startswith("(?=") else alphabet
            text = "".join(rng.choices(letters, k=rng.randrange(1, 20)))
            assert both[0](text) == both[1](text), (slow, text)


@pytest.mark.measured
@pytest.mark.parametrize("patterns", sorted({rule.patterns for rule in BY_NAME.values()}), ids=lambda p: p[0][:20])
def test_no_text_makes_a_rule_take_long(patterns):
    pre_tokenizer = cutter(patterns)
    for unit in ("1", " ", "A", "a", "!", "一", "\u0301", " a", "\n", "/", "a A", "1a", "Aa", "1,"):
        with Work() as work:
            pre_tokenizer.pre_tokenize_str(unit * (20_000 // len(unit)))
        assert work.steps < LITTLE
