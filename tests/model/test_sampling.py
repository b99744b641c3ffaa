"""The sampler draws from the distribution that the oracle defines; seeds are fixed, so no test can fail by chance."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit import SamplingParams
from lowbit import isa as instruction_sets
from lowbit._kernels.sampler import Sampler
from lowbit.reference import sample_distribution

N = 20000
LOGITS = np.random.default_rng(0).standard_normal(24).astype(np.float32) * 2


def draws(logits, seed=1, n=N, recent=(), **settings):
    """Counts of n draws, each by a sampler in the same state but for its random numbers."""
    p = SamplingParams(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings})
    counts = np.zeros(len(logits), int)
    if recent or p.repeat_penalty != 1:  # a draw would be remembered and change the next: a new sampler for each
        for i in range(n):
            sampler = Sampler(
                len(logits), p.temperature, p.top_k, p.top_p, p.min_p, p.repeat_penalty, seed * 1_000_003 + i
            )
            sampler.note(recent)
            counts[sampler.choose(logits)] += 1
        return counts
    sampler = Sampler(len(logits), p.temperature, p.top_k, p.top_p, p.min_p, 1.0, seed)
    for _ in range(n):
        counts[sampler.choose(logits)] += 1
    return counts


CASES = {
    "plain": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.5},
    "top_k": {"top_k": 5},
    "top_k 1": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 100},
    "top_p": {"top_p": 0.7},
    "tiny top_p": {"top_p": 1e-9},
    "min_p": {"min_p": 0.1},
    "min_p 1": {"min_p": 1.0},
    "penalty": {"repeat_penalty": 1.5, "recent": (3, 3, 7, 20)},
    "reward": {"repeat_penalty": 0.7, "recent": (0, 1, 2)},
    "penalty beyond the window": {"repeat_penalty": 2.0, "recent": (int(LOGITS.argmax()), *[5] * 64)},
    "penalty at the edge of the window": {"repeat_penalty": 2.0, "recent": (int(LOGITS.argmax()), *[5] * 63)},
    "all": {"temperature": 0.9, "top_k": 12, "top_p": 0.95, "min_p": 0.02, "repeat_penalty": 1.2, "recent": (4, 9)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_frequencies_are_the_oracles_probabilities(isa, case):
    counts = draws(LOGITS, **case)
    want = sample_distribution(LOGITS, **{"temperature": 1.0, **case})
    assert not counts[want == 0].any()
    likely = want * N >= 20
    assert counts[likely].all()
    # Expected: about the number of tokens, with a standard deviation of sqrt(2 of it); this is more than five of them.
    chi_square = ((counts - want * N)[likely] ** 2 / (want * N)[likely]).sum()
    assert chi_square < likely.sum() + 5 * np.sqrt(2 * likely.sum()) + 1


@pytest.mark.parametrize("case", [*CASES.values(), {"temperature": 0.0}], ids=[*CASES.keys(), "greedy"])
def test_what_a_token_was_drawn_from_is_the_oracles_distribution(case):
    p = SamplingParams(
        **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **{k: v for k, v in case.items() if k != "recent"}}
    )
    sampler = Sampler(len(LOGITS), p.temperature, p.top_k, p.top_p, p.min_p, p.repeat_penalty, 1)
    assert sampler.drawn_from() == ([], []), "nothing was drawn"
    sampler.note(case.get("recent", ()))
    token = sampler.choose(LOGITS)
    tokens, probabilities = sampler.drawn_from()
    want = sample_distribution(LOGITS, **{"temperature": 1.0, **case})
    found = np.zeros(len(LOGITS))
    found[tokens] = probabilities
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-12)
    assert token in tokens
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 0.24}, {0, 1, 2}),
        ({"min_p": 0.1, "top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.5, "temperature": 100.0, "min_p": 0.9}, {0, 1, 2}),
    ],
    ids=str,
)
def test_the_kept_tokens_are_exactly_the_oracles(isa, settings, support):
    logits = np.log([0.505, 0.25, 0.125, 0.07, 0.05]).astype(np.float32)
    want = sample_distribution(logits, **{"temperature": 1.0, **settings})
    assert set(np.flatnonzero(want)) == support
    assert set(np.flatnonzero(draws(logits, **settings))) == support


@pytest.mark.parametrize("settings", [{"top_k": 4}, {"top_p": 0.3}])
def test_of_equal_logits_the_lower_tokens_are_kept(isa, settings):
    logits = np.zeros(12, np.float32)
    want = sample_distribution(logits, **{"temperature": 1.0, **settings})
    assert set(np.flatnonzero(draws(logits, **settings))) == set(np.flatnonzero(want)) == {0, 1, 2, 3}


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 31, 32, 33, 99, 100])
def test_top_k_keeps_the_k_largest_of_any_order(isa, k):
    for seed in range(20):
        logits = np.random.default_rng(seed).permutation(np.arange(100) // 3).astype(np.float32) * 0.01
        want = set(np.flatnonzero(sample_distribution(logits, 100.0, k)))
        assert set(np.flatnonzero(draws(logits, top_k=k, temperature=100.0, n=1500))) <= want
        assert len(want) == k


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}, {"temperature": 1e-6}, {"temperature": 1e-40}])
def test_greedy_takes_the_first_of_the_largest(isa, settings):
    for logits in ([0, 5, 3, 5, 5], [-1, -3, -1], [7], [-np.inf, 2, 2]):
        counts = draws(np.array(logits, np.float32), n=1 if settings.get("temperature") == 0 else 200, **settings)
        best = np.flatnonzero(np.array(logits) == max(logits))
        drawn = np.flatnonzero(counts)
        if settings == {"temperature": 0} or "top_k" in settings:
            assert drawn.tolist() == best[:1].tolist()
        else:  # equals stay equally likely at any temperature
            assert drawn.tolist() == best.tolist()


def test_greedy_heeds_the_repeat_penalty(isa):
    logits = np.array([1.0, 2.0, -1.0], np.float32)
    sampler = Sampler(3, 0.0, 0, 1.0, 0.0, 4.0, 0)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 0, 1]  # 2, then 1 against 0.5, then 0.5 against 0.25


def test_the_same_seed_gives_the_same_draws_everywhere():
    before = instruction_sets.active()
    logits = np.random.default_rng(2).standard_normal((500, 512)).astype(np.float32) * 3
    sequences = []
    try:
        for name in instruction_sets.available():
            instruction_sets.use(name)
            sampler = Sampler(512, 0.8, 40, 0.95, 0.01, 1.1, 2**64 - 1)
            sequences.append([sampler.choose(row) for row in logits])
    finally:
        instruction_sets.use(before)
    assert all(sequence == sequences[0] for sequence in sequences)
    assert len(set(sequences[0])) > 100


def test_random_numbers_are_those_of_the_published_generator():
    """xoshiro256** seeded by splitmix64, written here once more with Python's integers."""
    mask, seed = 2**64 - 1, 12345

    def rotate(x, k):
        return (x << k | x >> (64 - k)) & mask

    s = []
    for i in range(1, 5):
        z = (seed + i * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        s.append(z ^ z >> 31)
    want = []
    for _ in range(500):
        want.append((rotate(s[1] * 5 & mask, 7) * 9 & mask) * 1024 >> 64)
        t = s[1] << 17 & mask
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
    sampler = Sampler(1024, 1.0, 0, 1.0, 0.0, 1.0, seed)
    assert [sampler.choose(np.zeros(1024, np.float32)) for _ in range(500)] == want


PROMPT = [1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_the_same_seed_gives_the_same_text(isa, write_llama, seed):
    model = lowbit.load(write_llama(vocab=300))
    first, again = (model.generate(PROMPT, seed=seed, max_tokens=40, temperature=3.0).tokens for _ in range(2))
    assert first == again
    assert model.generate(PROMPT, seed=seed ^ 12345, max_tokens=40, temperature=3.0).tokens != first


def test_the_same_seed_gives_the_same_text_everywhere(write_llama):
    path = write_llama(vocab=300, hidden=256, wide=1024)
    texts = set()
    before = instruction_sets.active()
    try:
        for name in instruction_sets.available():
            instruction_sets.use(name)
            for threads in (1, 2, 3):
                model = lowbit.load(path, threads=threads)
                texts.add(tuple(model.generate(PROMPT, seed=5, max_tokens=50, temperature=5.0).tokens))
    finally:
        instruction_sets.use(before)
    assert len(texts) == 1


def test_without_a_seed_texts_differ(write_llama):
    model = lowbit.load(write_llama(vocab=300))
    tokens = {tuple(model.generate(PROMPT, max_tokens=60, temperature=20.0, top_k=0).tokens) for _ in range(3)}
    assert len(tokens) == 3


def test_samplers_refuse_what_does_not_fit():
    sampler = Sampler(5, 1.0, 0, 1.0, 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="4 logits"):
        sampler.choose(np.zeros(4, np.float32))
    for token in (-1, 5):
        with pytest.raises(ValueError, match=f"token {token}"):
            sampler.note([token])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_tokens", [0, 1, 2**31 - 1, None], [-1, 1.5, 2**31, True, "3"]),
        ("temperature", [0, 1, 0.5, 100], [-0.1, 101, float("nan"), float("inf"), True, None, "1"]),
        ("top_k", [0, 1, 1000000], [-1, 2.0, 2**31, False, None]),
        ("top_p", [1, 1e-9], [0, -1, 1.1, float("nan"), None]),
        ("min_p", [0, 1, 0.5], [-0.1, 1.1, float("nan"), None]),
        ("repeat_penalty", [0.1, 1, 100], [0, -1, 101, float("nan"), None]),
        ("seed", [None, 0, 2**64 - 1], [-1, 2**64, 1.0, "1"]),
        ("stop", ["a", ("a", "b"), ["a"], ()], ["", ("a", ""), (1,)]),
    ],
)
def test_settings_out_of_range_name_themselves(name, good, bad):
    for value in good:
        SamplingParams(**{name: value})
    for value in bad:
        with pytest.raises(ValueError, match=name):
            SamplingParams(**{name: value})


