"""The participation game: who joins a collective whose success was measured, and when it collapses.

User i joins iff (1 - gamma) S(alpha) + pi >= c_i: c_i its cost, gamma the share of the benefit that a free-rider also
gets (Hardt et al. 2023, second-hand), pi the benefit of privacy. With costs distributed as F (`costs`, a distribution
function), equilibria are the fixed points of alpha -> F((1 - gamma) S(alpha) + pi) (derived). S(alpha) is a measured
curve: shares (A,), ascending, with success (A,), straight in between and flat outside; `measured` has it from a study's
table. Where only the gain over no collective is valued, give success - base.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from fedacdp.theory import ceilings
from fedacdp.theory.domain import not_negative, positive, share, shares

Costs = Callable[[float], float]
"""F(c) = the share of users whose cost of joining is at most c."""

_STEPS = 2000  # points at which the game is looked at, besides the measured ones


@dataclass(frozen=True)
class Equilibrium:
    """A share of users that reproduces itself. Stable if the collective comes back to it; otherwise a tipping mass."""

    alpha: float
    stable: bool


@dataclass(frozen=True)
class Game:
    """The measured curve and what a user weighs. ValueError if the curve or a number is out of range."""

    shares: np.ndarray
    success: np.ndarray
    costs: Costs
    free_riding: float = 0.0
    privacy_benefit: float = 0.0

    def __post_init__(self) -> None:
        at, values = shares("shares", self.shares), np.asarray(self.success, dtype=np.float64)
        if (np.diff(at) <= 0).any():
            raise ValueError("shares: must be ascending, without repetitions")
        if values.shape != at.shape or not np.isfinite(values).all() or (abs(values) > 1).any():
            raise ValueError(f"success: must be {len(at)} numbers between -1 and 1, one for each share")
        share("free_riding", self.free_riding)
        not_negative("privacy_benefit", self.privacy_benefit)

    def joining(self, alpha: float) -> float:
        """The share of users for whom joining pays when a share alpha acts."""
        value = (1 - self.free_riding) * float(np.interp(alpha, self.shares, self.success)) + self.privacy_benefit
        return share("costs", self.costs(value))

    def equilibria(self) -> list[Equilibrium]:
        """All fixed points, ascending, as far as 1/2000 tells them apart.

        Stable: joining crosses the diagonal from above. Where costs or success jump over the diagonal the place of the
        jump is reported. Where it only touches the diagonal, or lies on it, the first such point is reported.
        """
        grid = np.union1d(np.linspace(0, 1, _STEPS + 1), np.asarray(self.shares, dtype=np.float64))
        pull = np.array([self.joining(alpha) - alpha for alpha in grid])
        signs = np.sign(np.where(abs(pull) < 1e-12, 0, pull))
        found, before, touched = [], 1.0, None  # below 0 nobody can leave, above 1 nobody can join
        for index, sign in enumerate(signs):
            if sign == 0:
                touched = float(grid[index]) if touched is None else touched
                continue
            if touched is not None:
                found.append(Equilibrium(touched, before > sign))
            elif sign != before:
                root = brentq(lambda alpha: self.joining(alpha) - alpha, grid[index - 1], grid[index], xtol=1e-14)
                found.append(Equilibrium(float(root), before > sign))
            before, touched = float(sign), None
        if touched is not None:
            found.append(Equilibrium(touched, before > 0))
        return found

    def standing(self, at_least: float = 0.0) -> float | None:
        """The largest stable equilibrium above `at_least`, None if there is none."""
        return max((e.alpha for e in self.equilibria() if e.stable and e.alpha > at_least), default=None)

    def tipping_mass(self, at_least: float = 0.0) -> float:
        """The share from which a collective grows to its largest stable equilibrium; 0 if it starts by itself, infinite
        if no stable equilibrium lies above `at_least`."""
        top = self.standing(at_least)
        if top is None:
            return math.inf
        return max((e.alpha for e in self.equilibria() if not e.stable and e.alpha < top), default=0.0)


def measured(table: pd.DataFrame, setting: str, metric: str = "success", group: str = "all") -> pd.DataFrame:
    """The curve of one setting of a study: columns `alpha`, ascending, `success`, the mean over seeds of the last round
    of the runs that are done, and `runs`, their number.

    table: the tidy table of one study (`fedacdp.results.table`); `metric` and `group` as there. Shares beyond the
    largest one measured have its success in a `Game`, which says nothing about them. ValueError if there are no such
    runs, naming the settings that there are.
    """
    rows = table[(table["metric"] == metric) & (table["group"] == group) & (table["status"] == "done")]
    found = rows[rows["setting"] == setting]
    if found.empty:
        there = ", ".join(sorted({str(name) for name in rows["setting"]})) or "none"
        raise ValueError(f"setting = {setting!r}: no done runs with {metric} of {group}; settings with such: {there}")
    if found["study"].nunique() > 1:
        raise ValueError(
            f"table: {setting!r} is in several studies ({', '.join(sorted(set(found['study'])))}); take one"
        )
    last = found[found["round"] == found.groupby("run_id")["round"].transform("max")]
    curve = last.groupby("alpha", as_index=False)["value"].agg(success="mean", runs="size")
    return curve.sort_values("alpha", ignore_index=True)


def worthwhile_success(cost: float, free_riding: float) -> float:
    """S_c = c / (1 - gamma): joining pays for a user iff success is above it. Infinite where c >= 1 - gamma: never.

    Hardt et al. 2023 (second-hand).
    """
    rest = 1 - share("free_riding", free_riding)
    c = not_negative("cost", cost)
    return c / rest if c < rest else math.inf


def critical_mass(at: np.ndarray, success: np.ndarray, wanted: float) -> float:
    """The smallest share whose measured success, straight between the measured shares, is `wanted`; infinite if none.

    With `worthwhile_success` for `wanted` it is the tipping mass of users with one and the same cost.
    """
    game = Game(at, success, costs=lambda _: 0.0)
    enough = np.flatnonzero(np.asarray(game.success) >= wanted)
    if not len(enough):
        return math.inf
    first = int(enough[0])
    if first == 0:
        return float(game.shares[0])
    low, high = float(game.success[first - 1]), float(game.success[first])
    left, right = float(game.shares[first - 1]), float(game.shares[first])
    return left + (right - left) * (wanted - low) / (high - low)


def collapse_epsilon(epsilons: np.ndarray, games: list[Game], at_least: float = 0.0) -> float:
    """The epsilon below which the collective has no stable equilibrium above `at_least`.

    games: one for each of `epsilons`, ascending, with the same shares, costs and weights but each its own success and
    privacy benefit; in between, both are straight in ln epsilon. Looked for downwards from the largest epsilon:
    infinite if it does not stand there, 0 if it stands everywhere.
    """
    at = np.asarray(epsilons, dtype=np.float64)
    if at.shape != (len(games),) or not len(games) or (at <= 0).any() or (np.diff(at) <= 0).any():
        raise ValueError("epsilons: must be ascending, above 0, and as many as games")
    stands = [game.standing(at_least) is not None for game in games]
    if not stands[-1]:
        return math.inf
    if all(stands):
        return 0.0
    last = max(index for index, there in enumerate(stands) if not there)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _between(games[last], games[last + 1], middle).standing(at_least) is None:
            low = middle
        else:
            high = middle
    return float(at[last] * (at[last + 1] / at[last]) ** high)


def step_collapses(critical: float, costs: Costs, free_riding: float = 0.0, privacy_benefit: float = 0.0) -> bool:
    """Whether no collective stands when success is a step from 0 to 1 at `critical`: F(1 - gamma + pi) < alpha*.

    Derived. The epsilon of the collapse is where both sides are equal.
    """
    return costs(1 - share("free_riding", free_riding) + not_negative("privacy_benefit", privacy_benefit)) < critical


def collapse_epsilon_floor(
    base: float, worthwhile: float, most: float, users: int, delta: float, reach: ceilings.Reach, moved: float = 1.0
) -> float:
    """An epsilon below which no collective of at most a share `most` of users can reach the success S_c = `worthwhile`.

    The epsilon at which `ceilings.necessary_share` is `most`, so it needs no training run: mu = D/(m `most` N) central,
    D/(m `most` sqrt(N)) local_mean, D/(m sqrt(`most` N)) local_reports. Derived, for Gaussians without sampling.
    """
    once = ceilings.necessary_share(base, worthwhile, 1.0, users, reach, moved) / positive("most", share("most", most))
    mu = math.sqrt(once) if reach == "local_reports" else once
    return math.inf if math.isinf(mu) else ceilings.epsilon_of_mu(mu, delta)


def _between(first: Game, second: Game, part: float) -> Game:
    """The game `part` of the way from one to the other."""
    success = (1 - part) * np.asarray(first.success) + part * np.asarray(second.success)
    benefit = (1 - part) * first.privacy_benefit + part * second.privacy_benefit
    return Game(first.shares, success, first.costs, first.free_riding, benefit)
