"""Floors are never above the exact success, effective sizes are those of the mixture, and shapes have their limits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedacdp.theory import effective_size, floors

UNIT = st.just(0.0) | st.floats(1e-6, 1)
RATE = st.just(0.0) | st.floats(1e-3, 0.3)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (floors.feature_label(0.1, 1, 0.01), 0.91),
        (floors.feature_label_mass(0.9, 1, 0.01), 1 / 11),
        (floors.feature_only(0.2, 0.1, 0.001), 0.955),
        (floors.feature_only_x0(0.2, 0.1, 1, 0.001), 0.96),
        (floors.erasing(0.5, 0.05), 0.9),
        (floors.neutralising_mass(0.1, 1), 1 / 11),
        (effective_size.upweighted_share(0.01, 5, 0.9, 0.1), 0.046 / (0.046 + 0.99 * 1.4)),
    ],
)
def test_closed_forms_have_their_values(found, expected):
    assert found == pytest.approx(expected, abs=1e-12)


def test_contraction_has_its_oracle_values():
    assert floors.noise_growth(0.3, 0.1, 200) == pytest.approx(0.411344, abs=5e-7)
    assert floors.norm_bound(50, 0.05) == pytest.approx(9.518815, abs=5e-7)
    free = floors.redirecting(1.0, 0.3, 0.1, 200)
    assert free - floors.contraction(1.0, 0.3, 0.1, 200, 0.5, 50, 0.05) == pytest.approx(1.957754, abs=1e-6)
    assert floors.contraction(1.0, 0.3, 0.1, 200, 0.0, 50, 0.05) == free == -(0.97**200)
    assert effective_size.upweighted_share(0.01, 5, 0.9, 0.1) == pytest.approx(0.0321, abs=5e-5)


class Population:
    """A random table P0 (X, Y) and signal map, and the success of the exact frequency classifier by plain loops."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.cells, self.labels = int(rng.integers(3, 8)), int(rng.integers(2, 5))
        weights = rng.dirichlet(np.full(self.cells * self.labels, rng.choice([0.3, 1.0, 5.0, 20.0])))
        self.table = weights.reshape(self.cells, self.labels)
        self.signal = np.sort(rng.choice(self.cells - 1, int(rng.integers(1, self.cells - 1)), replace=False))
        self.g = rng.choice(self.signal, self.cells)
        self.g[self.signal] = self.signal  # g(g(x)) = g(x)
        self.x0, self.target = self.cells - 1, int(rng.integers(self.labels))
        self.alpha = float(rng.uniform(0.02, 0.98)) if seed % 2 else float(rng.uniform(0.02, 0.2))

    def rate(self, x: int, y: int) -> float:
        return float(self.table[x, y] / self.table[x].sum())

    @property
    def gap(self) -> float:
        rivals = [y for y in range(self.labels) if y != self.target]
        return max(0.0, *(self.rate(x, y) - self.rate(x, self.target) for x in self.signal for y in rivals))

    @property
    def mass(self) -> float:
        return float(self.table[self.signal].sum())

    @property
    def target_rate(self) -> float:
        return min(self.rate(x, self.target) for x in range(self.cells))

    @property
    def spread(self) -> float:
        return sum(
            float(self.table[x].sum()) * max(abs(self.rate(x, y) - self.rate(self.g[x], y)) for y in range(self.labels))
            for x in range(self.cells)
        )

    def mixture(self, form: str) -> np.ndarray:
        """What the platform sees when members play."""
        played = np.zeros_like(self.table)
        for x in range(self.cells):
            for y in range(self.labels):
                to = {
                    "feature_label": (self.g[x], self.target),
                    "feature_only": (self.g[x], y) if y == self.target else (x, y),
                    "feature_only_x0": (self.g[x], y) if y == self.target else (self.x0, y),
                    "erasing": (x, int(self.table[self.g[x]].argmax())),
                }[form]
                played[to] += self.table[x, y]
        return self.alpha * played + (1 - self.alpha) * self.table

    def planted(self, seen: np.ndarray) -> float:
        """Pr[f(g(x)) = y*], ties lost."""
        others = np.delete(seen, self.target, axis=1).max(axis=1)
        won = seen[:, self.target] > others + 1e-15
        return sum(float(self.table[x].sum()) for x in range(self.cells) if won[self.g[x]])

    def erased(self, seen: np.ndarray) -> float:
        guess = seen.argmax(axis=1)
        return sum(float(self.table[x].sum()) for x in range(self.cells) if guess[self.g[x]] == guess[x])


