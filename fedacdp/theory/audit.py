"""Lower bounds on epsilon from attacks: what a claimed guarantee cannot be below, with confidence 1 - failure.

Each has a ceiling, the value it reaches if the attack makes no mistake at all: a bound at its ceiling says that there
were too few trials to see more, not that epsilon is so small. Counts are of independent trials.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import beta, binom

from fedacdp.theory.ceilings import epsilon_of_mu
from fedacdp.theory.detection import audited_epsilon, audited_mu, rate_limit
from fedacdp.theory.domain import inside, not_negative, positive, share

FAILURE = 0.05
_MOST = 100.0  # no audit with fewer than e^100 trials can show more


@dataclass(frozen=True)
class Errors:
    """What a test with a fixed threshold got wrong: false alarms of `absent` trials without the target, misses of
    `present` trials with it. ValueError if there are more errors than trials."""

    false_alarms: int
    absent: int
    misses: int
    present: int

    def limits(self, failure: float) -> tuple[float, float]:
        """Upper limits of both error rates, together wrong with chance `failure` at most (Clopper, Pearson 1934)."""
        half = inside("failure", failure) / 2
        return rate_limit(self.false_alarms, self.absent, half), rate_limit(self.misses, self.present, half)

    def epsilon(self, delta: float, failure: float = FAILURE) -> float:
        """The epsilon that is refuted from below, whatever the mechanism (see `detection.audited_epsilon`)."""
        return audited_epsilon(*self.limits(failure), delta)

    def mu(self, failure: float = FAILURE) -> float:
        """The mu of Gaussian DP that is refuted from below: only where the claim is that of a Gaussian (Nasr et al.
        2023, arXiv 2302.07956). Without a single error it reads far more into the counts than they hold."""
        return audited_mu(*self.limits(failure))

    def gaussian_epsilon(self, delta: float, failure: float = FAILURE) -> float:
        """The epsilon of `mu`."""
        return epsilon_of_mu(self.mu(failure), delta)


def two_world_ceiling(absent: int, present: int, delta: float = 0.0, failure: float = FAILURE) -> float:
    """`Errors.epsilon` of a test that makes no mistakes."""
    return Errors(0, absent, 0, present).epsilon(delta, failure)


def errors_of(absent: np.ndarray, present: np.ndarray) -> Errors:
    """The errors of a threshold on scores, higher with the target, (A,) and (B,). It is chosen on every other score, as
    the one that a claim could least explain, and judged on the rest. ValueError if there are fewer than four of either.
    """
    if min(len(absent), len(present)) < 4:
        raise ValueError(f"absent, present = {len(absent)}, {len(present)} scores: must be at least 4 each")
    tried = Scores(absent[::2], present[::2])
    at = max(np.unique(np.concatenate([tried.absent, tried.present])), key=lambda t: tried.errors(t).epsilon(0.0))
    return Scores(absent[1::2], present[1::2]).errors(at)


@dataclass(frozen=True)
class Scores:
    """Scores of trials without and with the target, (A,) and (B,)."""

    absent: np.ndarray
    present: np.ndarray

    def errors(self, threshold: float) -> Errors:
        """Of a test that says "with" at `threshold` and above."""
        alarms, misses = int((self.absent >= threshold).sum()), int((self.present < threshold).sum())
        return Errors(alarms, len(self.absent), misses, len(self.present))


def mechanism_mu(absent: np.ndarray, present: np.ndarray) -> tuple[float, float]:
    """An estimate of mu of a Gaussian mechanism and how far off it may be at five standard deviations, for small mu.

    From outcomes of one aggregation in a worst-case pair of worlds, projected on the difference, (n,) draws each:
    (mean - mean) / pooled standard deviation, and 5 sqrt(2 / n). Sees too little noise and too much.
    """
    draws = min(len(absent), len(present))
    if draws < 2:
        raise ValueError(f"absent, present = {len(absent)}, {len(present)} draws: must be at least 2 each")
    spread = math.sqrt((absent.var(ddof=1) + present.var(ddof=1)) / 2)
    return float((present.mean() - absent.mean()) / positive("spread", spread)), 5 * math.sqrt(2 / draws)


def one_run_p_value(coins: int, guesses: int, right: int, epsilon: float, delta: float = 0.0) -> float:
    """The chance, at most, that (epsilon, delta)-DP allows `right` or more of `guesses` guesses about `coins` fair
    coins, each of which decided whether a canary was in ONE run.

    min(1, P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i), B binomial of r, 1 / (1 + e^-epsilon). Steinke, Nasr,
    Jagielski 2023 (arXiv 2305.08846), for pure and approximate DP.
    """
    if not 0 <= right <= guesses <= coins or guesses < 1:
        raise ValueError(f"right, guesses, coins = {right}, {guesses}, {coins}: must not fall, guesses at least 1")
    chance = 1 / (1 + math.exp(-not_negative("epsilon", epsilon)))
    tail = float(binom.sf(right - 1, guesses, chance))
    if right == 0 or delta == 0:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    return min(1.0, tail + 2 * coins * delta * float((below / np.arange(1, right + 1)).max()))


def one_run_epsilon(coins: int, guesses: int, right: int, delta: float = 0.0, failure: float = FAILURE) -> float:
    """The largest epsilon that `one_run_p_value` refutes at level `failure`; 0 if none. Ceiling: all guesses right."""
    level = inside("failure", failure)

    def excess(epsilon: float) -> float:
        return one_run_p_value(coins, guesses, right, epsilon, delta) - level

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, _MOST, xtol=1e-10)) if excess(_MOST) > 0 else _MOST


def normals_delta(first: tuple[float, float], second: tuple[float, float], epsilon: float) -> float:
    """sup over events S of P1(S) - e^epsilon P2(S) for two normals given by mean and standard deviation."""
    (m1, s1), (m2, s2) = first, second
    positive("standard deviation", s1), positive("standard deviation", s2)
    # ln(p1/p2) - epsilon = a x^2 + b x + c
    a = (1 / s2**2 - 1 / s1**2) / 2
    b = m1 / s1**2 - m2 / s2**2
    c = (m2**2 / s2**2 - m1**2 / s1**2) / 2 + math.log(s2 / s1) - epsilon
    if abs(a) < 1e-14 * (1 / s1**2):
        roots = [-c / b] if b else []
    else:
        under = b**2 - 4 * a * c
        roots = sorted([(-b - math.sqrt(under)) / (2 * a), (-b + math.sqrt(under)) / (2 * a)]) if under > 0 else []
    ends = [-math.inf, *roots, math.inf]
    found = 0.0
    for low, high in itertools.pairwise(ends):
        x = (low + high) / 2 if math.isfinite(low + high) else low + s1 if math.isfinite(low) else high - s1
        x = x if math.isfinite(x) else 0.0
        if a * x * x + b * x + c > 0:
            p = [_mass(low, high, mean, spread) for mean, spread in (first, second)]
            found += p[0] - math.exp(min(epsilon, 700.0)) * p[1]
    return max(0.0, found)


def canary_epsilon(cosines: np.ndarray, dimension: int, delta: float) -> float:
    """An ESTIMATE of epsilon, no bound, from the cosines (M,) of canaries' directions with what is released, in P =
    `dimension` dimensions: the smallest epsilon at which both directions between N(0, 1/P), of canaries that were not
    there, and the normal fitted to those that were meet `delta`. Andrew et al. 2023 (arXiv 2302.03098)."""
    if len(cosines) < 2:
        raise ValueError(f"cosines = {len(cosines)} canaries: must be at least 2")
    seen = float(np.mean(cosines)), float(np.std(cosines, ddof=1))
    unseen = 0.0, 1 / math.sqrt(positive("dimension", dimension))

    def excess(epsilon: float) -> float:
        return max(normals_delta(seen, unseen, epsilon), normals_delta(unseen, seen, epsilon)) - delta

    inside("delta", delta)
    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < 1e6:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9)) if high < 1e6 else math.inf


def tpr_limit(false_positive: float, epsilons: np.ndarray, deltas: np.ndarray) -> float:
    """The largest true-positive rate at this false-positive rate that delta (G,) at epsilon (G,) leaves, 0 among them:

    the least of e^epsilon FPR + delta and of 1 - e^-epsilon (1 - delta - FPR) (Kairouz, Oh, Viswanath 2015).
    """
    rate = share("false_positive", false_positive)
    first, second = np.exp(epsilons) * rate + deltas, 1 - np.exp(-epsilons) * (1 - deltas - rate)
    return float(min(1.0, first.min(), second.min()))


def auc_limit(epsilons: np.ndarray, deltas: np.ndarray) -> float:
    """The area under `tpr_limit`."""
    rates = np.concatenate([[0.0], np.geomspace(1e-9, 1, 2000)])
    return float(np.trapezoid([tpr_limit(float(rate), epsilons, deltas) for rate in rates], rates))


def interval(hits: int, trials: int, failure: float = FAILURE) -> tuple[float, float]:
    """The two-sided interval of a rate of which `hits` of `trials` were seen (Clopper, Pearson 1934)."""
    upper = rate_limit(hits, trials, inside("failure", failure) / 2)
    lower = 0.0 if hits == 0 else float(beta.ppf(failure / 2, hits, trials - hits + 1))
    return lower, upper


def _mass(low: float, high: float, mean: float, spread: float) -> float:
    """The chance that a normal is between two points; from the nearer tail, where it is small."""
    low, high = (low - mean) / spread, (high - mean) / spread
    return float(ndtr(-low) - ndtr(-high)) if low > 0 else float(ndtr(high) - ndtr(low))
