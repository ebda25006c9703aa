"""Signal to noise of a collective, local against central, and the histogram learner, which is solvable exactly.

A cohort of n users out of N (q = n/N) for T rounds; k aligned members of a cohort shift the mean by k C / n. Derived
for this project unless a source is given. mu is that of the whole training: add-or-remove for central noise with
sampling, replace-one for local noise and for the histogram.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from fedacdp.theory.domain import inside, not_negative, one_of, positive, share


def central_multiplier(mu: float, sampling_prob: float, rounds: int) -> float:
    """z with mu = q sqrt(T (e^(1/z^2) - 1)), the central limit of T Poisson-sampled Gaussians.

    Bu, Dong, Long, Su, HDSR 2020, arXiv 1911.11607 (second-hand). An approximation, no guarantee, and poor for small z:
    an epsilon to be shown comes from the mechanism's accountant.
    """
    q = inside("sampling_prob", sampling_prob) if sampling_prob != 1 else 1.0
    return 1 / math.sqrt(math.log1p((positive("mu", mu) / q) ** 2 / positive("rounds", rounds)))


def local_noise(mu: float, clip_norm: float, messages: float) -> float:
    """sigma_l = 2 C sqrt(messages) / mu: noise per coordinate of one report when a user sends that many (mean: q T)."""
    return 2 * positive("clip_norm", clip_norm) * math.sqrt(positive("messages", messages)) / positive("mu", mu)


def central_noise_on_mean(noise_multiplier: float, clip_norm: float, cohort: float) -> float:
    """z C / n, the noise per coordinate on the mean of a round."""
    z, bound = not_negative("noise_multiplier", noise_multiplier), positive("clip_norm", clip_norm)
    return z * bound / positive("cohort", cohort)


def local_noise_on_mean(noise: float, cohort: float) -> float:
    """sigma_l / sqrt(n), the noise per coordinate on the mean of a round."""
    return not_negative("noise", noise) / math.sqrt(positive("cohort", cohort))


def snr(members: float, clip_norm: float, cohort: float, noise_on_mean: float, rounds: int = 1) -> float:
    """sqrt(T) k C / (n s): shift of the mean by k members of each cohort over its noise s, accumulated over T rounds.

    Central k sqrt(T) / z, whatever the cohort; local k C sqrt(T) / (sigma_l sqrt(n)). The ceiling of a compliant
    collective is Phi(Phi^-1(S0) + 2 snr) (`ceilings.separated`).
    """
    shift = not_negative("members", members) * positive("clip_norm", clip_norm) / positive("cohort", cohort)
    return shift * math.sqrt(positive("rounds", rounds)) / positive("noise_on_mean", noise_on_mean)


def members_needed(wanted: float, clip_norm: float, cohort: float, noise_on_mean: float, rounds: int = 1) -> float:
    """k = snr n s / (C sqrt(T)): members per cohort for an accumulated signal-to-noise ratio `wanted`.

    Central s z / sqrt(T), local s sigma_l sqrt(n) / (C sqrt(T)). More than the cohort: out of reach.
    """
    return not_negative("wanted", wanted) / snr(1, clip_norm, cohort, noise_on_mean, rounds)


def histogram_noise(mu: float, users: int, arm: str) -> float:
    """Noise on a count of a histogram with one record per user under mu-GDP, replace-one.

    central sqrt(2)/mu (two counts change by one); local sqrt(2 N)/mu (each user adds noise to its one-hot vector).
    """
    one_of("arm", arm, ("central", "local"))
    if users < 1:
        raise ValueError(f"users = {users}: must be at least 1")
    return math.sqrt(2 * (users if arm == "local" else 1)) / positive("mu", mu)


def cell_gap(alpha: float, users: int, planted: float, gap: float) -> float:
    """N [alpha P_D(x) - (1 - alpha) gap]: by how many counts the target leads a rival label in cell x, expected.

    planted: mass that the collective's own distribution puts on (x, y*); gap: P0(x, y') - P0(x, y*), a JOINT mass that
    may be negative.
    """
    a = share("alpha", alpha)
    return users * (a * share("planted", planted) - (1 - a) * _joint(gap))


def cell_won(gaps: np.ndarray, noise: float) -> float:
    """Pr[cell won] = int phi(t) prod_y' Phi(t + gap_y'/sigma) dt, for lead `gaps` over each rival, (Y-1,), in counts.

    The target's count against all others, each with independent noise sigma = `noise` and known gaps. For one rival
    Phi(gap / (sqrt(2) sigma)). Without noise 1 if all gaps are above 0, else 0 (a tie is lost). By the trapezoidal
    rule, which is exact to rounding for such an integrand.
    """
    lead = np.asarray(gaps, dtype=np.float64)
    if lead.ndim != 1 or not len(lead) or not np.isfinite(lead).all():
        raise ValueError("gaps: must be a vector with at least one entry, all finite")
    if not_negative("noise", noise) == 0:
        return float((lead > 0).all())
    t = np.linspace(-12.0, 12.0, 1601)
    density = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.sum(density * np.prod(ndtr(t[:, None] + lead / noise), axis=1)) * (t[1] - t[0]))


def cell_mass_needed(wanted: float, users: int, planted: float, gap: float, noise: float) -> float:
    """alpha* = (sqrt(2) sigma Phi^-1(S*)/N + gap)/(P_D(x) + gap): the share that wins a cell with two labels with
    chance `wanted`. Arguments as `cell_gap` and `cell_won`. 0 if it is won without members; infinite where nobody
    suffices."""
    if users < 1:
        raise ValueError(f"users = {users}: must be at least 1")
    lead = math.sqrt(2) * not_negative("noise", noise) * float(ndtri(inside("wanted", wanted))) / users
    own = share("planted", planted)
    if lead + _joint(gap) <= 0:
        return 0.0
    return (lead + gap) / (own + gap) if lead <= own else math.inf


def _joint(gap: float) -> float:
    if not -1 <= gap <= 1:
        raise ValueError(f"gap = {gap}: must be between -1 and 1")
    return float(gap)
