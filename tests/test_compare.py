"""Mechanisms are compared at one epsilon for one unit and one adjacency, or it is said that they are not."""

import json
import math
import re

import pytest
from typer.testing import CliRunner

from fedacdp.cli import app
from fedacdp.config import ConfigError
from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Plan
from fedacdp.privacy.compare import compare, epsilon_replaced, group_bound, group_epsilon, multiplier, of_a_user

PLAN = Plan(users=1000, sampling_prob=0.1, rounds=100, local_steps=5, batch=4.0, batch_prob=1 / 3)
TABLE = [
    (1000, 100, 100, 1, 3.9418, 23.60, 59.9),
    (1000, 100, 100, 2, 2.2477, 12.61, 56.1),
    (1000, 100, 100, 4, 1.3860, 6.838, 49.3),
    (10_000, 100, 500, 1, 1.1462, 16.68, 145.6),
    (100_000, 1000, 1000, 1, 1.4146, 23.60, 527),
]


@pytest.mark.parametrize(("users", "cohort", "rounds", "eps", "z", "sigma", "ratio"), TABLE)
def test_customary_neighbours_give_the_reference_table(users, cohort, rounds, eps, z, sigma, ratio):
    plan = Plan(users, cohort / users, rounds, 5, 4.0, 1 / 3)
    central, local = compare(eps, 1e-5, plan, 1.0, adjacency="customary")
    assert central.noise_multiplier == pytest.approx(z, rel=2e-3)
    assert local.sigma == pytest.approx(sigma, rel=2e-3)
    assert central.noise_on_mean == pytest.approx(z / cohort, rel=2e-3)
    assert local.noise_on_mean == pytest.approx(sigma / math.sqrt(cohort), rel=2e-3)
    assert local.noise_on_mean / central.noise_on_mean == pytest.approx(ratio, rel=2e-3)
    assert (central.adjacency, local.adjacency) == ("add_or_remove", "replace_one")


def test_replacement_of_a_sampled_user_has_the_golden_values():
    assert epsilon_replaced(Gaussians(1.0, 0.1, 100), 1e-5) == pytest.approx(10.5164, abs=1e-3)
    assert epsilon_replaced(Gaussians(2.0, 0.1, 100), 1e-5) == pytest.approx(4.3681, abs=1e-3)
    assert epsilon_replaced(Gaussians(1.0, 1.0, 1), 1e-5) == pytest.approx(9.997, abs=1e-3)


def test_with_the_same_neighbours_local_costs_about_the_root_of_the_users():
    """Under replacement both have sensitivity 2C, under add-or-remove both C: the ratio is near sqrt(N) (large z)."""
    for adjacency, doubled in (("replace_one", 2.0), ("add_or_remove", 1.0)):
        central, local = compare(1.0, 1e-5, PLAN, 0.5, adjacency=adjacency)
        assert (central.adjacency, local.adjacency) == (adjacency, adjacency)
        assert (central.unit, local.unit) == ("user", "user")
        assert local.noise_on_mean / central.noise_on_mean == pytest.approx(math.sqrt(1000), rel=0.06)
        spent = accounting.epsilon(Gaussians(local.sigma / (doubled * 0.5), 1.0, 10), 1e-5)
        assert 0.997 <= spent <= 1.0
        releases = Gaussians(central.sigma / 0.5, 0.1, 100)
        whole = epsilon_replaced(releases, 1e-5) if doubled == 2 else accounting.epsilon(releases, 1e-5)
        assert 0.997 <= whole <= 1.0


def test_members_needed_bring_the_wanted_ratio_of_signal_to_noise():
    central, local = compare(2.0, 1e-5, PLAN, 0.5, snr=3.0)
    for row in (central, local):
        shift = row.members * 0.5 / PLAN.cohort  # of the mean, in every round
        assert shift * math.sqrt(PLAN.rounds) / row.noise_on_mean == pytest.approx(3.0)
    assert local.members == pytest.approx(3 * local.sigma * math.sqrt(100) / 0.5 / math.sqrt(100))


