"""Intervals cover what they say they cover, and nothing is extrapolated."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from fedacdp import statistics
from fedacdp.statistics import CriticalMass, critical_mass, difference, mean_interval

ALPHAS = np.array([0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
REPETITIONS = 500


def shifted(seeds, rng):
    """Curves that each seed shifts: success at one alpha goes with success at another."""
    middle = 0.035 * np.exp(0.35 * rng.standard_normal((seeds, 1)))
    steep = 0.1 + 0.88 / (1 + (middle / np.maximum(ALPHAS, 1e-9)) ** 3)
    return np.clip(steep + 0.02 * rng.standard_normal((seeds, len(ALPHAS))), 0, 1)


def scattered(seeds, rng):
    """The same curve for all seeds with noise on each point, often not monotone."""
    curve = 0.1 + 0.85 * np.interp(ALPHAS, [0, 0.02, 0.05, 0.1, 0.2], [0, 0.2, 0.7, 0.95, 1])
    return np.clip(curve + 0.12 * rng.standard_normal((seeds, len(ALPHAS))), 0, 1)


def slow(seeds, rng):
    """Slowly rising curves that each seed lifts or lowers."""
    lifted = 0.1 * rng.standard_normal((seeds, 1)) + 0.1 * rng.standard_normal((seeds, len(ALPHAS)))
    return np.clip(np.interp(ALPHAS, [0, 0.2], [0.2, 0.7]) + lifted, 0, 1)


def slow_crossing(alphas, success, level):
    """The critical mass without interval, by sklearn's isotonic regression and a walk along its straight lines."""
    fitted = IsotonicRegression().fit_transform(alphas, success.mean(axis=0))
    for place, value in enumerate(fitted):
        if value >= level:
            if place == 0:
                return alphas[0]
            share = (level - fitted[place - 1]) / (value - fitted[place - 1])
            return alphas[place - 1] + share * (alphas[place] - alphas[place - 1])
    return math.inf


def covered(make, seeds):
    """The share of repetitions whose interval holds the critical mass of the expected curve."""
    truth = slow_crossing(ALPHAS, make(100_000, np.random.default_rng(1)), 0.5)
    rng = np.random.default_rng(seeds)
    found = [critical_mass(ALPHAS, make(seeds, rng)) for _ in range(REPETITIONS)]
    return np.mean([mass.low <= truth <= mass.high for mass in found])


@pytest.mark.parametrize(("make", "seeds"), [(shifted, 5), (scattered, 8), (slow, 9), (shifted, 10), (scattered, 20)])
def test_the_interval_of_the_critical_mass_covers_a_known_answer_as_often_as_it_says(make, seeds):
    assert 0.93 <= covered(make, seeds) <= 0.97


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_or_three_seeds_cover_no_less(seeds):
    assert covered(scattered, seeds) >= 0.93


def test_plain_percentiles_would_not_cover(monkeypatch):
    monkeypatch.setattr(statistics, "_tail", lambda n: 0.025)
    assert covered(shifted, 10) < 0.93
    monkeypatch.setattr(statistics, "MANY", 2)
    assert covered(shifted, 5) < 0.88


def test_the_critical_mass_is_that_of_another_isotonic_regression_on_any_curve():
    rng = np.random.default_rng(3)
    for _ in range(200):
        alphas, success = np.sort(rng.random(6)), rng.random((4, 6))
        level = rng.uniform(0.2, 0.8)
        assert critical_mass(alphas, success, level).value == pytest.approx(slow_crossing(alphas, success, level))


def test_the_ends_below_ten_seeds_are_where_a_t_test_of_the_success_just_rejects():
    success = np.array([[0.1, 0.3, 0.9], [0.15, 0.4, 0.95], [0.05, 0.25, 0.97]])
    mass = critical_mass([0.0, 0.1, 0.2], success)
    for end in (mass.low, mass.high):
        there = [np.interp(end, [0.0, 0.1, 0.2], seed) for seed in success]
        assert stats.ttest_1samp(there, 0.5).pvalue == pytest.approx(0.05, abs=2e-3)
    assert mass.low < mass.value < mass.high


def test_what_is_not_reached_is_not_extrapolated():
    low = np.tile([0.1, 0.2, 0.4], (5, 1)) + np.linspace(-0.02, 0.02, 5)[:, None]
    assert critical_mass([0.0, 0.1, 0.2], low) == CriticalMass(math.inf, math.inf, math.inf, 5, 0.5)
    near = low + np.array([0.0, 0.0, 0.095])
    found = critical_mass([0.0, 0.1, 0.2], near)
    assert (found.value, found.high) == (math.inf, math.inf)
    assert 0.1 < found.low < 0.2


