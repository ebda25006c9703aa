"""Certified beside true success on one population, for many sizes of the collective at once.

The setting of the experiments of Gauthier, Bach and Jordan 2025 (arXiv 2502.04879): N records, the first n of them the
members', a platform that predicts the most frequent label of a cell, and fresh records that carry the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedacdp.theory.certificates import Terms, certified, feature_label
from fedacdp.theory.private_histogram import predictions

FIGURE_1 = (*range(1_000, 181_000, 20_000), 200_000, 300_000, 400_000, 500_000)
"""Sizes of the collective in the paper's Figure 1: 13, which with four target labels are 52 points."""


@dataclass(frozen=True)
class Point:
    """One size and one target: the certificate of Theorem 3.3, and the share of test records that show the target."""

    members: int
    target: int
    certified: float
    success: float


def planting(
    natural: np.ndarray,
    planted: np.ndarray,
    y: np.ndarray,
    shape: tuple[int, int],
    test: np.ndarray,
    sizes: Sequence[int] = FIGURE_1,
    delta: float = 0.05,
) -> list[Point]:
    """Feature-label planting of every label by collectives of every size, each the first records of the N.

    natural (N,): the cell of x, K if it is no signal cell; planted (N,): the cell of g(x); y (N,): labels; shape is
    (K, Y); test (N_test,): cells of g(x) of fresh records. Each record is looked at once: counts are cut at the sizes
    and added up. ValueError if a size is not within 1 and N.
    """
    (cells, labels), order = shape, sorted(sizes)
    if not 1 <= order[0] <= order[-1] <= len(y):
        raise ValueError(f"sizes = {order[0]} to {order[-1]}: must lie within 1 and the {len(y)} records")
    terms, arriving = Terms(len(y), len(test), delta), np.bincount(test, minlength=cells) / len(test)
    as_they_are, moved = (_counts(at, y, (cells + 1, labels), order)[:, :cells] for at in (natural, planted))
    points = []
    for place, n in enumerate(order):
        mine, theirs = as_they_are[place], as_they_are[-1] - as_they_are[place]
        for target in range(labels):
            table = theirs.copy()
            table[:, target] += moved[place].sum(axis=1)
            success = arriving[predictions(table) == target].sum()
            bound = certified(feature_label(mine, moved[place], target), terms, n)
            points.append(Point(n, target, bound, float(success)))
    return points


def _counts(cell: np.ndarray, y: np.ndarray, shape: tuple[int, int], ends: list[int]) -> np.ndarray:
    """(len(ends) + 1, *shape): how many of the first records, up to each end and of all, are in each cell and label."""
    codes = cell.astype(np.int64) * shape[1] + y
    parts = [np.bincount(part, minlength=shape[0] * shape[1]) for part in np.split(codes, ends)]
    return np.cumsum(parts, axis=0).reshape(-1, *shape)
