"""Central and local privacy at one total (epsilon, delta), of one unit and one adjacency, by the noise on the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians
from fedacdp.privacy.base import Plan
from fedacdp.theory import signal_to_noise

Adjacency = Literal["replace_one", "add_or_remove", "customary"]
MECHANISMS = ("central", "local_update", "local_dpsgd")
UNITS = {"central": "user", "local_update": "user", "local_dpsgd": "example"}


@dataclass(frozen=True)
class Compared:
    """A mechanism at the common epsilon.

    `sigma`: noise std per coordinate, on the sum (central) or on one message. `noise_on_mean`: on the mean of a round.
    `messages`: the most of a user that the epsilon covers. `members`: members in each cohort for the wanted ratio of
    signal to noise. `user_epsilon`, `user_delta`: what a user with all of its records has, infinite where nothing
    finite is known.
    """

    mechanism: str
    unit: str
    observer: str
    adjacency: str
    noise_multiplier: float
    sigma: float
    noise_on_mean: float
    messages: int
    members: float
    user_epsilon: float
    user_delta: float
    note: str = ""


def compare(
    epsilon: float,
    delta: float,
    plan: Plan,
    clip_norm: float,
    mechanisms: Sequence[str] = ("central", "local_update"),
    *,
    adjacency: Adjacency = "replace_one",
    max_messages: int | None = None,
    snr: float = 1.0,
    across_units: bool = False,
    records: int | None = None,
) -> list[Compared]:
    """Each mechanism with the noise at which its whole run spends `epsilon` at `delta`.

    adjacency: `replace_one` and `add_or_remove` account all mechanisms with the same neighbours: sensitivity 2C and C
    (of central noise under replacement dp-accounting's own tight analysis; the neighbours of a message under
    add-or-remove are a user's message and one of noise alone); `customary` is central and local_dpsgd under
    add-or-remove and local_update under replacement, which are NOT the same promise. `max_messages` of a user, default
    ceil(qT). `records`: of one user, to convert an epsilon of examples. ValueError for unknown mechanisms, and for
    mechanisms of different units unless `across_units`.
    """
    unknown = [name for name in mechanisms if name not in MECHANISMS]
    if unknown or not mechanisms:
        raise ValueError(f"mechanisms = {unknown[0] if unknown else 'none'}: known: {', '.join(MECHANISMS)}")
    units = {UNITS[name] for name in mechanisms}
    if len(units) > 1 and not across_units:
        raise ValueError(
            "mechanisms: an epsilon of examples and one of users are different promises; across_units puts them into "
            "one comparison all the same"
        )
    if not 0 < epsilon < math.inf or not 0 < delta < 1:
        raise ValueError(f"epsilon, delta = {epsilon:g}, {delta:g}: epsilon must be above 0, delta between 0 and 1")
    limit = min(plan.rounds, max_messages or plan.usual_messages)
    each = math.ceil(plan.batch / plan.batch_prob - 1e-9) if records is None else records
    found = []
    for name in mechanisms:
        replaced = adjacency == "replace_one" or (adjacency == "customary" and name == "local_update")
        told = "replace_one" if replaced else "add_or_remove"
        if name == "central":
            z = multiplier(epsilon, delta, Gaussians(1.0, plan.sampling_prob, plan.rounds), replaced)
            on_mean = signal_to_noise.central_noise_on_mean(z, clip_norm, plan.cohort)
            about, whole, note = ("model_holder", told), (epsilon, delta), ""
        elif name == "local_update":
            apart = plan.diameter if replaced else 1.0
            z = apart * accounting.calibrate(epsilon, delta, 1.0, limit)
            on_mean = signal_to_noise.local_noise_on_mean(z * clip_norm, plan.cohort)
            about, whole, note = ("server", told), (epsilon, delta), ""
        else:
            steps = Gaussians(1.0, plan.batch_prob, plan.local_steps * limit)
            z = multiplier(epsilon, delta, steps, replaced)
            step = z * clip_norm / plan.batch * math.sqrt(plan.local_steps)  # in units of the local learning rate
            on_mean = signal_to_noise.local_noise_on_mean(step, plan.cohort)
            about = ("server", told)
            whole = of_a_user(Gaussians(z, steps.rate, steps.count), epsilon, delta, each, replaced)
            note = f"noise in units of the local learning rate; a user of {each} examples"
        needed = math.nan if name == "local_dpsgd" else signal_to_noise.members_needed(
            snr, clip_norm, plan.cohort, on_mean, plan.rounds
        )  # fmt: skip
        found.append(Compared(name, UNITS[name], *about, z, z * clip_norm, on_mean,
                              plan.rounds if name == "central" else limit, needed, *whole, note))  # fmt: skip
    return found


def multiplier(epsilon: float, delta: float, shape: Gaussians, replaced: bool) -> float:
    """sigma / C at which `shape`'s releases of sensitivity C under add-or-remove spend `epsilon`, or, `replaced`, do so
    when a unit's data are replaced, which move a release by up to 2C. ValueError if none is found."""
    if not replaced or shape.rate == 1:
        return (2.0 if replaced else 1.0) * accounting.calibrate(epsilon, delta, shape.rate, shape.count)
    guess = accounting.calibrate(epsilon, delta, shape.rate, shape.count)
    found = accounting.secant(
        lambda z: epsilon_replaced(Gaussians(z, shape.rate, shape.count), delta), epsilon, 1.7 * guess, 2 * guess
    )
    if found is None:
        raise ValueError(f"epsilon = {epsilon:g}: no noise found that spends it under replacement")
    return found


@lru_cache(maxsize=256)
def epsilon_replaced(releases: Gaussians, delta: float) -> float:
    """Epsilon, by PLD, of releases whose `ratio` is sigma / C, C the sensitivity under add-or-remove, when a unit is
    replaced: its two contributions are up to 2C apart, which the accountant allows for itself."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    if releases.rate == 1:
        return accounting.epsilon(Gaussians(releases.ratio / 2, 1.0, releases.count), delta)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    return float(accountant.compose(releases.event).get_epsilon(delta))


def of_a_user(
    releases: Gaussians, epsilon: float, delta: float, records: int, replaced: bool = False
) -> tuple[float, float]:
    """What (epsilon, delta) of one example is worth to a user who holds `records` of them, as (epsilon, delta).

    Under add-or-remove tight: all of a user's examples enter each batch independently, so together they shift the sum
    by Binomial(records, rate) clip norms (`group_epsilon`), at the same delta. Under replacement by the general bound
    (`group_bound`), (inf, nan) where its delta is no delta any more.
    """
    if records == 1:
        return epsilon, delta
    if not replaced:
        return group_epsilon(releases, records, delta), delta
    return group_bound(epsilon, delta, records) or (math.inf, math.nan)


def group_bound(epsilon: float, delta: float, records: int) -> tuple[float, float] | None:
    """(r epsilon, r e^((r - 1) epsilon) delta), which r = `records` units have together under any (epsilon, delta)
    mechanism (Dwork and Roth 2014; Vadhan 2017, Lemma 2.2); None where that delta is not below 1: nothing finite."""
    exponent = (records - 1) * epsilon + math.log(records * delta)
    return (records * epsilon, math.exp(exponent)) if exponent < 0 else None


@lru_cache(maxsize=64)
def group_epsilon(releases: Gaussians, records: int, delta: float) -> float:
    """Epsilon at `delta` of `records` units together, added or removed, each in a Poisson sample of its own: by PLD of
    a mixture of Gaussians, means 0 to r with binomial weights. Without sampling exact: r mu (Dong et al. 2022). Losses
    of many units are put on a coarser grid, rounded up."""
    if releases.rate == 1:
        return accounting.epsilon(Gaussians(releases.ratio / records, 1.0, releases.count), delta)
    from dp_accounting import SelfComposedDpEvent
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent
    from dp_accounting.pld import PLDAccountant
    from scipy.stats import binom

    shifts = list(range(records + 1))
    chances = binom.pmf(shifts, records, releases.rate)
    once = MixtureOfGaussiansDpEvent(releases.ratio, shifts, (chances / chances.sum()).tolist())
    accountant = PLDAccountant(value_discretization_interval=1e-4 if records <= 3 else 1e-2)
    return float(accountant.compose(SelfComposedDpEvent(once, releases.count)).get_epsilon(delta))
