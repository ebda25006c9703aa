"""Success that a collective can certify from its own records, after Gauthier, Bach and Jordan 2025, *Statistical
Collusion by Collectives on Learning Platforms* (ICML, arXiv 2502.04879), section 3, cited below by theorem.

N independent records train the platform, n of them belong to members who all play one strategy. D are the members'
records before, D~ after they act, P^ frequencies in D or D~. With R(k) = sqrt(ln(1/delta~) / (2 k)), all theorems read

    success >= sum of P^_outer over the cells whose margin is positive - R(n) - R(N_test), where
    margin = (n/N) (mass - 2 R(n)) - ((N-n)/N) (resistance + 2 R(n') + 2 R(N-n)) - s.

n' = n, except in 3.7. Each holds with probability 1 - delta over the draw of all records if members and others come
from one distribution, and signal, target and cells were fixed before looking at D. A bound that is not positive
certifies nothing.

Counts are tables (K, Y): K signal cells, Y labels. `natural`: members' records whose features x are the cell;
`planted`: members' records whose g(x) is the cell, by the label they had. Frequencies, or probabilities of a known
distribution, may stand for counts everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri

from fedacdp.theory.bernstein import bernstein

Bound = Literal["hoeffding", "bernstein"]
Form = Literal["safe", "printed"]


def deviation(count: np.ndarray | float, delta: float) -> np.ndarray:
    """R_delta(k) = sqrt(ln(1/delta) / (2 k)), what Hoeffding 1963 allows a frequency of k records to be off by."""
    return np.sqrt(np.log(1 / delta) / (2 * np.asarray(count, float)))


@dataclass(frozen=True)
class Cells:
    """What a theorem looks at in each of K cells, as frequencies.

    outer (K,): P^_outer; mass (K,): what members put there; own (K,) and rivals (K, R): frequencies in D of the label
    that is to win and of those it is to beat; events: delta~ = delta / events; estimators: members whose records chose
    the label and do not count in n' (3.7); anchor (K,): the cell of g(x) and eta: the margin assumed in
    3.9, None if none is (see `erasing.py`).
    """

    outer: np.ndarray
    mass: np.ndarray
    own: np.ndarray
    rivals: np.ndarray
    events: int
    estimators: int = 0
    anchor: np.ndarray | None = None
    eta: float | None = 0.0

    @property
    def resistance(self) -> np.ndarray:
        """(K,): max over rivals y' of P^_D(x, y') - P^_D(x, own label); below 0 where that label leads anyway."""
        return self.rivals.max(axis=1) - self.own


@dataclass(frozen=True)
class Terms:
    """Under which terms success is certified.

    platform_size N and test_size N_test, at least 1; delta in (0, 1): the certificate may fail with this probability.
    suboptimality eps_s: the classifier is best for a distribution within this total variation of the platform's data.
    form: `safe` s = 2 eps_s; `printed` s = eps_s / (1 - eps_s), as in the paper, too small for 0 < eps_s < 1/2: with
    masses .59 and .41 in one cell, moving .09 flips the label, and the margin .18 exceeds .1 / .9.
    bound: `hoeffding` as in the paper, or `bernstein` (see `bernstein.py`). noise_sd: of Gaussian noise on each count
    of a private platform (see `delta_tilde`). ValueError if one of them is out of range.
    """

    platform_size: int
    test_size: int
    delta: float = 0.05
    suboptimality: float = 0.0
    form: Form = "safe"
    bound: Bound = "hoeffding"
    noise_sd: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta = {self.delta}: must be above 0 and below 1")
        if not 0 <= self.suboptimality < 1:
            raise ValueError(f"suboptimality = {self.suboptimality}: must be at least 0 and below 1")
        if not 0 <= self.noise_sd < np.inf:
            raise ValueError(f"noise_sd = {self.noise_sd}: must be at least 0, and finite")
        for name in ("platform_size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    @property
    def lost_margin(self) -> float:
        """s."""
        eps = self.suboptimality
        return 2 * eps if self.form == "safe" else eps / (1 - eps)


def feature_label(natural: np.ndarray, planted: np.ndarray, target: int) -> Cells:
    """Theorem 3.3: everyone sends (g(x), y*). outer and mass P^_D~(x~); delta~ = delta / (2 + 2 K + 2 K Y)."""
    natural, planted, n = _tables(natural, planted)
    share = planted.sum(axis=1) / n
    return Cells(share, share, *own_and_rivals(natural / n, target), events=2 + 2 * len(natural) + 2 * natural.size)


def feature_only(natural: np.ndarray, planted: np.ndarray, target: int) -> Cells:
    """Theorem 3.5: (g(x), y*) if y = y*, else (x0, y), x0 outside the signal cells.

    outer P^_D of g(x') = x~, mass P^_D~(x~, y*), delta~ as in 3.3.
    """
    cells = feature_label(natural, planted, target)
    _, planted, n = _tables(natural, planted)
    return Cells(cells.outer, planted[:, target] / n, cells.own, cells.rivals, cells.events)


def naive_unplanting(natural: np.ndarray, planted: np.ndarray, unwanted: int) -> list[Cells]:
    """Naive unplanting: Theorem 3.3 for each label y' other than the unwanted one, in the order of labels.

    The collective may pick the best of them by its records. Then the two outer events count for each, 2 (Y - 1), and
    each label that may be the target or a rival must be bounded from both sides, among members and others: 2 K (Y - 1)
    events more. Derived here.
    """
    labels = natural.shape[1]
    found = [feature_label(natural, planted, other) for other in range(labels) if other != unwanted]
    extra = 2 * (labels - 2) + 2 * len(natural) * (labels - 1)
    return [Cells(cells.outer, cells.mass, cells.own, cells.rivals, cells.events + extra) for cells in found]


def unplanting(
    estimating: np.ndarray, executing: np.ndarray, planted: np.ndarray, estimators: int, unwanted: int
) -> tuple[Cells, np.ndarray]:
    """Theorem 3.7, adaptive unplanting of y*: members send (g(x), y^), y^ the most frequent label other than y* in
    x~ = g(x) among the estimators. Returns the cells and y^ (K,).

    `estimating` and `executing` are the natural counts of the n_e estimators and of the n - n_e other members,
    `planted` is that of all n, as the theorem has it. resistance = P^(x~, y*) - P^(x~, y^), both on the others,
    n' = n - n_e; delta~ = delta / (2 + 6 K). ValueError unless 0 < n_e < n.
    """
    natural, planted, n = _tables(executing, planted)
    if not 0 < estimators < n:
        raise ValueError(f"estimators = {estimators}: must be more than 0 and fewer than the {n:g} members")
    rival = np.array(estimating, float)
    rival[:, unwanted] = -1
    chosen, rows, share = rival.argmax(axis=1), np.arange(len(rival)), planted.sum(axis=1) / n
    held = natural / (n - estimators)
    cells = Cells(
        share, share, held[rows, chosen], held[:, [unwanted]], events=2 + 6 * len(held), estimators=estimators
    )
    return cells, chosen


def erasing(natural: np.ndarray, anchor: np.ndarray, eta: float | None = None) -> Cells:
    """Theorem 3.9: members keep x and send the most frequent label at g(x), so that f(x) = f(g(x)).

    natural (K, Y) over ALL cells of X; anchor (K,) the cell of g(x), g(g(x)) = g(x). outer and mass P^_D(x'), the own
    label is the most frequent one at g(x'), delta~ = delta / (2 + 2 K + 3 K Y). It is assumed that this label leads by
    more than eta at g(x), and it needs 2 ln(1/delta~)/eta^2 <= n <= N - 2 ln(1/delta~)/eta^2: elsewhere no cell is
    certified. Without `eta`, the smallest lead in D stands for it. ValueError if g is not idempotent.
    """
    anchor = np.asarray(anchor)
    if not np.array_equal(anchor[anchor], anchor):
        raise ValueError("anchor: the signal must be idempotent, g(g(x)) = g(x)")
    natural, _, n = _tables(natural, natural)
    held, modal = natural / n, natural.argmax(axis=1)[anchor]
    own, rivals = own_and_rivals(held, modal)
    reached = np.unique(anchor[natural.sum(axis=1) > 0])
    lead = -(rivals.max(axis=1) - own)[reached].max()
    share, events = held.sum(axis=1), 2 + 2 * len(natural) + 2 * natural.size + natural.size
    return Cells(share, share, own, rivals, events, anchor=anchor, eta=float(lead if eta is None else eta))


def delta_tilde(cells: Cells, terms: Terms) -> float:
    """delta / (number of events): the theorem's, and one more for each cell and label for `bernstein`.

    With noise on the counts, one more for each cell and rival too: the difference of two noises, N(0, 2 sd^2), exceeds
    sqrt(2) sd z with probability delta~ where Phi(z) = 1 - delta~, and the margin loses that over N. Derived; the
    margin of one cell is flipped by the noise in that cell alone, so no total variation over all cells is needed.
    """
    labels = cells.rivals.size + len(cells.own)
    more = (labels if terms.bound == "bernstein" else 0) + (cells.rivals.size if terms.noise_sd > 0 else 0)
    return terms.delta / (cells.events + more)


def margins(cells: Cells, terms: Terms, members: np.ndarray | int) -> np.ndarray:
    """The margin of every cell, (..., K), for sizes (..., 1) or (..., K) of the collective, n_e < n <= N, if all
    frequencies are as they are in `cells`. ValueError for other sizes."""
    n, whole, level = np.asarray(members, float), terms.platform_size, delta_tilde(cells, terms)
    if (n <= cells.estimators).any() or (n > whole).any():
        raise ValueError(f"members: must be more than {cells.estimators} and at most the platform's {whole}")
    lost = terms.lost_margin * whole - np.sqrt(2) * terms.noise_sd * ndtri(level)
    if terms.bound == "bernstein":
        frequencies = cells.mass, cells.own, cells.rivals
        return (bernstein(*frequencies, n, n - cells.estimators, whole - n, level) - lost) / whole
    # (N-n) R(N-n) is written so that it is 0 where nobody else is left.
    slack = (whole - n) * 2 * deviation(n - cells.estimators, level) + np.sqrt(2 * np.log(1 / level) * (whole - n))
    own = n * (cells.mass - 2 * deviation(n, level))
    return (own - (whole - n) * cells.resistance - slack - lost) / whole


def certified(cells: Cells, terms: Terms, members: int) -> float:
    """The certified success of a collective of this size, between -R(n) - R(N_test) and 1 - R(n) - R(N_test)."""
    level = delta_tilde(cells, terms)
    wins = winning(cells, terms, members)
    return float(cells.outer[wins].sum() - deviation(members, level) - deviation(terms.test_size, level))


def winning(cells: Cells, terms: Terms, members: int) -> np.ndarray:
    """(K,) bool: the cells that this many members certify.

    In 3.9 both f(x) and f(g(x)) must be the label; the theorem has the second for free, which noise, a suboptimal
    classifier or the lack of its assumption takes away: then the margin at g(x) is required too.
    """
    low, high = allowed(cells, terms)
    if not low <= members <= high:
        return np.zeros(len(cells.mass), bool)
    wins = margins(cells, terms, members) > 0
    return wins & wins[cells.anchor] if needs_both(cells, terms) else wins


def allowed(cells: Cells, terms: Terms) -> tuple[int, int]:
    """The smallest and the largest size that the theorem speaks about; no size if the former is larger."""
    low, high = cells.estimators + 1, terms.platform_size
    if cells.anchor is None or cells.eta is None:
        return low, high
    least = 2 * np.log(1 / delta_tilde(cells, terms)) / cells.eta**2 if cells.eta > 0 else np.inf
    return (max(low, int(np.ceil(least))), int(np.floor(high - least))) if least < high else (low, 0)


def needs_both(cells: Cells, terms: Terms) -> bool:
    """Whether the cell of g(x) must be certified beside that of x."""
    free = terms.noise_sd == 0 and terms.suboptimality == 0 and cells.eta is not None
    return cells.anchor is not None and not free


def _tables(natural: np.ndarray, planted: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Both as floats, and the number of members' records; ValueError if they are no tables of counts (K, Y)."""
    natural, planted = np.asarray(natural, float), np.asarray(planted, float)
    if natural.ndim != 2 or natural.shape != planted.shape or natural.shape[1] < 2:
        raise ValueError(f"counts: shapes {natural.shape} and {planted.shape}, expected two (cells, labels >= 2)")
    if (natural < 0).any() or (planted < 0).any() or planted.sum() <= 0:
        raise ValueError("counts: must not be negative, and the members must have at least one record")
    return natural, planted, float(planted.sum())


def own_and_rivals(held: np.ndarray, own: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split (K, Y) into the column `own`, one for all cells or one for each, and the Y - 1 others."""
    cells, labels = held.shape
    mine = np.zeros(held.shape, bool)
    mine[np.arange(cells), own] = True
    return held[mine], held[~mine].reshape(cells, labels - 1)
