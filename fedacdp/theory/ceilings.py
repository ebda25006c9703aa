"""Ceilings: success that no collective can pass when the model is trained under differential privacy.

S, averaged over the noise of training and over test inputs, is the chance that a test on the mechanism's output
accepts; S0 (`base`) is the same with the members honest. So a ceiling bounds the mean over runs, never one lucky run,
and it holds for members who obey the mechanism: who run the local randomiser, or whose update the server clips.

A guarantee counts MOVES between neighbours. A member who replaces its data makes one move under replace-one and two
under add-or-remove; one who leaves makes one move under add-or-remove and none that replace-one speaks of.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from fedacdp.theory.domain import amounts, inside, not_negative, one_of, positive, share

Adjacency = Literal["add_or_remove", "replace_one"]
Act = Literal["replace", "leave"]
Reach = Literal["central", "local_mean", "local_reports"]
"""What the learner sees: one sum with central noise, the mean of local reports alone, or the local reports."""


def moves(members: float, adjacency: Adjacency, act: Act = "replace") -> float:
    """How many moves between neighbours `members` users make. ValueError where the adjacency does not cover the act."""
    one_of("adjacency", adjacency, ("add_or_remove", "replace_one"))
    one_of("act", act, ("replace", "leave"))
    if act == "leave" and adjacency == "replace_one":
        raise ValueError("act = 'leave': replace-one compares data sets of the same users, it does not cover leaving")
    return not_negative("members", members) * (2 if act == "replace" and adjacency == "add_or_remove" else 1)


def group_privacy(base: float, epsilon: float, delta: float, moved: float) -> float:
    """S <= e^(m eps) S0 + delta (e^(m eps) - 1)/(e^eps - 1), and the same for 1 - S; m = `moved` (see `moves`).

    Derived: the definition of (eps, delta) applied m times, and to the complement; the lower of the two, at most 1.
    Where m is not whole it is rounded up. In log space: any m and eps >= 0.
    """
    eps, m = not_negative("epsilon", epsilon), math.ceil(not_negative("moved", moved))
    share("base", base)
    share("delta", delta)
    if m == 0:
        return base
    upper = np.logaddexp(m * eps + _log(base), _log(delta) + _log_moves(m, eps))
    lost = math.exp(-m * eps) * (1 - base) - math.exp(min(0.0, _log(delta) + _log_moves(m, eps) - m * eps))
    return min(1.0, math.exp(min(0.0, float(upper))), 1 - max(0.0, lost))


def group_privacy_moves(base: float, wanted: float, epsilon: float, delta: float) -> float:
    """(1/eps) ln[(S* (e^eps - 1) + delta) / (S0 (e^eps - 1) + delta)]: moves without which S* is out of reach. Derived
    from `group_privacy`; divide by two for members who replace their data under add-or-remove."""
    eps = positive("epsilon", epsilon)
    share("delta", delta)
    if share("wanted", wanted) <= share("base", base):
        return 0.0
    return (_mixed(wanted, eps, delta) - _mixed(base, eps, delta)) / eps


def separated(base: float, shift: float) -> float:
    """S <= Phi(Phi^-1(S0) + shift): the ceiling between two distributions that are `shift`-Gaussian-DP apart.

    With shift = m mu for m moves this is group privacy of mu-GDP (Dong, Roth, Su, JRSS-B 2022, arXiv 1905.02383,
    second-hand; the ceiling is derived). With the shifts below it is the ceiling for a learner that sees noisy sums.
    """
    if not shift >= 0:
        raise ValueError(f"shift = {shift}: must be 0 or above")
    return float(ndtr(ndtri(share("base", base)) + shift)) if shift < math.inf else 1.0


def needed_shift(base: float, wanted: float) -> float:
    """Phi^-1(S*) - Phi^-1(S0), the shift at which `separated` reaches S*; 0 if S* <= S0. Divided by mu: moves."""
    if share("wanted", wanted) <= share("base", base):
        return 0.0
    return float(ndtri(wanted) - ndtri(base))


def necessary_share(base: float, wanted: float, mu: float, users: int, reach: Reach, moved: float = 1.0) -> float:
    """The share of `users` without which S* is out of reach when a user's whole budget is mu-GDP; above 1: for nobody.

    D = `needed_shift`, m = `moved` moves per member: central D/(m mu N); local_mean D/(m mu sqrt(N)); local_reports,
    any learner, D^2/((m mu)^2 N). Derived, for Gaussians without sampling, k_t = alpha n in every round. The square
    root law of local group privacy is of Bun, Nelson, Stemmer (PODS 2018, arXiv 1711.04740, abstract).
    """
    one_of("reach", reach, ("central", "local_mean", "local_reports"))
    if users < 1:
        raise ValueError(f"users = {users}: must be at least 1")
    each = needed_shift(base, wanted) / (positive("moved", moved) * positive("mu", mu))
    if reach == "central":
        return each / users
    return each / math.sqrt(users) if reach == "local_mean" else each**2 / users


def central_shift(acting: np.ndarray, noise_multiplier: float, leaving: np.ndarray | None = None) -> float:
    """sqrt(sum_t (2 k_t + l_t)^2) / z: how far a campaign moves noisy sums, in standard deviations of the noise.

    acting: members k_t in each round's sum whose data differ, (T,); leaving: members l_t who are missing from it, (T,).
    An update clipped to C and replaced moves the sum by at most 2C, a missing one by C, under noise N(0, (z C)^2 I).
    Derived: given the past a round is that far in Gaussian DP, and Gaussians compose by root sum of squares (Dong et
    al. 2022). For the cohorts as they were drawn, whatever the data. Infinite without noise.
    """
    k, left = _counts(acting, "leaving", np.zeros_like(acting) if leaving is None else leaving)
    moved = math.sqrt(float(np.sum((2 * k + left) ** 2)))
    return _ratio(moved, not_negative("noise_multiplier", noise_multiplier))


def local_mean_shift(acting: np.ndarray, messages: np.ndarray, noise_multiplier: float) -> float:
    """2 sqrt(sum_t k_t^2 / n_t) / z: as `central_shift`, where each of n_t = `messages` reports carries noise
    N(0, (z C)^2 I) and the learner sees their sum alone. Derived. No form for members who leave: their noise leaves
    with them."""
    k, n = _sent(acting, messages)
    hidden = np.divide(k**2, n, out=np.zeros_like(k), where=k > 0)
    return _ratio(2 * math.sqrt(float(hidden.sum())), not_negative("noise_multiplier", noise_multiplier))


def local_reports_shift(acting: np.ndarray, noise_multiplier: float) -> float:
    """2 sqrt(sum_t k_t) / z: as `local_mean_shift`, for a learner that sees every report. Derived."""
    k = amounts("acting", acting)
    return _ratio(2 * math.sqrt(float(k.sum())), not_negative("noise_multiplier", noise_multiplier))


def reclipped_shift(acting: np.ndarray, messages: np.ndarray, noise: float, bound: float) -> float:
    """2 b sqrt(sum_t k_t^2 / (n_t - k_t)) / sigma: members send what they like without noise, the server clips reports
    to norm b = `bound`, and only the others' noise sigma = `noise` per coordinate and report hides them. Derived.

    For others whose reports the bound does not cut; infinite where nobody else reports.
    """
    k, n = _sent(acting, messages)
    if ((k == n) & (k > 0)).any():
        return math.inf
    hidden = np.divide(k**2, n - k, out=np.zeros_like(k), where=k > 0)
    return _ratio(2 * positive("bound", bound) * math.sqrt(float(hidden.sum())), not_negative("noise", noise))


def deviating_gain(noise: float, dimension: int, clip_norm: float) -> float:
    """sigma sqrt(d) / C: how much larger than an honest signal a member's report can be at an unsuspicious norm when it
    skips the local noise. Derived: honest reports have norm about sigma sqrt(d), d = `dimension`. That corrupted local
    reports do more harm than lies about inputs: Cheu, Smith, Ullman (S&P 2021), abstract."""
    size = math.sqrt(positive("dimension", dimension))
    return not_negative("noise", noise) * size / positive("clip_norm", clip_norm)


def certified_prediction(top: float, second: float, epsilon: float, delta: float) -> float:
    """K = (1/(2 eps)) ln[(F_A (e^eps - 1) + delta) / (F_B (e^eps - 1) + delta)]: class A stays on top for m < K moves.

    top, second: expected confidences F_A >= F_B. Derived from `group_privacy`; the form is also reported for Xie et al.
    (CCS 2023, arXiv 2209.04030, second-hand).
    """
    if share("second", second) > share("top", top):
        raise ValueError(f"second = {second}: must not exceed top = {top}")
    return group_privacy_moves(second, top, epsilon, delta) / 2


def membership_auc(mu: float) -> float:
    """AUC <= Phi(mu / sqrt(2)) of an attack on the membership of ONE user under mu-GDP. Derived: the area under the
    trade-off curve of two unit normals mu apart."""
    return float(ndtr(not_negative("mu", mu) / math.sqrt(2)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 at which mu-GDP is (epsilon, delta): inverse of delta(eps) = Phi(-eps/mu + mu/2) -
    e^eps Phi(-eps/mu - mu/2) (Balle and Wang 2018, Theorem 8; Dong et al. 2022, second-hand)."""
    from scipy.optimize import brentq

    mu, delta = not_negative("mu", mu), inside("delta", delta)

    def excess(eps: float) -> float:
        return float(ndtr(-eps / mu + mu / 2) - math.exp(eps + log_ndtr(-eps / mu - mu / 2))) - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu**2 / 2 - mu * float(ndtri(delta)) + 1, xtol=1e-12))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _log_expm1(value: float) -> float:
    """ln(e^value - 1) for value > 0."""
    return value + math.log(-math.expm1(-value))


def _log_moves(m: int, eps: float) -> float:
    """ln[(e^(m eps) - 1)/(e^eps - 1)], which is ln m at eps = 0."""
    return math.log(m) if eps == 0 else _log_expm1(m * eps) - _log_expm1(eps)


def _mixed(value: float, eps: float, delta: float) -> float:
    """ln(value (e^eps - 1) + delta)."""
    return float(np.logaddexp(_log(value) + _log_expm1(eps), _log(delta)))


def _ratio(moved: float, noise: float) -> float:
    if moved == 0:
        return 0.0
    return moved / noise if noise > 0 else math.inf


def _counts(acting: np.ndarray, name: str, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two counts per round, (T,) each."""
    k, counts = amounts("acting", acting), amounts(name, other)
    if counts.shape != k.shape:
        raise ValueError(f"{name}: has {len(counts)} rounds, acting has {len(k)}")
    return k, counts


def _sent(acting: np.ndarray, messages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k, n = _counts(acting, "messages", messages)
    if (k > n).any():
        raise ValueError("acting: a round has more acting members than messages")
    return k, n
