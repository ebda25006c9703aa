"""Detecting members in the reports of local differential privacy, and what an attack says about a guarantee.

Under central noise the server sees raw updates: no anonymity against it. Derived for this project unless a source is
given.
"""

from __future__ import annotations

import math

from scipy.special import ndtr, ndtri
from scipy.stats import beta

from fedacdp.theory.domain import inside, not_negative, positive


def direction_auc(distance: float, noise: float, reports: int = 1) -> float:
    """AUC = Phi(D sqrt(T) / (sqrt(2) sigma)) of a server that knows the direction in which members' reports lie.

    distance: D, between the means of members and others, in the units of noise sigma per coordinate; T = reports.
    """
    shift = not_negative("distance", distance) * math.sqrt(positive("reports", reports))
    return float(ndtr(shift / (math.sqrt(2) * positive("noise", noise))))


def cosine_score(clip_norm: float, dimension: int, noise: float) -> float:
    """sqrt(d) C^2 / (C^2 + d sigma^2): mean cosine of two aligned members' reports, over its spread for others.

    About C^2 / (sqrt(d) sigma^2) where the noise dominates.
    """
    signal, d = positive("clip_norm", clip_norm) ** 2, positive("dimension", dimension)
    return math.sqrt(d) * signal / (signal + d * not_negative("noise", noise) ** 2)


def spectral_members(reports: int, dimension: int, noise: float, clip_norm: float) -> float:
    """k = sigma^2 sqrt(n d) / C^2: aligned members above which the top singular value of n reports shows them.

    From the threshold of the spiked matrix, sqrt(k) C > sigma (n d)^(1/4) (standard).
    """
    size = math.sqrt(positive("reports", reports) * positive("dimension", dimension))
    return (not_negative("noise", noise) / positive("clip_norm", clip_norm)) ** 2 * size


def rate_limit(errors: int, trials: int, failure: float) -> float:
    """The upper limit of an error rate that `errors` of `trials` leave, wrong with chance `failure` at most.

    Clopper, Pearson 1934, one-sided.
    """
    if not 0 <= errors <= trials or trials < 1:
        raise ValueError(f"errors = {errors}: must be between 0 and trials = {trials}, and trials at least 1")
    level = inside("failure", failure)
    return 1.0 if errors == trials else float(beta.ppf(1 - level, errors + 1, trials - errors))


def audited_mu(false_positive: float, false_negative: float) -> float:
    """mu_L = max(0, Phi^-1(1 - FPR) - Phi^-1(FNR)), from upper limits of both rates: a smaller mu cannot be true.

    From the definition of Gaussian DP (Dong, Roth, Su 2022).
    """
    first, second = _rate("false_positive", false_positive), _rate("false_negative", false_negative)
    return max(0.0, float(ndtri(1 - first) - ndtri(second)))


def audited_epsilon(false_positive: float, false_negative: float, delta: float) -> float:
    """eps_L = max(0, ln((1 - delta - FPR)/FNR), ln((1 - delta - FNR)/FPR)), from upper limits of both rates.

    From the definition of (epsilon, delta) differential privacy.
    """
    rates = (_rate("false_positive", false_positive), _rate("false_negative", false_negative))
    if not 0 <= delta < 1:
        raise ValueError(f"delta = {delta}: must be 0 or above, and below 1")
    found = [math.log((1 - delta - a) / b) for a, b in (rates, rates[::-1]) if 1 - delta - a > 0]
    return max(0.0, *found)


def _rate(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{name} = {value}: must be above 0 and at most 1, an upper limit")
    return float(value)
