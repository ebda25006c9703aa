"""How many members it takes: to certify, and to win in expectation, where all frequencies are as they were found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedacdp.theory.certificates import Cells, Terms, allowed, delta_tilde, deviation, margins, needs_both


def members_certified(cells: Cells, terms: Terms) -> np.ndarray:
    """(K,): the smallest collective that certifies each cell if all frequencies stay as they are; inf where none does.

    Found by bisection. For Hoeffding the margin grows with n wherever mass + resistance >= 0, which an idempotent
    signal ensures; otherwise, and for Bernstein, a smaller size might do now and then.
    """
    low, high = allowed(cells, terms)
    if low > high:
        return np.full(len(cells.mass), np.inf)
    found = first(lambda n: margins(cells, terms, n) > 0, low, high, len(cells.mass))
    return np.maximum(found, found[cells.anchor]) if needs_both(cells, terms) else found


def members_needed(cells: Cells, terms: Terms, wanted: float) -> int | None:
    """The smallest collective whose certified success is above 0 and at least `wanted`, if all frequencies stay as they
    are; None if not even the largest will do."""
    low, high = allowed(cells, terms)
    if low > high:
        return None
    level, thresholds = delta_tilde(cells, terms), members_certified(cells, terms)
    order = np.argsort(thresholds)
    sums = np.concatenate([[0.0], np.cumsum(cells.outer[order])])

    def enough(n: np.ndarray) -> np.ndarray:
        reached = sums[np.searchsorted(thresholds[order], n, side="right")]
        success = reached - deviation(n, level) - deviation(terms.test_size, level)
        return (success >= wanted) & (success > 0)

    [found] = first(enough, low, high, 1)
    return None if np.isinf(found) else int(found)


def first(holds: Callable[[np.ndarray], np.ndarray], low: int, high: int, count: int) -> np.ndarray:
    """(count,): the smallest whole numbers from low to high for which `holds`, monotone, is true; inf if none."""
    below, above = np.full(count, low - 1), np.full(count, high)
    never = ~holds(above)
    while (above - below > 1).any():
        middle = np.maximum((below + above) // 2, low)
        true = holds(middle)
        below, above = np.where(true, below, middle), np.where(true, middle, above)
    return np.where(never, np.inf, above)


def members_expected(cells: Cells, platform_size: int) -> np.ndarray:
    """(K,): the smallest n for which the expected count of the own label beats every rival's in each cell,

        (n - n_e) mass > (N - n) resistance,

    0 where it does so without a collective, inf where not even all N suffice. Derived; estimators do not act.
    """
    mass, gap, whole = cells.mass, cells.resistance, platform_size
    both = mass + gap
    at = (whole * gap + cells.estimators * mass) / np.where(both > 0, both, 1)
    # A count that is whole but for rounding is whole: beating it takes one more.
    at = np.where(np.abs(at - np.round(at)) < 1e-9 * np.maximum(np.abs(at), 1), np.round(at), np.floor(at)) + 1
    found = np.where(gap < 0, 0, np.where(mass > 0, at, np.inf))
    return np.where(found <= whole, found, np.inf)
