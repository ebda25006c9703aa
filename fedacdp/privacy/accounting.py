"""From a mechanism's event to epsilon and back, by dp-accounting (privacy loss distributions).

The privacy loss distribution (PLD) accountant is tight for unsampled and for Poisson-sampled Gaussians under
add-or-remove adjacency, the only events that reach this file; an unsampled replacement is already rescaled to
sigma / sensitivity by its mechanism, because the accountants disagree on whether replace-one doubles it. The libraries
are imported where they are used: nodes do no accounting, and they take two seconds to load.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dp_accounting import DpEvent

ACCOUNTANT = f"PLD (dp-accounting {importlib.metadata.version('dp-accounting')})"
SMALLEST = 1e-4
"""The smallest epsilon that the accountant, which works on a grid of losses, can tell from 0."""
_WHOLE_ORDERS = [*range(2, 33), 48, 64, 96, 128, 256, 512, 1024]  # fractional ones are slow, and warn
_TIGHT = 0.999  # a calibrated run spends between 99.8 % and 100 % of its epsilon


@dataclass(frozen=True)
class Gaussians:
    """`count` releases of a Gaussian with noise `ratio` = sigma / sensitivity, each on a Poisson sample at `rate`."""

    ratio: float
    rate: float
    count: int

    @property
    def event(self) -> DpEvent:
        """The event in dp-accounting's words."""
        from dp_accounting import GaussianDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        if self.count == 0 or self.rate == 0:
            return NoOpDpEvent()
        once = GaussianDpEvent(self.ratio)
        return SelfComposedDpEvent(once if self.rate == 1 else PoissonSampledDpEvent(self.rate, once), self.count)

    @property
    def mu(self) -> float | None:
        """The Gaussian-DP parameter sqrt(count) / ratio where it is exact (no sampling) (Dong et al. 2022)."""
        return math.sqrt(self.count) / self.ratio if self.rate == 1 and self.ratio > 0 else None


def epsilon(releases: Gaussians, delta: float) -> float:
    """The epsilon of these releases at `delta`, by PLD; infinity without noise, 0 without releases."""
    return epsilon_together((releases,), delta)


@lru_cache(maxsize=4096)
def epsilon_together(releases: tuple[Gaussians, ...], delta: float) -> float:
    """The epsilon at `delta` of different releases about one unit, one after another, by PLD; as `epsilon`."""
    some = [each for each in releases if each.count and each.rate]
    if not some:
        return 0.0
    if any(each.ratio == 0 for each in some):
        return math.inf
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for each in some:
        accountant.compose(each.event)
    return float(accountant.get_epsilon(delta))


def epsilon_rdp(releases: Gaussians, delta: float) -> float:
    """An upper bound by Renyi DP at whole orders: loose and fast. A first guess, never a printed epsilon."""
    from dp_accounting.rdp import RdpAccountant

    return float(RdpAccountant(_WHOLE_ORDERS).compose(releases.event).get_epsilon(delta))


@lru_cache(maxsize=64)
def deltas(releases: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    """Of noisy releases the whole curve, by PLD: epsilon (G,) from 0 on, and delta (G,) there."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant().compose(releases.event)
    grid = np.concatenate([np.linspace(0, 10, 201), np.linspace(10, 60, 101)[1:]])
    return grid, np.array([accountant.get_delta(float(epsilon)) for epsilon in grid])


def delta_of_mu(eps: float, mu: float) -> float:
    """delta(epsilon) of mu-Gaussian DP, exact (Balle and Wang 2018, Theorem 8; Dong et al. 2022, Corollary 2.13)."""
    from scipy.special import log_ndtr, ndtr

    return float(ndtr(-eps / mu + mu / 2) - math.exp(eps + log_ndtr(-eps / mu - mu / 2)))


def mu_of(eps: float, delta: float) -> float:
    """The mu at which Gaussian DP is exactly (eps, delta)."""
    from scipy.optimize import brentq

    return float(brentq(lambda mu: delta_of_mu(eps, mu) - delta, 1e-6, 1e3, xtol=1e-12))


@lru_cache(maxsize=4096)
def calibrate(target: float, delta: float, rate: float, count: int) -> float:
    """The smallest noise ratio sigma / sensitivity found whose epsilon is at most `target` and at least 0.998 target.

    A secant on log(ratio), log(epsilon), started from the Renyi answer: a PLD costs about a second, so evaluations are
    few. Where nothing is sampled the answer is exact and needs one check. ValueError if no noise would do.
    """
    check_target(target, "privacy.epsilon")
    try:
        return _spending(target, delta, rate, count)
    except ValueError:  # a root or a logarithm that is not there
        raise ValueError(
            f"privacy.epsilon = {target:g}: too small or too large, no noise is found that spends it (rate {rate:g}, "
            f"{count} releases, delta {delta:g})"
        ) from None


def _spending(target: float, delta: float, rate: float, count: int) -> float:
    from scipy.optimize import brentq

    if rate == 1:
        exact = math.sqrt(count) / mu_of(target, delta)
        low, high = exact * 0.9999, exact * 1.001
    else:
        rdp_ratio = brentq(lambda log: epsilon_rdp(Gaussians(math.exp(log), rate, count), delta) - target, -3.0, 12.0,
                           xtol=1e-3)  # fmt: skip
        low, high = math.exp(rdp_ratio) * 0.9, math.exp(rdp_ratio) * 1.002
    found = secant(lambda ratio: epsilon(Gaussians(ratio, rate, count), delta), target, low, high)
    if found is None:
        raise ValueError("the secant does not arrive")
    return found


def check_target(target: float, name: str = "epsilon") -> None:
    """ValueError for an epsilon that the accountant cannot tell from 0."""
    if target < SMALLEST:
        raise ValueError(f"{name} = {target:g}: cannot be met; the smallest epsilon that can is {SMALLEST:g}")


def secant(spent: Callable[[float], float], target: float, low: float, high: float) -> float | None:
    """The noise at which `spent`(noise) is between 0.998 target and target, by a secant on the logarithms of both from
    two noises near it; None if it is not found."""
    goal = math.log(target * _TIGHT)
    points = [(math.log(ratio), math.log(spent(ratio))) for ratio in (low, high)]
    for _ in range(20):
        for ratio, value in points:
            if math.log(target * 0.998) <= value <= math.log(target):
                return math.exp(ratio)
        (x0, y0), (x1, y1) = points[-2:]
        x = x1 + (goal - y1) * (x1 - x0) / (y1 - y0)
        points.append((x, math.log(spent(math.exp(x)))))
    return None


@lru_cache(maxsize=4096)  # seconds each, and the same for all runs of a mechanism
def second_opinions(releases: Gaussians, delta: float) -> dict[str, float]:
    """Epsilon by Opacus' RDP and PRV accountants. They know Poisson-sampled Gaussians under add-or-remove only, which
    is what `Gaussians` holds. Opacus' GDP accountant under-reports and is not asked."""
    from opacus.accountants import PRVAccountant
    from opacus.accountants import RDPAccountant as OpacusRdp

    if releases.ratio == 0 or releases.count == 0 or releases.rate == 0:
        return {}
    opinions = {}
    for name, accountant in {"opacus_rdp": OpacusRdp(), "opacus_prv": PRVAccountant()}.items():
        accountant.history = [(releases.ratio, releases.rate, releases.count)]
        try:
            with np.errstate(all="ignore"):
                opinions[name] = float(accountant.get_epsilon(delta))
        except (ValueError, RuntimeError, MemoryError):  # PRV cannot discretise very large losses
            continue
    return opinions
