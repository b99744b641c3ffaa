"""The filters of the sampler: what each keeps, and in which order they act."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.reference import sample_distribution, softmax

P = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(P)


@given(
    arrays(np.float32, 12, elements=st.floats(-30, 30, width=32)),
    st.floats(0, 3),
    st.integers(0, 14),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.5, 2),
    st.lists(st.integers(0, 11)),
)
def test_probabilities_sum_to_one_and_something_is_kept(logits, temperature, top_k, top_p, min_p, penalty, recent):
    p = sample_distribution(logits, temperature, top_k, top_p, min_p, penalty, recent)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    assert np.count_nonzero(p) <= (top_k or 12)


def test_no_filter_is_the_softmax():
    np.testing.assert_allclose(sample_distribution(LOGITS), P)


def test_temperature_divides_the_logits():
    np.testing.assert_allclose(sample_distribution(LOGITS, temperature=0.5), softmax(2 * LOGITS))


def test_temperature_zero_takes_the_first_of_the_largest():
    assert sample_distribution(np.array([1.0, 2.0, 2.0]), temperature=0).tolist() == [0, 1, 0]


def test_top_k_keeps_exactly_k_and_the_lower_id_of_equals():
    assert sample_distribution(np.zeros(5), top_k=2).tolist() == [0.5, 0.5, 0, 0, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, range(4))]
)
def test_top_p_keeps_the_smallest_prefix_that_reaches_it(top_p, kept):
    assert np.flatnonzero(sample_distribution(np.log([1, 4, 2, 3]), top_p=top_p)).tolist() == list(kept)


def test_top_p_keeps_the_lower_ids_of_equals():
    assert sample_distribution(np.zeros(4), top_p=0.5).tolist() == [0.5, 0.5, 0, 0]


def test_min_p_is_a_share_of_the_most_likely():
    np.testing.assert_allclose(sample_distribution(LOGITS, min_p=0.6), [0, 4 / 7, 0, 3 / 7])


def test_repeat_penalty_counts_a_token_once_and_pulls_it_down_whatever_its_sign():
    p = sample_distribution(np.array([2.0, -2.0, 1.0]), repeat_penalty=2.0, recent=[0, 0, 1])
    np.testing.assert_allclose(p, softmax(np.array([1.0, -4.0, 1.0])))


def test_repeat_penalty_forgets_tokens_older_than_64():
    p = sample_distribution(np.array([2.0, 2.0]), repeat_penalty=2.0, recent=[0] + [1] * 64)
    np.testing.assert_allclose(p, softmax(np.array([2.0, 1.0])))


def test_repeat_penalty_acts_before_greedy_choice():
    assert sample_distribution(np.array([3.0, 2.0]), 0, repeat_penalty=2.0, recent=[0]).tolist() == [0, 1]


def test_top_p_sees_the_temperature_and_what_top_k_left():
    # after top_k=2: 4/7 and 3/7, so 0.5 is reached by the first alone; at the full distribution it takes two
    assert np.flatnonzero(sample_distribution(LOGITS, top_p=0.5)).tolist() == [1, 3]
    assert np.flatnonzero(sample_distribution(LOGITS, top_k=2, top_p=0.5)).tolist() == [1]
    assert np.flatnonzero(sample_distribution(LOGITS, temperature=0.1, top_p=0.5)).tolist() == [1]
