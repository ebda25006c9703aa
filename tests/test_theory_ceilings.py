"""No collective passes its ceiling in simulated two-point tests, the best test attains it, and tables are met."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedacdp.privacy import accounting
from fedacdp.theory import ceilings

DELTA, SIX_IN_A_MILLION = 1e-5, 4.9  # standard errors that chance exceeds once in a million, one-sided

# epsilon, mu, moves by (epsilon, delta), moves by mu, half of them, ceilings for k = 1, 2, 5, 10, AUC
GROUPS = [
    (0.5, 0.1422, 4.39, 18.0, 9.0, (0.127, 0.159, 0.284, 0.556), 0.540),
    (1, 0.2681, 2.20, 9.56, 4.78, (0.155, 0.228, 0.523, 0.919), 0.575),
    (2, 0.5016, 1.10, 5.11, 2.56, (0.218, 0.390, 0.890, 1.00), 0.639),
    (4, 0.9249, 0.549, 2.77, 1.39, (0.361, 0.715, 1.0, 1.0), 0.743),
    (8, 1.666, 0.275, 1.54, 0.77, (0.650, 0.980, 1.0, 1.0), 0.881),
    (16, 2.905, 0.137, 0.88, 0.44, (0.948, 1.0, 1.0, 1.0), 0.980),
]


def printed(value: float, expected: float) -> bool:
    """Whether a number rounds to the three significant digits, or three decimals, of a table."""
    return abs(value - expected) <= 0.5001 * 10.0 ** max(-3, math.floor(math.log10(expected)) - 2)


@pytest.mark.parametrize("row", GROUPS, ids=lambda row: f"epsilon={row[0]}")
def test_group_privacy_has_the_values_of_its_table(row):
    epsilon, mu_printed, by_epsilon, by_mu, halved, tops, auc = row
    mu = accounting.mu_of(epsilon, DELTA)
    assert mu == pytest.approx(mu_printed, rel=4e-4)
    assert 1 / mu == pytest.approx({0.5: 7.032, 1: 3.731, 2: 1.994, 4: 1.081, 8: 0.600}.get(epsilon, 1 / mu), abs=5e-4)
    assert ceilings.epsilon_of_mu(mu, DELTA) == pytest.approx(epsilon, abs=1e-9)
    assert ceilings.group_privacy_moves(0.1, 0.9, epsilon, DELTA) == pytest.approx(by_epsilon, rel=4e-3)
    needed = ceilings.needed_shift(0.1, 0.9)
    assert needed == pytest.approx(2.5631, abs=5e-5)
    one, two = (ceilings.moves(1, adjacency) for adjacency in ("replace_one", "add_or_remove"))
    assert needed / (one * mu) == pytest.approx(by_mu, rel=4e-3)
    assert needed / (two * mu) == pytest.approx(halved, rel=6e-3)
    for members, top in zip((1, 2, 5, 10), tops, strict=True):
        assert printed(ceilings.separated(0.1, ceilings.moves(members, "replace_one") * mu), top)
    assert printed(ceilings.membership_auc(mu), auc)


TEXTBOOK = {0.5: 9.690, 1: 4.845, 2: 2.422, 4: 1.211, 8: 0.606}  # sqrt(2 ln(1.25 / delta)) / epsilon


@pytest.mark.parametrize(("epsilon", "printed_ratio"), TEXTBOOK.items())
def test_the_textbook_noise_is_more_than_the_exact_one_and_no_guarantee_for_large_budgets(epsilon, printed_ratio):
    ratio = math.sqrt(2 * math.log(1.25 / DELTA)) / epsilon
    assert abs(ratio - printed_ratio) <= 5.1e-4
    assert ratio > 1 / accounting.mu_of(epsilon, DELTA)
    assert ceilings.epsilon_of_mu(1 / ratio, DELTA) < epsilon
    far = math.sqrt(2 * math.log(1.25 / DELTA)) / 100
    assert ceilings.epsilon_of_mu(1 / far, DELTA) > 100


# percent of users, by reach, for N = 100, 1,000, 10,000, 100,000
NECESSARY = {
    (1, "central"): (9.56, 0.956, 0.0956, 0.0096),
    (1, "local_reports"): (91.4, 9.14, 0.914, 0.0914),
    (1, "local_mean"): (95.6, 30.2, 9.56, 3.02),
    (8, "central"): (1.54, 0.154, 0.0154, 0.0015),
    (8, "local_reports"): (2.37, 0.237, 0.0237, 0.0024),
    (8, "local_mean"): (15.4, 4.87, 1.54, 0.487),
}


@pytest.mark.parametrize("row", NECESSARY, ids=str)
def test_necessary_shares_have_the_values_of_their_table(row):
    mu = accounting.mu_of(row[0], DELTA)
    for users, percent in zip((100, 1000, 10_000, 100_000), NECESSARY[row], strict=True):
        found = ceilings.necessary_share(0.1, 0.9, mu, users, row[1])
        digit = 10.0 ** (math.floor(math.log10(percent)) - (1 if percent < 0.01 else 2))
        assert abs(100 * found - percent) <= max(0.51 * digit, 5e-5)
        k = found * users  # at that share the ceiling is S* exactly
        shift = {"central": k * mu, "local_mean": k / math.sqrt(users) * mu, "local_reports": math.sqrt(k) * mu}[row[1]]
        assert ceilings.separated(0.1, shift) == pytest.approx(0.9, abs=1e-9)


def test_certified_prediction_has_its_oracle_values():
    assert ceilings.certified_prediction(0.9, 0.1, 0.1, DELTA) == pytest.approx(10.98, abs=5e-3)
    assert ceilings.certified_prediction(0.9, 0.1, 1.0, DELTA) == pytest.approx(1.10, abs=5e-3)


def test_certified_prediction_is_where_the_bounds_on_both_classes_meet():
    for top, second, epsilon in [(0.9, 0.1, 0.1), (0.5, 0.3, 0.05), (0.8, 0.2, 0.02)]:
        limit = ceilings.certified_prediction(top, second, epsilon, DELTA)
        for moved in range(1, math.ceil(limit) + 3):
            geometric = DELTA * sum(math.exp(j * epsilon) for j in range(moved))
            lowest = math.exp(-moved * epsilon) * (top - geometric)
            highest = math.exp(moved * epsilon) * second + geometric
            assert (lowest > highest) == (moved < limit)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 2), st.floats(0, 0.01), st.integers(0, 60))
def test_group_privacy_is_the_definition_applied_move_by_move(base, epsilon, delta, moved):
    upper, rest = base, 1 - base
    for _ in range(moved):
        upper = min(1e300, math.exp(epsilon) * upper + delta)
        rest = math.exp(-epsilon) * (rest - delta)  # a complement above r was above e^-eps (r - delta) before
    expected = min(1.0, upper, 1 - max(0.0, rest))
    assert ceilings.group_privacy(base, epsilon, delta, moved) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_randomised_response_attains_the_group_ceiling_exactly():
    epsilon, k = 0.4, 5
    lie = 1 / (1 + math.exp(epsilon))
    outputs = list(itertools.product([0, 1], repeat=k))  # k members answer a bit, all 0 or all 1, and it is flipped
    all_ones = [math.prod(1 - lie if bit else lie for bit in bits) for bits in outputs]
    all_zeros = [math.prod(lie if bit else 1 - lie for bit in bits) for bits in outputs]
    reached, base = all_ones[-1], all_zeros[-1]  # the test that accepts only the answer 11111
    assert ceilings.group_privacy(base, epsilon, 0.0, k) == pytest.approx(reached, rel=1e-12)
    assert ceilings.group_privacy(base, epsilon, 0.0, k - 1) < reached, "one move too few is caught"
    assert ceilings.group_privacy(1 - reached, epsilon, 0.0, k) == pytest.approx(1 - base, rel=1e-12)


def test_ceilings_are_stable_for_many_members_and_large_budgets():
    assert ceilings.group_privacy(1e-300, 50.0, 1e-5, 10**9) == 1.0
    assert ceilings.group_privacy(0.0, 700.0, 0.0, 1000) == 0.0
    assert ceilings.group_privacy(0.0, 1e-9, 1e-9, 1000) == pytest.approx(1e-6, rel=1e-5)
    assert ceilings.group_privacy(0.2, 0.0, 1e-4, 10) == pytest.approx(0.201)
    assert ceilings.group_privacy_moves(0.1, 0.9, 900.0, 1e-5) == pytest.approx(math.log(9) / 900)
    assert ceilings.separated(0.0, 1e6) == 0.0
    assert ceilings.separated(0.5, math.inf) == 1.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.001, 0.999), st.floats(0.01, 3), st.floats(1e-9, 1e-3), st.integers(0, 30))
def test_ceilings_rise_with_members_budget_and_base(base, epsilon, delta, k):
    mu = accounting.mu_of(epsilon, delta)
    for ceiling in (
        lambda b, e, m: ceilings.group_privacy(b, e, delta, m),
        lambda b, e, m: ceilings.separated(b, m * e / epsilon * mu),
    ):
        here = ceiling(base, epsilon, k)
        assert base - 1e-12 <= here <= 1
        assert here <= ceiling(base, epsilon, k + 1) + 1e-12
        assert here <= ceiling(base, 1.1 * epsilon, k) + 1e-12
        assert here <= ceiling(min(1.0, 1.1 * base), epsilon, k) + 1e-12
    assert ceilings.group_privacy(base, epsilon, delta, 0) == base
    assert ceilings.group_privacy_moves(base, base, epsilon, delta) == 0
    # both forms speak of the same mechanism: what the GDP form allows, one move of the other must allow
    assert ceilings.separated(base, mu) <= ceilings.group_privacy(base, epsilon, delta, 1) + 1e-6


K, N, Z, C = np.array([3, 0, 5, 2, 4]), np.array([20, 15, 22, 18, 25]), 9.0, 0.7


def statistics(kind: str, campaign: bool, runs: int, seed: int) -> np.ndarray:
    """What the best linear test sees, in `runs` trainings of len(K) rounds: members send -C, or +C in a campaign.

    Each report has one coordinate that matters; the others send 0. `kind`: noise once on the sum, or on each report, of
    which the learner sees the sum, or all.
    """
    rng, sign = np.random.default_rng(seed), 1 if campaign else -1
    seen = np.zeros(runs)
    for k, n in zip(K, N, strict=True):
        noise = rng.standard_normal((runs, n)) * Z * C
        if kind == "central":
            seen += k * (sign * C * k + noise[:, 0])
        elif kind == "local_mean":
            seen += k / n * (sign * C * k + noise.sum(axis=1))
        else:
            seen += (sign * C + noise[:, :k]).sum(axis=1)
    return seen


@pytest.mark.parametrize(
    ("kind", "shift"),
    [
        ("central", ceilings.central_shift(K, Z)),
        ("local_mean", ceilings.local_mean_shift(K, N, Z)),
        ("local_reports", ceilings.local_reports_shift(K, Z)),
    ],
)
def test_the_best_two_point_test_attains_its_ceiling_and_does_not_pass_it(kind, shift):
    runs = 100_000
    honest, campaign = statistics(kind, False, runs, 1), statistics(kind, True, runs, 2)
    threshold = np.quantile(honest, 0.9)
    base, reached = (honest > threshold).mean(), (campaign > threshold).mean()
    error = math.hypot(0.5, 2.3 * 0.3) / math.sqrt(runs)  # of both shares; the ceiling's slope is at most 2.3 here
    assert abs(ceilings.separated(base, shift) - reached) < SIX_IN_A_MILLION * error
    assert reached > ceilings.separated(base, shift / 2) + SIX_IN_A_MILLION * error, "C in place of 2C is caught"


def test_members_who_leave_move_a_sum_half_as_far():
    none = np.zeros_like(K)
    assert ceilings.central_shift(none, Z, leaving=K) == pytest.approx(ceilings.central_shift(K, Z) / 2)
    assert ceilings.central_shift(K, Z, leaving=none) == ceilings.central_shift(K, Z)
    assert ceilings.central_shift(none, 0.0) == 0
    assert ceilings.central_shift(K, 0.0) == math.inf
    assert ceilings.moves(3, "add_or_remove", "leave") == 3
    assert ceilings.moves(3, "add_or_remove") == 6


def test_shifts_are_ordered_and_meet_the_budget_they_are_made_of():
    central, mean, reports = (
        ceilings.central_shift(K, Z),
        ceilings.local_mean_shift(K, N, Z),
        ceilings.local_reports_shift(K, Z),
    )
    assert mean < reports < central
    rounds, mu = 7, 0.3  # one member, all rounds, replace-one: sensitivity 2C, mu = 2 sqrt(T)/z
    z = 2 * math.sqrt(rounds) / mu
    assert ceilings.central_shift(np.full(rounds, 4), z) == pytest.approx(4 * mu)
    assert ceilings.local_reports_shift(np.full(rounds, 4), z) == pytest.approx(2 * mu)
    assert ceilings.local_mean_shift(np.full(rounds, 4), np.full(rounds, 100), z) == pytest.approx(0.4 * mu)


def test_members_who_skip_the_noise_pass_the_ceiling_of_those_who_comply():
    sigma, bound, runs, k, n = 2.0, 0.7, 100_000, 10, 30
    rng = np.random.default_rng(4)
    honest = -bound * k + sigma * rng.standard_normal((runs, n - k)).sum(axis=1)
    campaign = bound * k + sigma * rng.standard_normal((runs, n - k)).sum(axis=1)
    threshold = np.quantile(honest, 0.9)
    reached, shift = (campaign > threshold).mean(), ceilings.reclipped_shift(np.array([k]), np.array([n]), sigma, bound)
    assert reached == pytest.approx(ceilings.separated(0.1, shift), abs=SIX_IN_A_MILLION * 0.004)
    complying = ceilings.local_mean_shift(np.array([k]), np.array([n]), sigma / bound)
    assert reached > ceilings.separated(0.1, complying) + SIX_IN_A_MILLION * 0.004, "noise of all is caught"
    assert ceilings.reclipped_shift(np.array([k]), np.array([k]), sigma, bound) == math.inf
    reports = np.linalg.norm(sigma * rng.standard_normal((200, 400)), axis=1) / 0.5
    assert ceilings.deviating_gain(sigma, 400, 0.5) == pytest.approx(reports.mean(), rel=0.02)


def test_no_attack_on_one_member_has_a_larger_area_than_its_ceiling():
    rng, mu, runs = np.random.default_rng(5), 0.9, 100_000
    inside, outside = mu + rng.standard_normal(runs), rng.standard_normal(runs)
    area = (inside > outside).mean()
    assert area == pytest.approx(ceilings.membership_auc(mu), abs=SIX_IN_A_MILLION * 0.5 / math.sqrt(runs))
    assert ceilings.membership_auc(0.0) == 0.5


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ceilings.group_privacy(1.1, 1, 0.1, 2), "base"),
        (lambda: ceilings.group_privacy(0.1, -1, 0.1, 2), "epsilon"),
        (lambda: ceilings.group_privacy(0.1, 1, 1.5, 2), "delta"),
        (lambda: ceilings.group_privacy(0.1, 1, 0.5, math.nan), "moved"),
        (lambda: ceilings.group_privacy_moves(0.1, 0.9, 0, 0.1), "epsilon"),
        (lambda: ceilings.moves(2, "both"), "adjacency"),
        (lambda: ceilings.moves(2, "replace_one", "leave"), "leave"),
        (lambda: ceilings.separated(0.1, math.nan), "shift"),
        (lambda: ceilings.necessary_share(0.1, 0.9, 0.0, 10, "central"), "mu"),
        (lambda: ceilings.necessary_share(0.1, 0.9, 1.0, 0, "central"), "users"),
        (lambda: ceilings.necessary_share(0.1, 0.9, 1.0, 10, "far"), "reach"),
        (lambda: ceilings.central_shift(K, -1.0), "noise_multiplier"),
        (lambda: ceilings.central_shift(K, 1.0, leaving=K[1:]), "leaving"),
        (lambda: ceilings.local_mean_shift(K, np.maximum(K - 1, 0), 1.0), "acting"),
        (lambda: ceilings.certified_prediction(0.1, 0.2, 1.0, 0.1), "second"),
        (lambda: ceilings.epsilon_of_mu(1.0, 0.0), "delta"),
    ],
)
def test_wrong_numbers_are_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()