@pytest.mark.parametrize("seeds", [4, 12])
def test_where_some_draws_of_seeds_do_not_reach_it_the_upper_end_is_not_reached(seeds):
    success = np.column_stack([np.full(seeds, 0.1), np.where(np.arange(seeds) % 4 < 3, 0.65, 0.2)])
    mass = critical_mass([0.0, 0.2], success)
    assert math.isfinite(mass.value)
    assert math.isinf(mass.high)


@pytest.mark.parametrize("seeds", [2, 12])
def test_equal_seeds_have_an_interval_without_width(seeds):
    mass = critical_mass([0.0, 0.1, 0.2], np.tile([0.1, 0.3, 0.8], (seeds, 1)))
    assert mass.value == pytest.approx(0.14)
    assert (mass.low, mass.high) == (pytest.approx(0.14), pytest.approx(0.14))
    assert mean_interval([0.3] * seeds) == (pytest.approx(0.3), pytest.approx(0.3))


def test_one_seed_has_a_value_and_no_interval():
    mass = critical_mass([0.0, 0.2], np.array([[0.0, 1.0]]))
    assert mass.value == pytest.approx(0.1)
    assert math.isnan(mass.low)
    assert math.isnan(mass.high)
    assert all(math.isnan(end) for end in mean_interval([0.4]))


def test_success_that_everybody_has_anyway_is_reached_at_the_smallest_alpha():
    assert critical_mass([0.0, 0.1], np.array([[0.6, 0.7], [0.7, 0.8]])).value == 0
    assert critical_mass([0.05], np.array([[0.6], [0.9]])).value == 0.05


def test_the_order_of_seeds_changes_nothing_and_the_same_numbers_give_the_same_interval():
    success = shifted(12, np.random.default_rng(4))
    values = success[:, 3]
    assert mean_interval(values) == mean_interval(values[::-1])
    assert critical_mass(ALPHAS, success) == critical_mass(ALPHAS, success.copy())


@pytest.mark.parametrize(("seeds", "repetitions"), [(3, 2000), (9, 2000), (10, 500), (25, 500)])
def test_the_interval_of_a_mean_covers_it(seeds, repetitions):
    rng = np.random.default_rng(seeds)
    found = [mean_interval(rng.beta(4, 2, seeds)) for _ in range(repetitions)]
    assert 0.93 <= np.mean([low <= 4 / 6 <= high for low, high in found]) <= 0.97


def test_below_ten_values_the_interval_is_students_and_from_ten_on_it_is_not():
    rng = np.random.default_rng(6)
    for n in (9, 10):
        values = rng.exponential(size=n)
        student = stats.ttest_1samp(values, 0).confidence_interval()
        found = mean_interval(values)
        assert (found == (pytest.approx(student.low), pytest.approx(student.high))) == (n == 9)
    assert found[1] - values.mean() > values.mean() - found[0]  # a bootstrap sees that the values are skewed


def test_pairs_take_away_what_seeds_have_in_common():
    rng = np.random.default_rng(7)
    common = rng.normal(0, 10, 6)
    one, other = common + 1 + 0.01 * rng.normal(size=6), common
    found = difference(one, other)
    assert found.seeds == 6
    assert 0.9 < found.low < found.value < found.high < 1.1
    assert stats.ttest_rel(one, other).confidence_interval().low == pytest.approx(found.low)
    assert difference(other, one).value == pytest.approx(-found.value)


WRONG = [
    lambda: mean_interval([]),
    lambda: mean_interval([0.1, math.nan]),
    lambda: difference([1.0], [1.0, 2.0]),
    lambda: critical_mass([0.1, 0.1], np.ones((2, 2))),
    lambda: critical_mass([0.1, 0.2], np.ones((2, 3))),
    lambda: critical_mass([0.1, 0.2], np.array([[0.1, math.nan]])),
    lambda: critical_mass([0.1], np.ones((0, 1))),
]


@pytest.mark.parametrize("call", WRONG)
def test_wrong_arrays_are_refused(call):
    with pytest.raises(ValueError, match=r"must|paired"):
        call()


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean_interval([0.0] * 11 + [1.0])
        critical_mass(ALPHAS, shifted(11, np.random.default_rng(8)))
        critical_mass([0.1, 0.2], np.zeros((3, 2)))