def test_epsilons_of_users_and_of_examples_are_not_compared_unless_asked_for():
    with pytest.raises(ValueError, match="different promises; across_units"):
        compare(2.0, 1e-5, PLAN, 1.0, ["central", "local_dpsgd"])
    with pytest.raises(ValueError, match="mechanisms = foo: known: central, local_update, local_dpsgd"):
        compare(2.0, 1e-5, PLAN, 1.0, ["foo"])
    whole = Plan(1000, 0.1, 100, 5, 3.0, 1.0)
    central, example = compare(
        2.0, 1e-5, whole, 1.0, ["central", "local_dpsgd"], adjacency="add_or_remove", across_units=True
    )
    assert (central.unit, example.unit) == ("user", "example")
    assert central.user_epsilon == 2.0
    mu = math.sqrt(5 * 10) / example.noise_multiplier  # 3 records, no sampling of examples: exactly 3 mu
    assert accounting.delta_of_mu(example.user_epsilon, 3 * mu) == pytest.approx(1e-5, rel=5e-3)


@pytest.mark.parametrize(("records", "eps"), [(1, 1.0), (2, 2.159)])
def test_a_users_examples_together_have_the_golden_epsilons(records, eps):
    assert group_epsilon(Gaussians(3.9418, 0.1, 100), records, 1e-5) == pytest.approx(eps, abs=1e-3)


def test_the_coarser_grid_of_many_examples_is_rounded_up():
    assert 6.192 - 1e-3 <= group_epsilon(Gaussians(3.9418, 0.1, 100), 5, 1e-5) <= 6.192 * 1.03


def test_the_general_bound_of_a_group_holds_and_is_none_where_it_says_nothing():
    eps, delta = 0.5, 1e-9
    bound = group_bound(eps, delta, 4)
    assert bound is not None
    assert bound[0] == 2.0
    assert bound[1] == pytest.approx(4 * math.exp(1.5) * 1e-9)
    assert accounting.delta_of_mu(bound[0], 4 * accounting.mu_of(eps, delta)) <= bound[1]  # a Gaussian obeys it
    assert group_bound(2.0, 1e-5, 12) is None
    assert of_a_user(Gaussians(1.0, 0.1, 10), 2.0, 1e-5, 12, replaced=True)[0] == math.inf
    assert of_a_user(Gaussians(1.0, 0.1, 10), 2.0, 1e-5, 1) == (2.0, 1e-5)


def test_without_sampling_replacement_is_twice_the_noise():
    shape = Gaussians(1.0, 1.0, 10)
    assert multiplier(1.0, 1e-5, shape, True) == 2 * multiplier(1.0, 1e-5, shape, False)


ASKED = ["compare", "--users", "1000", "--sampling-prob", "0.1", "--rounds", "100", "--epsilon", "1"]


@pytest.mark.parametrize("format", ["text", "md", "json", "csv"])
def test_the_command_says_what_its_table_means(format):
    out = CliRunner().invoke(app, [*ASKED, "--format", format]).output
    assert "23.6" in out
    if format == "json":
        found = json.loads(out)
        assert [row["mechanism"] for row in found["mechanisms"]] == ["central", "local_update"]
        assert {row["adjacency"] for row in found["mechanisms"]} == {"replace_one"}
    if format == "text":
        assert "Against different observers" in out
        assert "Not the same promise" not in out
        other = CliRunner().invoke(app, [*ASKED, "--neighbours", "customary"]).output
        assert "Not the same promise: neighbours differ" in other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mechanism", "central", "--mechanism", "local_dpsgd"], "--mechanism = central, local_dpsgd: .*different"),
        (["--mechanism", "foo"], "mechanisms = foo: known"),
        (["--sampling-prob", "2"], "--sampling-prob = 2"),
        (["--batch-prob", "0"], "--batch-prob = 0"),
        (["--clip-norm", "inf"], "--clip-norm = inf"),
        (["--epsilon", "0"], "epsilon must be above 0"),
        (["--epsilon", "0.00001"], r"epsilon = 1e-05: cannot be met; the smallest .* 0\.0001"),
    ],
)
def test_wrong_options_are_told_in_one_line(options, message):
    result = CliRunner().invoke(app, [*ASKED, *options])
    assert isinstance(result.exception, ConfigError)
    assert re.search(message, str(result.exception))
    assert "\n" not in str(result.exception)
