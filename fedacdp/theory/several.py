"""Success that one collective can certify among several that act at once (feature-label strategies).

Derived for this project: Theorem 3.3 of Gauthier, Bach and Jordan 2025 (arXiv 2502.04879) with M collectives, j of size
n_j, signal g_j and target y*_j, n_all = sum of n_j. Collective m certifies the share of its own points whose cell has,
for every y' other than y*_m,

    (n_m/N) (P^_D~m(x~) - 2 R(n_m)) + A(x~) - B(x~, y')
    - ((N-n_all)/N) (P^_Dm(x~, y') - P^_Dm(x~, y*_m) + 2 R(n_m) + 2 R(N-n_all)) - s > 0,

minus R(n_m) + R(N_test). A counts allies (the same target), B rivals (y*_j = y'), as far as m knows them. With one
collective this is Theorem 3.3. With Hoeffding and without noise on the counts only: ValueError for other terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedacdp.theory.certificates import Cells, Terms, deviation, feature_label


@dataclass(frozen=True)
class Other:
    """Another collective: its size n_j and target y*_j, and (K,) how many of m's OWN records its signal g_j would put
    in each of m's cells."""

    members: int
    target: int
    placed: np.ndarray


def with_known(
    natural: np.ndarray, planted: np.ndarray, target: int, members: int, others: Sequence[Other], terms: Terms
) -> float:
    """The certified success if the others' strategies are known: with q^_j = placed / n_m,

        A = sum over allies of (n_j/N) max(q^_j - R(n_m) - R(n_j), 0), B = sum over rivals of (n_j/N) (q^_j + R(n_m) +
        R(n_j)), delta~ = delta / (2 + 2 M K + 2 K Y).

    natural and planted (K, Y) are m's counts as in Theorem 3.3, `members` is n_m. ValueError if all members together
    are more than N.
    """
    cells = feature_label(natural, planted, target)
    level = terms.delta / (cells.events + 2 * len(others) * len(cells.mass))
    gain, loss, size = np.zeros(len(cells.mass)), np.zeros(np.shape(natural)), float(np.sum(planted))
    for other in others:
        share, off = other.members / terms.platform_size, deviation(members, level) + deviation(other.members, level)
        placed = np.asarray(other.placed, float) / size
        if other.target == target:
            gain += share * np.maximum(placed - off, 0)
        else:
            loss[:, other.target] += share * (placed + off)
    rivals = np.delete(loss, target, axis=1)
    return _success(cells, gain[:, None] - rivals, members, sum(other.members for other in others), level, terms)


def with_published(
    natural: np.ndarray, planted: np.ndarray, target: int, members: int, others: int, ahead: np.ndarray, terms: Terms
) -> float:
    """The certified success if a trusted aggregator publishes `ahead` (K,): in each cell the largest mass that rivals
    put on one label, less the allies' mass, in shares of N; `others` is the number of all other members. A = 0,
    B = ahead, delta~ as in 3.3."""
    cells = feature_label(natural, planted, target)
    net = -np.asarray(ahead, float)[:, None]
    return _success(cells, net, members, others, terms.delta / cells.events, terms)


def worst_case(natural: np.ndarray, planted: np.ndarray, target: int, members: int, others: int, terms: Terms) -> float:
    """The certified success if only the number of all other members is known: A = 0, B = others / N, delta~ as in
    3.3."""
    cells = feature_label(natural, planted, target)
    net = np.full((len(cells.mass), 1), -others / terms.platform_size)
    return _success(cells, net, members, others, terms.delta / cells.events, terms)


def _success(cells: Cells, net: np.ndarray, members: int, others: int, level: float, terms: Terms) -> float:
    if terms.noise_sd > 0 or terms.bound != "hoeffding":
        raise ValueError("terms: of several collectives there are certificates with Hoeffding and without noise only")
    whole, rest = terms.platform_size, terms.platform_size - members - others
    if rest < 0:
        raise ValueError(f"members: {members} and {others} others are more than the platform's {whole}")
    gaps = cells.rivals - cells.own[:, None]
    slack = rest * 2 * deviation(members, level) + np.sqrt(2 * np.log(1 / level) * rest)
    own = members * (cells.mass - 2 * deviation(members, level))
    margins = (own[:, None] - rest * gaps - slack) / whole + net - terms.lost_margin
    return float(
        cells.outer[(margins > 0).all(axis=1)].sum() - deviation(members, level) - deviation(terms.test_size, level)
    )
