"""Noise, rates and clip norms that give every group of users its own epsilon, also where the noise changes over rounds.

Boenisch, Muehl, Dziedzic, Rinberg, Papernot, NeurIPS 2023 (IDP-SGD, arXiv 2303.17046). Every person's releases compose
by themselves: what follows is the ledger of one person of a group. Arrays are over groups, (G,).
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from fedacdp.privacy import accounting
from fedacdp.privacy.accounting import Gaussians

Schedule = tuple[tuple[float, int], ...]
"""Phases of a run: the factor on the noise multiplier, and the number of rounds."""

_TIGHT = 0.9995  # a calibrated group spends between 99.9 % and 100 % of its epsilon


OTHERS = "others"
"""Stands for all natural groups that are not named."""


class Phase(BaseModel):
    """Up to and with round `until` the noise multiplier is `noise` times the mechanism's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    until: PositiveInt
    noise: PositiveFloat


def placed(parts: tuple[str, ...], group: np.ndarray) -> np.ndarray:
    """The place among `parts`, groups that have a budget, of every user's natural `group`, (N,) text. ValueError for a
    group that is not there, or that has none."""
    there, code = np.unique(group, return_inverse=True)
    names, some = there.tolist(), ", ".join(there[:20].tolist()) + (", ..." if len(there) > 20 else "")
    named = [part for part in parts if part != OTHERS]
    for part in named:
        if part not in names:
            raise ValueError(f"privacy.budgets.{part}: no such group; there are: {some}")
    missing = [name for name in names if name not in named]
    if missing and OTHERS not in parts:
        raise ValueError(
            f"privacy.budgets: group {missing[0]!r} has none; give it one, or all that are not named, {OTHERS!r}"
        )
    if OTHERS in parts and not missing:
        raise ValueError(f"privacy.budgets.{OTHERS}: all groups are named: {some}")
    return np.array([parts.index(name if name in named else OTHERS) for name in names])[code]


def phases(schedule: tuple[Phase, ...], rounds: int) -> Schedule:
    """The phases of `rounds` rounds, one without a schedule; ValueError if a schedule ends before them."""
    if not schedule:
        return ((1.0, rounds),)
    if schedule[-1].until < rounds:
        raise ValueError(f"privacy.schedule: ends in round {schedule[-1].until}; must reach training.rounds = {rounds}")
    starts = [0, *(phase.until for phase in schedule[:-1])]
    counts = [min(phase.until, rounds) - start for phase, start in zip(schedule, starts, strict=True)]
    return tuple((phase.noise, count) for phase, count in zip(schedule, counts, strict=True) if count > 0)


def ledger(ratio: float, rate: float, schedule: Schedule) -> tuple[Gaussians, ...]:
    """What one person releases over the phases, who is sampled at `rate` under noise of `ratio` times a phase's
    factor, in units of the person's sensitivity."""
    return tuple(Gaussians(ratio * factor, rate, count) for factor, count in schedule)


def first_rounds(schedule: Schedule, rounds: int) -> Schedule:
    """The schedule as far as round `rounds`."""
    found, left = [], rounds
    for factor, count in schedule:
        found.append((factor, max(0, min(count, left))))
        left -= count
    return tuple(found)


def spent(ratio: float, rate: float, schedule: Schedule, delta: float) -> float:
    """The epsilon of one person at `delta`, by PLD."""
    return accounting.epsilon_together(ledger(ratio, rate, schedule), delta)


def rounds_within(budget: float, ratio: float, rate: float, schedule: Schedule, delta: float) -> int:
    """After how many rounds a person has spent at most `budget`."""
    low, high = 0, sum(count for _, count in schedule)
    while low < high:
        middle = (low + high + 1) // 2
        if spent(ratio, rate, first_rounds(schedule, middle), delta) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def ratio_for(budget: float, delta: float, rate: float, schedule: Schedule) -> float:
    """The noise ratio at which one person spends between 0.998 `budget` and `budget`. ValueError if none is found."""
    if len(schedule) == 1:
        [(factor, count)] = schedule
        return accounting.calibrate(budget, delta, rate, count) / factor
    accounting.check_target(budget)
    guess = _ratio_of(accounting.mu_of(budget, delta) / rate, schedule)
    found = accounting.secant(lambda ratio: spent(ratio, rate, schedule, delta), budget, guess, guess * 1.05)
    if found is None:
        raise ValueError(f"epsilon = {budget:g}: no noise found that spends it (rate {rate:g}, delta {delta:g})")
    return found


def rates_for(
    budgets: np.ndarray, shares: np.ndarray, delta: float, rate: float, schedule: Schedule
) -> tuple[float, np.ndarray] | None:
    """SAMPLE: one noise ratio and a rate for each group, (G,), so that a person of group p spends at most budgets[p]
    and at least 99.9 % of it, and the mean of the rates over `shares` is `rate`. None if some group would have to be
    sampled in more than every round.

    By the central limit theorem a person sampled at rate q spends mu = q kappa(ratio), so mus by group give rates and
    ratio in closed form; they are corrected until the accountant agrees.
    """
    for budget in budgets:
        accounting.check_target(float(budget))
    wanted = np.array([accounting.mu_of(float(budget) * _TIGHT, delta) for budget in budgets])
    mus = wanted.copy()
    for _ in range(60):
        kappa = float(shares @ mus) / rate
        ratio, rates = _ratio_of(kappa, schedule), np.where(mus / kappa > 1 - 1e-9, 1.0, mus / kappa)
        found = [spent(ratio, float(each), schedule, delta) for each in rates]
        if all(0.999 * budget <= value <= budget for value, budget in zip(found, budgets, strict=True)):
            return (ratio, rates) if math.isclose(float(shares @ rates), rate, rel_tol=1e-9) else None
        mus = mus * wanted / np.array([accounting.mu_of(max(value, accounting.SMALLEST), delta) for value in found])
    return None


def cannot(
    names: list[str], budgets: np.ndarray, shares: np.ndarray, delta: float, rate: float, schedule: Schedule
) -> str:
    """Why `rates_for` found none, with the smallest epsilon that all groups but the one with the largest budget can
    have, if they have the same and that group takes part in every round."""
    top = int(np.argmax(budgets))
    start = f"privacy.budgets.{names[top]} = {budgets[top]:g}: cannot be met beside the others"
    if rate <= shares[top]:
        return f"{start}; no rates were found that spend these budgets"
    ratio = ratio_for(float(budgets[top]), delta, 1.0, schedule)
    least = 1.003 * spent(ratio, float((rate - shares[top]) / (1 - shares[top])), schedule, delta)
    least = min(float(budgets[top]), math.ceil(least * 1000) / 1000)
    return (
        f"{start}: its users would have to take part in more than every round; with sampling_prob = {rate:g} the "
        f"smallest epsilon of the other groups with which it can is {least:g}"
    )


def _ratio_of(kappa: float, schedule: Schedule) -> float:
    """The noise ratio with sqrt(sum over phases of count (e^(1 / (ratio factor)^2) - 1)) = kappa (Bu, Dong, Long, Su
    2020, arXiv 1911.11607): a first guess, never an accounting."""
    from scipy.optimize import brentq

    def excess(log: float) -> float:
        powers = [min(700.0, math.exp(-2 * log) / factor**2) for factor, count in schedule if count]
        counts = [count for _, count in schedule if count]
        total = sum(count * math.expm1(power) for count, power in zip(counts, powers, strict=True))
        return math.log(total) - 2 * math.log(kappa)

    return math.exp(float(brentq(excess, -3.0, 15.0, xtol=1e-12)))