POPULATIONS = [Population(seed) for seed in range(600)]
FLOORS = {
    "feature_label": lambda p: floors.feature_label(p.alpha, p.gap, p.mass),
    "feature_only": lambda p: floors.feature_only(p.alpha, p.target_rate, p.mass),
    "feature_only_x0": lambda p: floors.feature_only_x0(p.alpha, p.target_rate, p.gap, p.mass),
    "erasing": lambda p: floors.erasing(p.alpha, p.spread),
}


def success(population: Population, form: str) -> float:
    seen = population.mixture(form)
    return population.erased(seen) if form == "erasing" else population.planted(seen)


@pytest.mark.parametrize("form", FLOORS)
def test_no_floor_is_above_the_exact_success(form):
    found = [(FLOORS[form](p), success(p, form)) for p in POPULATIONS]
    assert all(floor <= true + 1e-12 for floor, true in found)
    assert sum(0 < floor < 1 for floor, _ in found) > 25, "the floors must say something"


def test_a_floor_with_half_the_rivals_is_caught():
    found = [(1 - (1 - p.alpha) / p.alpha * p.gap * p.mass / 2, success(p, "feature_label")) for p in POPULATIONS]
    assert any(floor > true + 1e-12 for floor, true in found)


def test_a_suboptimal_learner_cannot_undercut_its_floor():
    undercut = 0
    for seed, p in enumerate(POPULATIONS):
        seen, budget = p.mixture("feature_label"), 0.05 * (seed % 4)
        margins = {x: seen[x, p.target] - np.delete(seen[x], p.target).max() for x in p.signal}
        left, lost = budget, 0.0
        for x in sorted(margins, key=lambda x: margins[x]):  # flipping a cell costs half its margin
            cost = max(0.0, margins[x]) / 2
            if cost <= left:
                left -= cost
                lost += sum(float(p.table[z].sum()) for z in range(p.cells) if p.g[z] == x)
        true = 1 - lost
        assert floors.feature_label(p.alpha, p.gap, p.mass, budget) <= true + 1e-12
        undercut += floors.feature_label(p.alpha, p.gap, p.mass) > true + 1e-12
    assert undercut > 0, "the floor without suboptimality must fail here"


def test_a_learner_that_is_suboptimal_at_each_point_cannot_undercut_its_floor():
    undercut = 0
    for seed, p in enumerate(POPULATIONS):
        seen, e = p.mixture("feature_label"), 0.04 * (seed % 5)
        kept = 0.0
        for z in range(p.cells):
            row = seen[p.g[z]] / seen[p.g[z]].sum()
            kept += float(p.table[z].sum()) * (row[p.target] - np.delete(row, p.target).max() > 2 * e + 1e-15)
        assert floors.feature_label(p.alpha, p.gap, p.mass, e, "cell") <= kept + 1e-12
        undercut += floors.feature_label(p.alpha, p.gap, p.mass) > kept + 1e-12
    assert undercut > 0


def test_members_off_script_cannot_undercut_their_floor():
    said = 0
    for seed, p in enumerate(POPULATIONS):
        rng = np.random.default_rng(seed)
        off = float(rng.uniform(0, 0.5))
        split = off * rng.dirichlet(np.ones(p.labels - 1))  # all of them plant wrong labels
        seen = (1 - p.alpha) * p.table
        for z in range(p.cells):
            mass = p.alpha * float(p.table[z].sum())
            seen[p.g[z], p.target] += (1 - off) * mass
            seen[p.g[z], [y for y in range(p.labels) if y != p.target]] += split * mass
        floor = floors.off_script(p.alpha, p.gap, p.mass, off, float(split.max()))
        assert floor <= p.planted(seen) + 1e-12
        said += 0 < floor < 1
    assert said > 25


