"""Lower bounds on epsilon from attacks: known values, and against the definitions."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from fedacdp.privacy import accounting
from fedacdp.theory import audit
from fedacdp.theory.ceilings import epsilon_of_mu

ONE_RUN = [  # coins, guesses, right, epsilon at delta 0, epsilon at delta 1e-5: jax_privacy's auditing.py
    (100, 100, 90, 1.6308, 1.6304),
    (100, 100, 100, 3.4930, 3.4902),
    (500, 500, 450, 1.9471, 1.9466),
    (1000, 1000, 600, 0.2975, 0.2972),
    (1000, 1000, 900, 2.0212, 2.0206),
    (1000, 100, 90, 1.6308, 1.6261),
    (1000, 100, 100, 3.4930, 3.4654),
    (5000, 500, 470, 2.4355, 2.4269),
]


@pytest.mark.parametrize(("coins", "guesses", "right", "pure", "approximate"), ONE_RUN)
def test_one_run_bounds_are_those_of_the_published_implementation(coins, guesses, right, pure, approximate):
    assert audit.one_run_epsilon(coins, guesses, right) == pytest.approx(pure, abs=1e-4)
    assert audit.one_run_epsilon(coins, guesses, right, 1e-5) == pytest.approx(approximate, abs=1e-4)


def test_one_run_p_values_and_ceilings_are_those_that_are_known():
    assert audit.one_run_p_value(100, 100, 75, math.log(3)) == pytest.approx(0.55347, abs=1e-5)
    assert audit.one_run_epsilon(1000, 100, 75, 1e-4) == pytest.approx(0.67298, abs=1e-5)
    for guesses, ceiling in ((10, 1.05), (30, 2.25), (100, 3.49), (300, 4.60)):
        assert audit.one_run_epsilon(guesses, guesses, guesses) == pytest.approx(ceiling, abs=0.005)
    assert audit.one_run_epsilon(100, 100, 50) == 0


def test_two_world_bounds_and_ceilings_are_those_that_are_known():
    errors = audit.Errors(10, 1000, 500, 1000)
    assert errors.epsilon(1e-5) == pytest.approx(3.242, abs=5e-4)
    assert errors.mu() == pytest.approx(2.0110, abs=5e-5)
    assert errors.gaussian_epsilon(1e-5) == pytest.approx(10.065, abs=1e-3)
    for runs, ceiling in ((100, 3.28), (300, 4.39), (1000, 5.60), (10_000, 7.90)):
        assert audit.two_world_ceiling(runs, runs) == pytest.approx(ceiling, abs=0.005)
    assert audit.Errors(0, 1000, 0, 1000).gaussian_epsilon(1e-5) == pytest.approx(36.5, abs=0.05)


def test_the_power_at_a_thousand_runs_is_the_one_that_is_known():
    wrong = int(1000 * norm.sf(0.5))  # threshold mu / 2 at mu = 1
    errors = audit.Errors(wrong, 1000, wrong, 1000)
    assert errors.epsilon(1e-5) == pytest.approx(0.68, abs=0.01)  # over random counts the mean is 0.685
    assert errors.gaussian_epsilon(1e-5) == pytest.approx(3.57, abs=0.01)


def test_one_run_is_seldom_wrong_about_randomised_response_and_sees_a_broken_one():
    claimed, coins, runs = 1.0, 200, 2000
    rng = np.random.default_rng(1)

    def refuted(true):
        right = rng.binomial(coins, 1 / (1 + math.exp(-true)), runs)
        bound = {int(v): audit.one_run_epsilon(coins, coins, int(v)) for v in np.unique(right)}
        return sum(bound[int(v)] > claimed for v in right)

    assert refuted(claimed) <= binom.isf(1e-6, runs, 0.05)
    assert refuted(2.0) > 0.9 * runs


def test_a_threshold_is_judged_on_scores_that_did_not_choose_it():
    rng = np.random.default_rng(2)
    alike = [audit.errors_of(*rng.normal(size=(2, 60))).epsilon(0.0) > 0 for _ in range(400)]
    assert sum(alike) <= binom.isf(1e-6, 400, 0.05)
    apart = audit.errors_of(rng.normal(size=2000), rng.normal(3, 1, 2000))
    assert 2 < apart.epsilon(1e-5) < epsilon_of_mu(3, 1e-5)
    assert apart.absent == apart.present == 1000


def test_the_noise_of_a_mechanism_is_read_off_its_outcomes():
    rng, draws = np.random.default_rng(3), 100_000
    for noise in (2.0, 1.0, 4.0):
        read, tolerance = audit.mechanism_mu(rng.normal(0, noise, draws), rng.normal(1, noise, draws))
        assert (abs(read - 1 / 2) <= tolerance) == (noise == 2)
    assert tolerance == pytest.approx(0.022, abs=5e-4)


@pytest.mark.parametrize("pair", [((0, 1), (1, 1)), ((0.3, 0.5), (0, 1)), ((0, 1), (0.3, 0.5)), ((0, 2), (0, 1))])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_delta_between_two_normals_is_the_integral_of_the_definition(pair, epsilon):
    x = np.linspace(-30, 30, 2_000_001)
    first, second = (norm.pdf(x, mean, spread) for mean, spread in pair)
    slow = np.trapezoid(np.maximum(0, first - math.exp(epsilon) * second), x)
    assert audit.normals_delta(*pair, epsilon) == pytest.approx(slow, abs=1e-8)


def test_canaries_recover_the_epsilon_of_a_gaussian():
    dimension, mu, rng = 10_000, 1.5, np.random.default_rng(4)
    cosines = rng.normal(mu, 1, 100_000) / math.sqrt(dimension)
    cosines = (cosines - cosines.mean()) / cosines.std(ddof=1) / math.sqrt(dimension) + mu / math.sqrt(dimension)
    assert audit.canary_epsilon(cosines, dimension, 1e-5) == pytest.approx(epsilon_of_mu(mu, 1e-5), rel=1e-6)
    assert audit.canary_epsilon(cosines * 0 + rng.normal(0, 0.01, 100_000), dimension, 1e-5) < 0.2


def test_the_ceilings_of_a_sampled_run_are_those_that_are_known():
    curve = accounting.deltas(accounting.Gaussians(1.0, 0.1, 100))
    limits = [audit.tpr_limit(rate, *curve) for rate in (0.1, 0.01, 0.001)]
    assert limits == pytest.approx([0.470, 0.146, 0.039], abs=1e-3)  # those of a coarser grid
    assert audit.auc_limit(*curve) == pytest.approx(0.801, abs=1e-3)


@pytest.mark.parametrize("mu", [0.2681, 0.9249])
def test_the_ceilings_of_a_gaussian_are_its_trade_off_curve(mu):
    epsilons = np.linspace(0, 20, 2001)
    curve = epsilons, np.array([accounting.delta_of_mu(float(e), mu) for e in epsilons])
    for rate in (0.1, 0.01, 0.001):
        assert audit.tpr_limit(rate, *curve) == pytest.approx(norm.cdf(norm.ppf(rate) + mu), abs=1e-4)
    assert audit.auc_limit(*curve) == pytest.approx(norm.cdf(mu / math.sqrt(2)), abs=1e-4)


def test_intervals_cover_as_often_as_they_say():
    for rate in (0.02, 0.3):
        hits = np.arange(101)
        covers = [low <= rate <= high for low, high in (audit.interval(int(k), 100) for k in hits)]
        assert binom.pmf(hits, 100, rate) @ covers >= 0.95
    assert audit.interval(0, 10)[0] == 0
    assert audit.interval(10, 10)[1] == 1


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: audit.Errors(5, 4, 0, 4).epsilon(0.0), "errors"),
        (lambda: audit.one_run_p_value(10, 11, 5, 1.0), "coins"),
        (lambda: audit.one_run_epsilon(10, 10, 5, failure=1.0), "failure"),
        (lambda: audit.errors_of(np.zeros(3), np.zeros(9)), "at least 4"),
        (lambda: audit.canary_epsilon(np.zeros(1), 10, 1e-5), "canaries"),
        (lambda: audit.mechanism_mu(np.zeros(9), np.zeros(9)), "spread"),
    ],
)
def test_wrong_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
