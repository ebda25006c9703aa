"""Certified beside true success on one population, for many sizes of the collective, or of the platform, at once.

The setting of the experiments of Gauthier, Bach and Jordan 2025 (arXiv 2502.04879): N records, the first n of them the
members', a platform that predicts the most frequent label of a cell, and fresh records that carry the signal.

Records come as arrays: natural (N,) the cell of x, K if it is no signal cell; planted (N,) the cell of g(x); y (N,)
labels; shape is (K, Y); test (N_test,) the cells of g(x) of fresh records. Each record is looked at once: counts are
cut at the sizes and added up. `platforms`, as many as `sizes`, are the platforms of these collectives, each the first
records; default all N. ValueError if a size is not within 1 and its platform, or a platform is larger than N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from fedacdp.theory import certificates
from fedacdp.theory.certificates import Terms, certified
from fedacdp.theory.private_histogram import predictions

FIGURE_1 = (*range(1_000, 181_000, 20_000), 200_000, 300_000, 400_000, 500_000)
"""Sizes of the collective in the paper's Figure 1: 13, which with four target labels are 52 points."""


@dataclass(frozen=True)
class Point:
    """One size: the certificate, and the share of test records whose prediction is the target, or is not where that is
    to be unplanted. `label` is what all members send, None where it differs from cell to cell."""

    members: int
    target: int
    certified: float
    success: float
    platform: int
    label: int | None


def planting(
    natural: np.ndarray,
    planted: np.ndarray,
    y: np.ndarray,
    shape: tuple[int, int],
    test: np.ndarray,
    sizes: Sequence[int] = FIGURE_1,
    delta: float = 0.05,
    platforms: Sequence[int] | None = None,
    form: Literal["feature_label", "feature_only"] = "feature_label",
) -> list[Point]:
    """Planting of every label by collectives of every size, with Theorem 3.3, or `feature_only` in the form with x0,
    outside the signal cells, with Theorem 3.5."""
    whole, points = _Population(natural, planted, y, shape, test, sizes, platforms, 1), []
    for n, platform in whole.pairs:
        mine, moved = whole.natural[n], whole.planted[n]
        for target in range(shape[1]):
            sent = moved.sum(axis=1) if form == "feature_label" else moved[:, target]
            success = whole.share(whole.predicted(n, platform, np.array(target), sent) == target)
            cells = getattr(certificates, form)(mine, moved, target)
            bound = certified(cells, Terms(platform, len(test), delta), n)
            points.append(Point(n, target, bound, success, platform, target))
    return points


def naive_unplanting(
    natural: np.ndarray,
    planted: np.ndarray,
    y: np.ndarray,
    shape: tuple[int, int],
    test: np.ndarray,
    unwanted: int,
    sizes: Sequence[int] = FIGURE_1,
    delta: float = 0.05,
    platforms: Sequence[int] | None = None,
) -> list[Point]:
    """Unplanting of one label by sending any one of the others; `best` picks among them. The certificates hold for
    all of these labels together."""
    whole, points = _Population(natural, planted, y, shape, test, sizes, platforms, 1), []
    others = [label for label in range(shape[1]) if label != unwanted]
    for n, platform in whole.pairs:
        moved = whole.planted[n]
        for label, cells in zip(others, certificates.naive_unplanting(whole.natural[n], moved, unwanted), strict=True):
            success = whole.share(whole.predicted(n, platform, np.array(label), moved.sum(axis=1)) != unwanted)
            bound = certified(cells, Terms(platform, len(test), delta), n)
            points.append(Point(n, unwanted, bound, success, platform, label))
    return points


def best(points: Sequence[Point]) -> list[Point]:
    """Of each size in turn the point with the largest certificate, which is what the members know; the first of
    several, as where nothing is certified."""
    each = groupby(points, lambda point: (point.members, point.platform))
    return [max(found, key=lambda point: point.certified) for _, found in each]


def adaptive_unplanting(
    natural: np.ndarray,
    planted: np.ndarray,
    y: np.ndarray,
    shape: tuple[int, int],
    test: np.ndarray,
    unwanted: int,
    estimators: int = 2_000,
    sizes: Sequence[int] = FIGURE_1,
    delta: float = 0.05,
    platforms: Sequence[int] | None = None,
) -> list[Point]:
    """Adaptive unplanting of one label with Theorem 3.7; the estimators are the first records. All members act, as in
    the theorem; in the authors' experiments the estimators send nothing. ValueError for sizes that leave nobody but
    estimators."""
    whole = _Population(natural, planted, y, shape, test, sizes, platforms, estimators + 1, (estimators,))
    points = []
    for n, platform in whole.pairs:
        asked, moved = whole.natural[estimators], whole.planted[n]
        cells, chosen = certificates.unplanting(asked, whole.natural[n] - asked, moved, estimators, unwanted)
        success = whole.share(whole.predicted(n, platform, chosen, moved.sum(axis=1)) != unwanted)
        bound = certified(cells, Terms(platform, len(test), delta), n)
        points.append(Point(n, unwanted, bound, success, platform, None))
    return points


class _Population:
    """Counts (K, Y) of the first records up to every size and platform, `natural` by the cell of x and `planted` by
    that of g(x), and the `pairs` (size, platform) in rising order."""

    def __init__(
        self,
        natural: np.ndarray,
        planted: np.ndarray,
        y: np.ndarray,
        shape: tuple[int, int],
        test: np.ndarray,
        sizes: Sequence[int],
        platforms: Sequence[int] | None,
        least: int,
        more: tuple[int, ...] = (),
    ):
        self.pairs = sorted(zip(sizes, [len(y)] * len(sizes) if platforms is None else platforms, strict=True))
        for n, platform in self.pairs:
            if not least <= n <= platform <= len(y):
                raise ValueError(
                    f"sizes = {n}, platforms = {platform}: a size must lie within {least} and its platform, and a "
                    f"platform within the {len(y)} records"
                )
        (cells, labels), ends = shape, sorted({*more, *(end for pair in self.pairs for end in pair)})
        self.natural, self.planted = (_counts(at, y, (cells + 1, labels), ends) for at in (natural, planted))
        self._arriving = np.bincount(test, minlength=cells) / len(test)

    def predicted(self, n: int, platform: int, label: np.ndarray, sent: np.ndarray) -> np.ndarray:
        """(K,): what the platform predicts when n members add `sent` (K,) records with `label`, () or (K,), to what
        its others are by nature."""
        table = self.natural[platform] - self.natural[n]
        table[np.arange(len(table)), label] += sent
        return predictions(table)

    def share(self, cells: np.ndarray) -> float:
        """The share of test records that lie in these cells, (K,) bool."""
        return float(self._arriving[cells].sum())


def _counts(cell: np.ndarray, y: np.ndarray, shape: tuple[int, int], ends: list[int]) -> dict[int, np.ndarray]:
    """By end: how many of the records up to there are in each cell and label; the last of the cells is left out."""
    codes = cell[: ends[-1]].astype(np.int64) * shape[1] + y[: ends[-1]]
    parts = [np.bincount(part, minlength=shape[0] * shape[1]) for part in np.split(codes, ends[:-1])]
    tables = np.cumsum(parts, axis=0).reshape(-1, *shape)[:, :-1]
    return dict(zip(ends, tables, strict=True))