@settings(max_examples=200, deadline=None, derandomize=True)
@given(UNIT, UNIT, st.floats(0.01, 0.99), RATE, st.floats(0, 0.02, allow_subnormal=False))
def test_a_floor_reaches_what_is_wanted_at_its_critical_mass(gap, mass, wanted, target_rate, e):
    pairs = [
        (floors.feature_label_mass(wanted, gap, mass, e), lambda a: floors.feature_label(a, gap, mass, e)),
        (floors.feature_label_mass(wanted, gap, mass, e, "cell"),
         lambda a: floors.feature_label(a, gap, mass, e, "cell")),
        (floors.feature_only_mass(wanted, target_rate, mass), lambda a: floors.feature_only(a, target_rate, mass)),
        (floors.feature_only_x0_mass(wanted, target_rate, gap, mass),
         lambda a: floors.feature_only_x0(a, target_rate, gap, mass)),
        (floors.erasing_mass(wanted, mass), lambda a: floors.erasing(a, mass)),
    ]  # fmt: skip
    for critical, floor in pairs:
        if math.isinf(critical):
            assert floor(1.0) < wanted + 1e-9
        else:
            assert floor(min(1.0, critical * (1 + 1e-9) + 1e-12)) >= wanted - 1e-6
            assert floor(critical * 0.999) <= wanted
        values = [floor(alpha) for alpha in np.linspace(0, 1, 21)]
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
        assert values[0] == 0
        assert max(values) <= 1


def test_simulated_contraction_keeps_its_floor_and_half_the_noise_would_not():
    distance, rate, lr, rounds, noise, dimension, failure = 3.0, 2.0, 0.1, 60, 0.4, 20, 0.05
    rng, runs = np.random.default_rng(1), 4000
    theta = np.zeros((runs, dimension))
    theta[:, 0] = distance
    for _ in range(rounds):
        theta = theta - lr * rate * theta + lr * noise * rng.standard_normal(theta.shape)
    ends = -np.linalg.norm(theta, axis=1)
    broken = (ends < floors.contraction(distance, rate, lr, rounds, noise, dimension, failure)).mean()
    assert broken <= failure + 4.9 * math.sqrt(failure * (1 - failure) / runs)
    assert (ends < floors.contraction(distance, rate, lr, rounds, noise / 2, dimension, failure)).mean() > 0.9
    # the noise alone, per coordinate, is what f1 says
    spread = theta[:, 1:].std() / noise
    assert spread == pytest.approx(floors.noise_growth(rate, lr, rounds), rel=4.9 / math.sqrt(2 * runs * 19))


def test_noise_of_a_pull_too_small_to_be_seen_is_that_of_a_random_walk():
    for rate in (1e-300, 1e-17, 1e-12):
        assert floors.noise_growth(rate, 0.1, 50) == pytest.approx(0.1 * math.sqrt(50), rel=1e-9)


def test_clipped_gradients_reach_what_is_said_and_no_more():
    rng = np.random.default_rng(2)
    base = rng.standard_normal(5)
    base *= 0.3 / np.linalg.norm(base)
    critical = floors.neutralising_mass(0.3, 1.0)
    for alpha, there in [(critical * 1.001, True), (critical * 0.999, False)]:
        needed = -(1 - alpha) / alpha * base
        assert (np.linalg.norm(needed) <= 1.0) == there
        assert (floors.feasible_rate(alpha, 0.3, 1.0, 2.0) > 0) == there
    far, alpha = rng.standard_normal(5), 0.5
    rate = floors.feasible_rate(alpha, 0.3, 1.0, float(np.linalg.norm(far)))
    pull = -(1 - alpha) / alpha * base + rate / alpha * far
    assert np.linalg.norm(pull) <= 1 + 1e-12


