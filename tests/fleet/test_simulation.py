"""The simulation of many machines against what can be computed by hand."""

from __future__ import annotations

import random

import pytest

from lowbit.fleet import GROUP, Fleet, groups_at_a_time, lines_of_group, simulate

LINES = [100.0] * 4000


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_equal_machines_share_the_work_evenly(n):
    run = simulate(LINES, Fleet([50.0] * n, load=0))
    assert run.ideal == pytest.approx(4000 * 100 / 50 / n)
    assert run.ideal <= run.seconds < 1.02 * run.ideal
    assert (run.failures, run.lost_tokens) == (0, 0)


def test_machines_of_mixed_speed_end_together():
    run = simulate(LINES, Fleet([10.0, 50.0, 200.0, 400.0], load=0))
    assert 0.9 < run.efficiency <= 1, "but for the lines that the slowest one has when all others are done"


def test_nobody_waits_for_a_slow_machine_whose_work_an_idle_one_takes():
    rates = [1.0] + [200.0] * 9
    copied, waited = (simulate(LINES, Fleet(rates, load=0, copies=copies)) for copies in (True, False))
    assert copied.efficiency > 0.8
    assert waited.seconds > 10 * copied.seconds


def test_groups_that_shrink_end_sooner_than_those_that_do_not():
    rates = [50.0, 60.0, 70.0, 80.0]
    runs = [simulate(LINES, Fleet(rates, load=0, copies=False, fixed_groups=fixed)) for fixed in (False, True)]
    assert runs[0].seconds < runs[1].seconds


def test_the_same_seed_gives_the_same_run():
    fleet = Fleet([50.0] * 10, between_failures=300, repair=30)
    assert simulate(LINES, fleet, 3) == simulate(LINES, fleet, 3)
    assert simulate(LINES, fleet, 3) != simulate(LINES, fleet, 4)


def test_the_model_has_to_be_loaded_first():
    quick, slow = (simulate(LINES, Fleet([50.0] * 4, load=load)) for load in (0, 100))
    assert slow.seconds == pytest.approx(quick.seconds + 100)


def test_failures_cost_what_was_lost_and_the_time_of_repair():
    """One machine, by hand: it runs for as long as the seed says, and is away for the repair and the loading."""
    calm = simulate(LINES, Fleet([50.0], load=0))
    fleet = Fleet([50.0], load=5, repair=20, between_failures=2000)
    run = simulate(LINES, fleet, 1)
    assert run.failures > 0
    assert run.seconds == pytest.approx(5 + calm.seconds + run.failures * 25 + run.lost_tokens / 50)
    most = groups_at_a_time(32) * GROUP * 100.0
    assert 0 < run.lost_tokens <= run.failures * most


def test_more_failures_cost_more():
    times = [simulate(LINES, Fleet([50.0] * 8, between_failures=mean, repair=60), 2).seconds for mean in (0, 3000, 300)]
    assert times == sorted(times)


def test_a_driver_that_is_too_slow_is_the_limit():
    run = simulate(LINES, Fleet([1e6] * 10, load=0, driver=0.01))
    assert run.seconds == pytest.approx(4000 * 0.01, rel=0.01)


def test_what_other_programs_take_is_missing():
    whole, half = (simulate(LINES, Fleet([50.0] * 4, load=0, taken=taken)).seconds for taken in (0.0, 0.5))
    assert half == pytest.approx(2 * whole)


def test_ten_thousand_machines_are_simulated():
    rng = random.Random(1)
    rates = [rng.uniform(20, 200) for _ in range(10_000)]
    run = simulate([100.0] * 300_000, Fleet(rates, load=0, between_failures=5000, repair=600), 1)
    assert run.failures > 0
    assert run.ideal < run.seconds < 30 * 100 / 20 + 2 * 5 * GROUP * 100 / 110, "the slowest alone, and what it began"


def test_groups_follow_what_is_left():
    assert groups_at_a_time(32) * GROUP >= 2 * 32
    assert [lines_of_group(n, 10) for n in (10_000, 160, 100, 9, 1)] == [16, 16, 10, 1, 1]
