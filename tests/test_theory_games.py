"""Signal to noise, detection, leverage and the participation game have their closed forms and their tables' values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedacdp.privacy import accounting
from fedacdp.theory import ceilings, detection, leverage, signal_to_noise
from fedacdp.theory.participation import (
    Game,
    collapse_epsilon,
    collapse_epsilon_floor,
    critical_mass,
    step_collapses,
    worthwhile_success,
)

DELTA, SIX_IN_A_MILLION = 1e-5, 4.9


def close(found: float, printed: str) -> bool:
    """Whether a number rounds to one that was printed with these digits."""
    decimals = len(printed.partition(".")[2])
    return abs(found - float(printed)) <= 0.5001 * 10.0**-decimals


# N, n, T, epsilon: z, noise central, sigma_l, noise local, ratio, members in one round central / local, over T rounds
SNR = [
    (1000, 100, 100, 1, "3.80", ".0380", "23.6", "2.36", "62", "3.8", "236", ".38", "23.6"),
    (1000, 100, 100, 8, ".868", ".0087", "3.80", ".380", "44", ".87", "38.0", ".087", "3.80"),
    (10_000, 100, 500, 1, "1.06", ".0106", "16.7", "1.67", "157", "1.06", "167", ".047", "7.46"),
    (10_000, 100, 500, 8, ".498", ".0050", "2.68", ".268", "54", ".50", "26.8", ".022", "1.20"),
    (100_000, 1000, 1000, 8, ".546", ".00055", "3.80", ".120", "220", ".55", "120", ".017", "3.80"),
]


@pytest.mark.parametrize("row", SNR, ids=str)
def test_signal_to_noise_has_the_values_of_its_table(row):
    users, cohort, rounds, epsilon, *expected = row
    mu, q = accounting.mu_of(epsilon, DELTA), cohort / users
    z = signal_to_noise.central_multiplier(mu, q, rounds)
    sigma = signal_to_noise.local_noise(mu, 1.0, q * rounds)
    central = signal_to_noise.central_noise_on_mean(z, 1.0, cohort)
    local = signal_to_noise.local_noise_on_mean(sigma, cohort)
    needed = [
        signal_to_noise.members_needed(1.0, 1.0, cohort, noise, some)
        for some in (1, rounds)
        for noise in (central, local)
    ]
    found = [z, central, sigma, local, local / central, *needed]
    assert [close(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(expected), found
    assert needed[0] == pytest.approx(z)
    assert needed[1] == pytest.approx(sigma * math.sqrt(cohort))
    assert mu == pytest.approx(q * math.sqrt(rounds * math.expm1(1 / z**2)))
    for k, noise in zip(needed[2:], (central, local), strict=True):
        assert signal_to_noise.snr(k, 1.0, cohort, noise, rounds) == pytest.approx(1.0)
    # the ceiling of a compliant collective is that of twice the accumulated signal-to-noise ratio
    twice = 2 * signal_to_noise.snr(3, 1.0, cohort, central, rounds)
    assert ceilings.central_shift(np.full(rounds, 3), z) == pytest.approx(twice)
    twice = 2 * signal_to_noise.snr(3, 1.0, cohort, local, rounds)
    assert ceilings.local_mean_shift(np.full(rounds, 3), np.full(rounds, cohort), sigma) == pytest.approx(twice)


def test_first_row_has_its_four_digits_and_the_ratio_tends_to_twice_the_root_of_the_population():
    mu = accounting.mu_of(1, DELTA)
    z, sigma = signal_to_noise.central_multiplier(mu, 0.1, 100), signal_to_noise.local_noise(mu, 1.0, 10)
    assert (round(z, 3), round(sigma, 2), round(sigma * 10 / z, 1)) == (3.796, 23.59, 62.2)
    mu = accounting.mu_of(0.01, DELTA)
    z, sigma = signal_to_noise.central_multiplier(mu, 0.1, 100), signal_to_noise.local_noise(mu, 1.0, 10)
    assert sigma * math.sqrt(100) / z == pytest.approx(2 * math.sqrt(1000), rel=1e-3)


@pytest.mark.parametrize(
    ("epsilon", "users", "arm", "expected"),
    [
        (1, 1000, "central", ".0567"),
        (1, 1000, "local", ".3356"),
        (1, 10_000, "central", ".0485"),
        (1, 10_000, "local", ".1387"),
        (1, 100_000, "central", ".0477"),
        (1, 100_000, "local", ".0764"),
        (8, 1000, "central", ".0491"),
        (8, 1000, "local", ".0940"),
    ],
)
def test_the_private_histogram_has_the_values_of_its_table(epsilon, users, arm, expected):
    noise = signal_to_noise.histogram_noise(accounting.mu_of(epsilon, DELTA), users, arm)
    critical = signal_to_noise.cell_mass_needed(0.9, users, 1.0, 0.05, noise)
    assert close(critical, expected)
    gap = signal_to_noise.cell_gap(critical, users, 1.0, 0.05)
    assert signal_to_noise.cell_won(np.array([gap]), noise) == pytest.approx(0.9, abs=1e-9)


def test_the_private_histogram_at_ten_percent():
    for arm, expected in [("central", "1.000"), ("local", ".592")]:
        noise = signal_to_noise.histogram_noise(accounting.mu_of(1, DELTA), 1000, arm)
        assert close(
            signal_to_noise.cell_won(np.array([signal_to_noise.cell_gap(0.1, 1000, 1.0, 0.05)]), noise), expected
        )
    assert close(signal_to_noise.cell_mass_needed(0.9, 1000, 1.0, 0.05, 0.0), ".0476")
    assert signal_to_noise.cell_mass_needed(0.9, 10, 0.1, 0.05, 100.0) == math.inf
    assert signal_to_noise.cell_mass_needed(0.9, 1000, 1.0, -0.5, 1.0) == 0


def test_a_cell_is_won_as_often_as_simulated_noise_wins_it():
    gaps, noise, runs = np.array([6.0, 2.0, 3.5]), 4.0, 200_000
    rng = np.random.default_rng(1)
    target, rivals = noise * rng.standard_normal(runs), noise * rng.standard_normal((runs, 3)) - gaps
    share = (target > rivals.max(axis=1)).mean()
    assert abs(signal_to_noise.cell_won(gaps, noise) - share) < SIX_IN_A_MILLION * 0.5 / math.sqrt(runs)
    assert abs(signal_to_noise.cell_won(gaps, noise / 2) - share) > 0.01, "half the noise is caught"
    for gap in (-30.0, 0.0, 2.0, 50.0):
        expected = stats.norm.cdf(gap / (math.sqrt(2) * noise))
        assert signal_to_noise.cell_won(np.array([gap]), noise) == pytest.approx(expected, abs=1e-12)
    assert signal_to_noise.cell_won(np.zeros(4), noise) == pytest.approx(1 / 5, abs=1e-12)
    assert signal_to_noise.cell_won(np.array([1.0, 0.0]), 0.0) == 0
    assert signal_to_noise.cell_won(np.array([1.0, 0.5]), 0.0) == 1


def test_local_noise_of_users_who_noise_their_own_record_adds_up_to_the_histograms():
    users, mu = 50, 2.0
    rng = np.random.default_rng(2)
    each = math.sqrt(2) / mu  # replacing one record moves a one-hot vector by sqrt(2)
    counts = (each * rng.standard_normal((20_000, users))).sum(axis=1)
    expected = signal_to_noise.histogram_noise(mu, users, "local")
    assert counts.std() == pytest.approx(expected, rel=SIX_IN_A_MILLION / math.sqrt(40_000))


AUC = {1: (".760", ".638", ".556", ".528"), 10: (".987", ".868", ".673", ".588"), 100: ("1.00", "1.00", ".921", ".760")}


@pytest.mark.parametrize("reports", AUC)
def test_detection_has_the_values_of_its_grid(reports):
    for noise, expected in zip((1, 2, 5, 10), AUC[reports], strict=True):
        assert close(detection.direction_auc(1.0, noise, reports), expected)


def test_detection_is_as_good_as_a_simulated_server():
    rng, pairs, reports, noise = np.random.default_rng(3), 50_000, 10, 5.0
    member, other = 1 + noise * rng.standard_normal((pairs, reports)), noise * rng.standard_normal((pairs, reports))
    area = (member.sum(axis=1) > other.sum(axis=1)).mean()
    assert area == pytest.approx(
        detection.direction_auc(1.0, noise, reports), abs=SIX_IN_A_MILLION * 0.5 / math.sqrt(pairs)
    )
    d, sigma = 400, 0.3
    reports_of = np.eye(1, d) + sigma * rng.standard_normal((200, d))
    unit = reports_of / np.linalg.norm(reports_of, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[np.triu_indices(200, 1)].mean()
    assert cosine * math.sqrt(d) == pytest.approx(detection.cosine_score(1.0, d, sigma), rel=0.03)


def test_the_top_singular_value_shows_members_above_the_threshold_only():
    rng, n, d, sigma = np.random.default_rng(4), 300, 400, 1.0
    critical = detection.spectral_members(n, d, sigma, 4.0)
    assert critical == pytest.approx(math.sqrt(n * d) / 16)
    noise = sigma * rng.standard_normal((n, d))

    def overlap(k: int) -> float:
        reports = noise.copy()
        reports[:k, 0] += 4.0
        return float(abs(np.linalg.svd(reports, full_matrices=False)[2][0, 0]))

    assert overlap(round(3 * critical)) > 0.7
    assert overlap(round(critical / 3)) < 0.3


def test_an_audit_with_exact_limits_contradicts_no_true_guarantee():
    rng, mu, trials, failure = np.random.default_rng(5), 1.0, 400, 0.01
    epsilon = ceilings.epsilon_of_mu(mu, DELTA)
    broken, broken_half, stronger = 0, 0, 0
    for _ in range(400):
        positives = int((rng.standard_normal(trials) > 1.2).sum())
        negatives = int((mu + rng.standard_normal(trials) <= 1.2).sum())
        rates = [detection.rate_limit(errors, trials, failure / 2) for errors in (positives, negatives)]
        broken += detection.audited_mu(*rates) > mu
        broken_half += detection.audited_mu(*rates) > mu / 2
        stronger += detection.audited_epsilon(*rates, DELTA) > epsilon
    assert broken <= stats.binom.ppf(1 - 1e-6, 400, failure)
    assert stronger == 0
    assert broken_half > 300, "a guarantee twice too strong is caught"
    assert detection.rate_limit(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert detection.rate_limit(100, 100, 0.05) == 1


def test_leverage_has_its_oracle_values():
    assert leverage.contribution_power(0.7, 1.0, 0.5) == pytest.approx(0.4)
    assert leverage.contribution_power(0.7, 0.9, 0.5) == pytest.approx(0.5)
    assert leverage.strike_power(0.9, 1.0, 0.5) == pytest.approx(0.2)
    assert close(leverage.gap_lost(0.77393, 0.76687, 0.77393 - 0.0140488), ".5025")
    for b, strike, given_ in [(0.31, ".0369", ".8572"), (0.095, ".0628", ".7792"), (0.7, ".0118", ".9452")]:
        assert close(leverage.power_law_strike(0.7, 0.01, b), strike)
        assert close(leverage.power_law_contribution(0.3, 0.01, b), given_)
    # ratios of effects on similar and other users, ML-1M
    assert leverage.similar_user_ratio(-4.24, -1.0) == 4.24


def test_leverage_of_published_accuracies_is_the_published_leverage():
    accuracy = {0.01: 0.0997, 0.05: 0.567, 0.1: 0.737, 0.2: 0.836, 0.5: 0.906}
    best = accuracy[0.01] + (accuracy[0.2] - accuracy[0.01]) / 0.881  # the only number that is not published
    power = {share: leverage.contribution_power(score, best, accuracy[0.01]) for share, score in accuracy.items()}
    smallest = {wanted: min(s for s, p in power.items() if p >= wanted) for wanted in (0.5, 0.6, 0.7, 0.8)}
    assert smallest == {0.5: 0.05, 0.6: 0.1, 0.7: 0.1, 0.8: 0.2}
    assert power[0.2] < 0.9 < power[0.5]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0.01, 1), st.floats(0.001, 0.01), st.floats(0.01, 2), st.floats(0.1, 10), st.floats(0, 3))
def test_leverage_of_a_power_law_is_that_of_its_losses(held, least, exponent, scale, limit):
    def score(share: float) -> float:
        return -leverage.power_law_loss(share * 100, scale, exponent, limit)

    worst, best = score(least), score(1.0)
    assert leverage.power_law_strike(held, least, exponent) == pytest.approx(
        leverage.strike_power(score(held), best, worst), abs=1e-8
    )
    assert leverage.power_law_contribution(held, least, exponent) == pytest.approx(
        leverage.contribution_power(score(held), best, worst), abs=1e-8
    )
    assert leverage.power_law_strike(1.0, least, exponent) == 0
    assert leverage.power_law_contribution(least, least, exponent) == 0


def uniform(c: float) -> float:
    return min(1.0, max(0.0, c))


def curve(tip: float) -> tuple[np.ndarray, np.ndarray]:
    """A measured curve: nothing until `tip`, everything 0.1 later."""
    return np.array([0.0, tip, tip + 0.1, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])


def test_equilibria_are_those_found_by_hand():
    game = Game(*curve(0.4), costs=uniform)  # joining = S: 0 until .4, then 10 (alpha - .4), then 1
    assert [(e.alpha, e.stable) for e in game.equilibria()] == [
        (0.0, True),
        (pytest.approx(4 / 9), False),
        (1.0, True),
    ]
    assert game.standing() == 1.0
    assert game.tipping_mass() == pytest.approx(4 / 9)
    shared = Game(*curve(0.4), costs=uniform, free_riding=0.4)  # joining = .6 S: 6 (alpha - .4), then .6
    assert [(e.alpha, e.stable) for e in shared.equilibria()] == [
        (0.0, True),
        (pytest.approx(0.48), False),
        (pytest.approx(0.6), True),
    ]
    eager = Game(*curve(0.4), costs=uniform, privacy_benefit=0.5)  # .5 join whatever happens, then all
    assert [(e.alpha, e.stable) for e in eager.equilibria()] == [(1.0, True)]
    assert eager.tipping_mass() == 0.0


def test_the_dynamics_end_where_the_game_says():
    grid = np.linspace(0, 1, 41)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        success = np.sort(rng.beta(0.4, 0.4, 41))
        spread = float(rng.uniform(0.03, 0.3))
        game = Game(grid, success, lambda c, s=spread: 0.5 + 0.5 * math.erf((c - 0.45) / s), float(rng.uniform(0, 0.3)))
        found = game.equilibria()
        assert [e.stable for e in found] == [index % 2 == 0 for index in range(len(found))], "stable and not, in turn"
        for start in np.linspace(0.013, 0.987, 9):
            alpha = float(start)
            for _ in range(600):  # everybody answers to the others, half of them at a time
                alpha += 0.5 * (game.joining(alpha) - alpha)
            above = [e for e in found if not e.stable and e.alpha < start]
            expected = found[found.index(above[-1]) + 1] if above else found[0]
            assert alpha == pytest.approx(expected.alpha, abs=1e-4)
            assert (start > game.tipping_mass()) == (expected.alpha == game.standing())


def test_a_step_of_costs_tips_where_all_users_find_it_worthwhile():
    at, success = curve(0.4)
    cost, free_riding = 0.3, 0.25
    wanted = worthwhile_success(cost, free_riding)
    assert wanted == pytest.approx(0.4)
    tip = critical_mass(at, success, wanted)
    assert tip == pytest.approx(0.44)
    game = Game(at, success, lambda c: float(c >= cost), free_riding)
    assert game.tipping_mass() == pytest.approx(tip, abs=1e-9)
    assert worthwhile_success(0.8, 0.25) == math.inf
    assert critical_mass(at, success, 1.5) == math.inf
    assert critical_mass(at, success, 0.0) == 0.0


def test_a_collective_collapses_where_its_upper_equilibrium_vanishes():
    epsilons = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
    at = np.linspace(0, 1, 101)
    wide = lambda c: uniform(c / 0.8)  # noqa: E731
    games = [Game(at, e / (1 + e) * np.clip((at - 0.2) / 0.2, 0, 1), wide) for e in epsilons]
    found = collapse_epsilon(epsilons, games)
    # on the grid of epsilon the height h of the plateau decides: the highest share that joins is min(1, h/.8) >= .4
    heights = epsilons / (1 + epsilons)
    needed = 0.32
    assert all((game.standing() is not None) == (h > needed) for game, h in zip(games, heights, strict=True))
    assert found == 0.0, "1/3 of success is enough already"
    shallow = [Game(at, 0.6 * game.success, wide) for game in games]  # heights .2 .3 .4 .48 .533
    found = collapse_epsilon(epsilons, shallow)
    part = (needed - 0.3) / (0.4 - 0.3)
    assert found == pytest.approx(2.0**part, rel=2e-3)
    assert collapse_epsilon(epsilons, [Game(at, 0.1 * game.success, wide) for game in games]) == math.inf
    for epsilon, there in [(found * 1.02, True), (found * 0.98, False)]:
        height = 0.3 + 0.1 * math.log2(epsilon)
        assert (Game(at, height * np.clip((at - 0.2) / 0.2, 0, 1), wide).standing() is not None) == there


def test_a_step_of_success_stands_if_enough_users_find_it_worthwhile():
    at, height = np.array([0.0, 0.3, 0.3 + 1e-9, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    for free_riding, benefit in itertools.product((0.0, 0.5, 0.69, 0.71, 0.9), (0.0, 0.05)):
        game = Game(at, height, uniform, free_riding, benefit)
        falls = step_collapses(0.3, uniform, free_riding, benefit)
        assert (game.standing(at_least=0.2) is None) == falls
    assert step_collapses(0.3, uniform, 0.71)
    assert not step_collapses(0.3, uniform, 0.69)


@pytest.mark.parametrize("reach", ["central", "local_mean", "local_reports"])
def test_below_its_floor_of_epsilon_no_collective_reaches_what_is_worthwhile(reach):
    base, worthwhile, most, users = 0.1, 0.6, 0.3, 400
    floor = collapse_epsilon_floor(base, worthwhile, most, users, DELTA, reach)
    for epsilon, possible in [(floor * 1.01, True), (floor * 0.99, False)]:
        mu = accounting.mu_of(epsilon, DELTA)
        assert (ceilings.necessary_share(base, worthwhile, mu, users, reach) <= most) == possible
    assert collapse_epsilon_floor(base, worthwhile, most, users, DELTA, reach, moved=2.0) < floor
    assert collapse_epsilon_floor(0.5, 0.4, most, users, DELTA, reach) == 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: signal_to_noise.central_multiplier(1.0, 1.2, 10), "sampling_prob"),
        (lambda: signal_to_noise.local_noise(0.0, 1.0, 10), "mu"),
        (lambda: signal_to_noise.snr(1, 1.0, 0, 1.0), "cohort"),
        (lambda: signal_to_noise.histogram_noise(1.0, 10, "far"), "arm"),
        (lambda: signal_to_noise.cell_won(np.array([math.nan]), 1.0), "gaps"),
        (lambda: signal_to_noise.cell_gap(0.5, 10, 0.5, 1.5), "gap"),
        (lambda: signal_to_noise.cell_mass_needed(1.0, 10, 0.5, 0.5, 1.0), "wanted"),
        (lambda: detection.direction_auc(1.0, 0.0), "noise"),
        (lambda: detection.rate_limit(5, 4, 0.05), "errors"),
        (lambda: detection.audited_mu(0.0, 0.5), "false_positive"),
        (lambda: detection.audited_epsilon(0.5, 0.5, 1.0), "delta"),
        (lambda: leverage.contribution_power(0.7, 0.5, 0.5), "large"),
        (lambda: leverage.gap_lost(0.7, 0.6, 0.7), "item_mean"),
        (lambda: leverage.power_law_strike(0.001, 0.01, 0.3), "remaining"),
        (lambda: leverage.power_law_contribution(0.5, 1.0, 0.3), "least"),
        (lambda: Game(np.array([0.5, 0.2]), np.zeros(2), uniform), "shares"),
        (lambda: Game(np.array([0.2, 0.5]), np.array([0.0, math.nan]), uniform), "success"),
        (lambda: Game(np.array([0.2]), np.zeros(1), uniform, 1.5), "free_riding"),
        (lambda: Game(np.array([0.2]), np.zeros(1), lambda c: 2.0).equilibria(), "costs"),
        (lambda: collapse_epsilon(np.array([2.0, 1.0]), []), "epsilons"),
        (lambda: collapse_epsilon_floor(0.1, 0.9, 0.0, 10, DELTA, "central"), "most"),
        (lambda: worthwhile_success(-1.0, 0.5), "cost"),
    ],
)
def test_wrong_numbers_are_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()