def test_weights_that_are_constant_in_a_group_make_the_same_mixture():
    p = Population(3)
    users, members, w = 40, 10, 3.0
    weights = np.where(np.arange(users) < members, w, 1.0)
    share = effective_size.weight_share(weights, np.arange(users) < members)
    assert share == pytest.approx(30 / 60)
    p.alpha = share
    seen = p.mixture("feature_label")
    p.alpha = 1.0  # members alone
    by_hand = (members * w * p.mixture("feature_label") + (users - members) * p.table) / weights.sum()
    np.testing.assert_allclose(seen, by_hand, atol=1e-12)


def test_clipping_lowers_the_weight_of_long_updates_only():
    found = effective_size.clipped_weights(np.array([2.0, 1.0, 1.0]), np.array([4.0, 0.5, 0.0]), 1.0)
    np.testing.assert_allclose(found, [0.5, 1.0, 1.0])


def test_members_of_a_cohort_are_distributed_as_said():
    rng = np.random.default_rng(3)
    drawn = np.array([(rng.permutation(50)[:20] < 15).sum() for _ in range(4000)])
    mean, deviation = effective_size.drawn_members(15, 50, 20)
    assert abs(drawn.mean() - mean) < 4.9 * deviation / math.sqrt(len(drawn))
    assert drawn.std() == pytest.approx(deviation, rel=4.9 / math.sqrt(2 * len(drawn)))
    mean, deviation = effective_size.sampled_members(15, 0.4)
    sampled = (rng.random((4000, 15)) < 0.4).sum(axis=1)
    assert abs(sampled.mean() - mean) < 4.9 * deviation / math.sqrt(len(sampled))
    assert sampled.std() == pytest.approx(deviation, rel=4.9 / math.sqrt(2 * len(sampled)))
    assert effective_size.drawn_members(15, 50, 50) == (15, 0)


def test_groups_with_equal_budgets_have_their_share_of_influence():
    r = np.array([0.1, 0.9])
    same = np.array([2.0, 2.0])
    for share in (effective_size.scaled_group_share, effective_size.precision_weighted_share):
        assert share(r, same, 0) == pytest.approx(0.1)
        assert share(r, np.array([1.0, 2.0]), 0) > 0.1, "less noise, more influence"
    assert effective_size.sampled_group_share(r, np.array([0.3, 0.1]), 0) == pytest.approx(0.03 / 0.12)
    assert effective_size.scaled_group_share(r, np.array([1.0, 2.0]), 0) == pytest.approx(0.1 / 0.55)
    assert effective_size.precision_weighted_share(r, np.array([1.0, 2.0]), 0) == pytest.approx(0.1 / 0.325)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: floors.feature_label(1.5, 0.1, 0.1), "alpha"),
        (lambda: floors.feature_label(0.5, math.nan, 0.1), "gap"),
        (lambda: floors.feature_label(0.5, 0.1, 0.1, 0.6, "cell"), "suboptimality"),
        (lambda: floors.feature_label(0.5, 0.1, 0.1, 0.1, "row"), "budget"),
        (lambda: floors.feature_only_mass(-0.1, 0.1, 0.1), "wanted"),
        (lambda: floors.off_script(0.5, 0.1, 0.1, 0.1, 0.2), "rival"),
        (lambda: floors.redirecting(1.0, 11.0, 0.1, 5), "rate"),
        (lambda: floors.contraction(1.0, 1.0, 0.1, 5, 1.0, 3, 1.0), "failure"),
        (lambda: floors.noise_growth(1.0, 0.1, 0), "rounds"),
        (lambda: effective_size.weight_share(np.zeros(2), np.ones(2, bool)), "weights"),
        (lambda: effective_size.weight_share(np.ones(2), np.ones(3, bool)), "member"),
        (lambda: effective_size.drawn_members(5, 4, 2), "members"),
        (lambda: effective_size.sampled_group_share(np.array([0.5, 0.4]), np.ones(2), 0), "shares_of_users"),
        (lambda: effective_size.scaled_group_share(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 0), "noise_multipliers"),
    ],
)
def test_wrong_numbers_are_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()