def test_one_stop_string_is_no_sequence_of_letters():
    assert SamplingParams(stop="end").stop == ("end",)


@pytest.mark.parametrize("settings", [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 3, 1.0), (0.7, 0, 0.9)])
def test_a_logit_that_is_no_number_is_never_chosen_where_there_is_another(settings):
    temperature, top_k, top_p = settings
    rng = np.random.default_rng(1)
    for n in (2, 3, 40, 300):
        logits = rng.standard_normal(n).astype(np.float32)
        missing = rng.random(n) < 0.7
        missing[0], missing[n - 1] = True, False
        logits[missing] = np.nan
        sampler = Sampler(n, temperature, top_k, top_p, 0.0, 1.0, 5)
        chosen = {sampler.choose(logits) for _ in range(30)}
        assert not missing[list(chosen)].any()
        if temperature == 0:
            assert chosen == {int(np.nanargmax(logits))}


ADJUSTED = {
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "both, and a reward": {"presence_penalty": -0.5, "frequency_penalty": 0.4},
    "bias": {"logit_bias": {0: 2.0, 5: -3.0}},
    "forbidden": {"logit_bias": {int(LOGITS.argmax()): -1000.0}},
    "all of it": {"presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {1: 1.0}, "repeat_penalty": 1.2},
}


@pytest.mark.parametrize("allowed", [None, (0, 3, 7, 21), (9,)], ids=["all", "four", "one"])
@pytest.mark.parametrize("case", ADJUSTED.values(), ids=ADJUSTED.keys())
def test_biases_penalties_and_masks_are_the_oracles(isa, case, allowed):
    made = [3, 3, 3, 7, 20]
    n, counts = 4000, np.zeros(len(LOGITS), int)
    mask = None
    if allowed is not None:
        mask = np.zeros(1, np.uint32)
        mask[0] = sum(1 << token for token in allowed)
    for i in range(n):
        sampler = Sampler(
            len(LOGITS), 1.0, 0, 1.0, 0.0, case.get("repeat_penalty", 1.0), i, case.get("presence_penalty", 0.0),
            case.get("frequency_penalty", 0.0), case.get("logit_bias"),
        )  # fmt: skip
        for token in made:
            only = np.full(len(LOGITS), -1e4, np.float32)
            only[token] = 1e4
            assert sampler.choose(only) == token
        sampler.allow(mask)
        counts[sampler.choose(LOGITS)] += 1
    want = sample_distribution(LOGITS, recent=made, made=made, allowed=allowed, **case)
    assert not counts[want < 1e-12].any()
    likely = want * n >= 20
    chi_square = ((counts - want * n)[likely] ** 2 / (want * n)[likely]).sum()
    assert chi_square < likely.sum() + 5 * np.sqrt(2 * likely.sum()) + 1


def test_a_prompt_is_not_penalised_for_its_tokens(isa):
    logits = np.array([1.0, 2.0, 1.5], np.float32)
    sampler = Sampler(3, 0.0, 0, 1.0, 0.0, 1.0, 0, 5.0)
    sampler.note([1, 1])
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 0]


def test_one_that_imitates_another_of_more_tokens_leaves_those_alone_that_it_does_not_have():
    """The tokens of a draft, whose context was shifted past one that only the model has."""
    many = 1 << 24
    large, small, plain = (Sampler(n, 0.0, 0, 1.0, 0.0, 4.0, 1) for n in (many, 24, 24))
    large.note([many - 1, int(LOGITS.argmax()), many - 2])
    plain.note([int(LOGITS.argmax())])
    small.imitate(large)
    assert small.choose(LOGITS) == plain.choose(LOGITS)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask"):
        Sampler(100, 0.0, 0, 1.0, 0.0, 1.0, 0).allow(np.zeros(3, np.uint32))
    with pytest.raises(ValueError, match="logit_bias"):
        Sampler(100, 0.0, 0, 1.0, 0.0, 1.0, 0, 0.0, 0.0, {100: 1.0})
