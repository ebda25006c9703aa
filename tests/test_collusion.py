"""Figures 1 to 3 of Statistical Collusion count as a plain loop does and step at the thresholds of the population."""

from __future__ import annotations

import numpy as np
import pytest

from fedacdp.data import car_population as car
from fedacdp.keys import Key
from fedacdp.theory import certificates as ct
from fedacdp.theory.collusion import adaptive_unplanting, best, naive_unplanting, planting
from fedacdp.theory.thresholds import members_expected

N = 1_000_000
SHAPE = (car.COUNTRIES, 4)
GOOD, AVERAGE, POOR, EXCELLENT = range(4)
FEW = 2_000  # estimators, as in the paper


def drawn(rows, seed):
    cars = car.draw(rows, Key(seed))
    return cars.natural, cars.planted, cars.y, SHAPE, car.draw(rows // 10, Key(seed).fold("test")).planted


# A plain loop


def slow(population, platform, n, sends, hits):
    """The share of test records with a prediction among `hits` as a loop counts it; a member whose g(x) lies in cell c
    and whose label is y sends sends[c][y] there, nothing if that is -1."""
    natural, planted, y, _, test = population
    table = np.zeros(SHAPE)
    for row in range(platform):
        if row >= n:
            if natural[row] < car.COUNTRIES:
                table[natural[row], y[row]] += 1
        elif sends[planted[row]][y[row]] >= 0:
            table[planted[row], sends[planted[row]][y[row]]] += 1
    return np.mean([table[g].tolist().index(table[g].max()) in hits for g in test])


def tables(population, first, last):
    """The natural and the planted counts of some of the records."""
    natural, planted, y, _, _ = population
    found = np.zeros((2, *SHAPE))
    for row in range(first, last):
        found[1, planted[row], y[row]] += 1
        if natural[row] < car.COUNTRIES:
            found[0, natural[row], y[row]] += 1
    return found


SIZES, PLATFORMS = [40, 300, 900, 700], [3_000, 900, 2_500, 700]


@pytest.mark.parametrize("form", ["feature_label", "feature_only"])
def test_planting_in_both_forms_and_on_platforms_of_any_size_counts_as_a_loop_does(form):
    population, seen = drawn(3_000, 2), set()
    points = planting(*population, sizes=SIZES, platforms=PLATFORMS, delta=0.1, form=form)
    assert [(p.members, p.platform) for p in points[::4]] == sorted(zip(SIZES, PLATFORMS, strict=True))
    for point in points:
        target = point.target
        sends = np.full(SHAPE, target if form == "feature_label" else -1)
        sends[:, target] = target
        success = slow(population, point.platform, point.members, sends, {target})
        cells = getattr(ct, form)(*tables(population, 0, point.members), target)
        assert point.success == pytest.approx(success, abs=1e-12)
        assert point.certified == ct.certified(cells, ct.Terms(point.platform, 300, 0.1), point.members)
        seen.add(round(point.success, 3))
    assert len(seen) >= 4, "successes that are all alike show nothing"


@pytest.mark.parametrize("unwanted", [GOOD, EXCELLENT])
def test_naive_unplanting_counts_as_a_loop_does_for_each_label_and_the_best_is_the_one_that_certifies_most(unwanted):
    population = drawn(3_000, 3)
    points = naive_unplanting(*population, unwanted, sizes=SIZES, platforms=PLATFORMS, delta=0.1)
    assert len(points) == 3 * len(SIZES)
    for point in points:
        success = slow(population, point.platform, point.members, np.full(SHAPE, point.label), {*range(4)} - {unwanted})
        assert point.success == pytest.approx(success, abs=1e-12)
        ways = ct.naive_unplanting(*tables(population, 0, point.members), unwanted)
        cells = ways[[label for label in range(4) if label != unwanted].index(point.label)]
        assert point.certified == ct.certified(cells, ct.Terms(point.platform, 300, 0.1), point.members)
    chosen = best(points)
    assert len(chosen) == len(SIZES)
    for point in chosen:
        alike = [p for p in points if (p.members, p.platform) == (point.members, point.platform)]
        assert point.certified == max(p.certified for p in alike)


def test_adaptive_unplanting_counts_as_a_loop_does():
    natural, planted, _, *rest = drawn(3_000, 4)
    population, few = (natural, planted, np.random.default_rng(0).integers(0, 4, 3_000), *rest), 250
    points = adaptive_unplanting(*population, EXCELLENT, few, [251, 900, 700], 0.1, [3_000, 2_500, 700])
    labels = set()
    for point in points:
        asked = tables(population, 0, few)[0]
        asked[:, EXCELLENT] = -1
        label = asked.argmax(axis=1)
        labels |= set(label)
        sends = np.repeat(label[:, None], 4, axis=1)
        success = slow(population, point.platform, point.members, sends, {GOOD, AVERAGE, POOR})
        assert point.success == pytest.approx(success, abs=1e-12)
        executing = tables(population, few, point.members)[0]
        planted = tables(population, 0, point.members)[1]
        cells, _ = ct.unplanting(tables(population, 0, few)[0], executing, planted, few, EXCELLENT)
        assert point.certified == ct.certified(cells, ct.Terms(point.platform, 300, 0.1), point.members)
    assert len(labels) > 1
    with pytest.raises(ValueError, match="sizes = 250"):
        adaptive_unplanting(*population, EXCELLENT, few, [few])
    with pytest.raises(ValueError, match="platforms = 3001"):
        planting(*population, sizes=[5], platforms=[3_001])


# The thresholds of the population


def even():
    """A million records whose first n have, for every n, the frequencies of the population up to a few records: record
    i is of the kind at which the cumulated probabilities pass the fraction of i times the golden ratio."""
    natural, planted = car.probabilities()
    kinds = np.concatenate([natural.ravel(), (planted - natural).ravel(), [1 - planted.sum()]])
    point = (np.arange(1, N + 1) * ((5**0.5 - 1) / 2)) % 1
    kind = np.minimum(np.searchsorted(np.cumsum(kinds), point, side="right"), 39)
    cell, y = np.divmod(kind % 20, 4)
    test = np.repeat(np.arange(5), np.rint(1e5 * planted.sum(axis=1)).astype(int))
    return np.where(kind < 20, cell, car.COUNTRIES), cell, y, SHAPE, test


EVEN = even()
MASS = np.array([0.173] * 4 + [0.308])
CELLS = {"C2": [1], "C1, C3, C4": [0, 2, 3], "C5": [4]}


def steps(points, value):
    return {point.members: value(point) for point in points}


def around(thresholds):
    """2 % below and above each threshold, and what is certified or won there: the mass of the cells whose threshold
    has been passed."""
    sizes = [max(1, round(off * n)) for n in thresholds.values() for off in (0.98, 1.02) if n]
    masses = {name: MASS[cells].sum() for name, cells in CELLS.items()}
    return {n: sum(masses[name] for name, at in thresholds.items() if at <= n) for n in sizes}


CERTIFIED = {
    "E, feature-label": (80_882, 80_292, 41_245),
    "G, feature-label": (114_035, 103_403, 82_596),
    "E, feature-only": (145_727, 149_626, 64_443),
    "unplanting E": (100_907, 101_527, 81_476),
}


def figure(goal, sizes):
    if goal == "unplanting E":
        return adaptive_unplanting(*EVEN, EXCELLENT, FEW, sizes)
    target = EXCELLENT if goal.startswith("E") else GOOD
    form = "feature_only" if "only" in goal else "feature_label"
    return [point for point in planting(*EVEN, sizes=sizes, form=form) if point.target == target]


@pytest.mark.parametrize("goal", CERTIFIED)
def test_cells_are_certified_within_2_percent_of_the_derived_sizes(goal):
    expected = around(dict(zip(CELLS, CERTIFIED[goal], strict=True)))
    level = 0.05 / (32 if goal == "unplanting E" else 52)
    lost = {n: ct.deviation(n, level) + ct.deviation(100_000, level) for n in expected}
    found = steps(figure(goal, list(expected)), lambda point: point.certified)
    assert {n: found[n] + lost[n] for n in expected} == pytest.approx(expected, abs=0.002)


def test_cells_are_truly_won_within_2_percent_of_the_derived_sizes():
    expected = around(dict(zip(CELLS, (32_700, 17_529, 30_535), strict=True)))
    assert steps(figure("G, feature-label", list(expected)), lambda p: p.success) == pytest.approx(expected, abs=0.002)
    for goal in ("E, feature-label", "E, feature-only"):
        assert [point.success for point in figure(goal, [1_000, 100_000])] == [1, 1]


def test_unplanting_is_truly_won_where_all_members_act_a_little_before_the_derived_sizes():
    """The derived sizes have estimators who do not act: (n - n_e) mass > (N - n) gap. Here all n act."""
    natural, planted = car.probabilities()
    cells, _ = ct.unplanting(natural, natural / 2, planted, 0.5, EXCELLENT)
    found = members_expected(cells, N)[[1, 0, 4]]
    gap = np.array([18_589, 19_494, 32_473])
    share = MASS[[1, 0, 4]] * (gap - FEW) / (N - gap)
    np.testing.assert_allclose(found, N * share / (MASS[[1, 0, 4]] + share), rtol=1e-3)
    expected = around(dict(zip(CELLS, found, strict=True)))
    assert steps(figure("unplanting E", list(expected)), lambda p: p.success) == pytest.approx(expected, abs=0.002)
