"""What the page shows, as numbers: settings, runs, points and curves of a study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from fedacdp import bounds
from fedacdp.config import Experiment
from fedacdp.statistics import mean_interval

Key = tuple[str, str]
"""A metric and its group."""

ACCURACY, SUCCESS = ("accuracy", "all"), ("success", "all")
BASELINE, CEILING, FLOOR = "success_baseline", bounds.CEILING, bounds.FLOOR
"""Metrics that stand beside the success of a group."""

LASTED, LASTED_AT_LEAST = "persistence", "persistence_at_least"
MEASURED = ["accuracy", "accuracy_baseline", "success", BASELINE, CEILING, FLOOR, LASTED, LASTED_AT_LEAST]
"""Metrics that the page takes from the last round."""


@dataclass(frozen=True)
class Estimate:
    """The mean of a share over seeds, in ascending order of them, and its 95 % interval, Student's or from 10 seeds on
    the BCa bootstrap's, see `statistics.mean_interval`, cut at 0 and 1. With one seed there is no interval: both ends
    are NaN."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @cached_property
    def interval(self) -> tuple[float, float]:
        low, high = mean_interval(self.values)
        return (low, high) if math.isnan(low) else (max(0.0, low), min(1.0, high))


@dataclass(frozen=True)
class Run:
    """One finished run: what its manifest and experiment say."""

    experiment: Experiment
    setting: str
    manifest: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.experiment.run_id

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def alpha(self) -> float:
        return self.experiment.strategy.alpha

    @property
    def status(self) -> str:
        return str(self.manifest["status"])


@dataclass(frozen=True)
class Point:
    """All runs of one setting at one alpha, and the last round of those that are done: an estimate per metric and
    group. A diverged or failed run is listed and enters no estimate."""

    setting: str
    alpha: float
    runs: tuple[Run, ...]
    estimates: dict[Key, Estimate]

    @property
    def done(self) -> int:
        return sum(run.status == "done" for run in self.runs)

    def mean(self, key: Key) -> float:
        """The mean over the seeds, NaN if nothing was measured."""
        return self.estimates[key].mean if key in self.estimates else math.nan


@dataclass(frozen=True)
class Setting:
    """What distinguishes runs besides seed and alpha: the label of the tidy table, the guarantee as the manifest has
    it, and the points by ascending alpha."""

    label: str
    experiment: Experiment
    guarantee: dict[str, Any]
    points: tuple[Point, ...]

    @property
    def epsilon(self) -> float:
        return float(self.guarantee["epsilon"])

    @property
    def measured(self) -> tuple[Point, ...]:
        """The points at which at least one run is done."""
        return tuple(point for point in self.points if point.done)

    def at(self, alpha: float) -> Point | None:
        """The measured point at this alpha."""
        return next((point for point in self.measured if point.alpha == alpha), None)


@dataclass(frozen=True)
class StudyResults:
    """One study: its question, the plain text of study.json if it is there, and everything measured.

    `curves`: mean over seeds by setting, alpha, round, metric ("accuracy", "success") and group, of done runs.
    `contradictions`: which bounds the measured success contradicts, a sentence each; `unbounded`: why there is no
    ceiling or floor, -> the labels of settings, by metric. `faults`: what in the folder could not be shown, and why.
    """

    name: str
    question: str
    recipe: dict[str, Any] | None
    settings: tuple[Setting, ...]
    runs: tuple[Run, ...]
    curves: pd.DataFrame
    contradictions: tuple[str, ...]
    unbounded: dict[str, dict[str, list[str]]]
    faults: tuple[str, ...] = ()

    @property
    def points(self) -> list[Point]:
        return [point for setting in self.settings for point in setting.points]

    @property
    def seeds(self) -> list[int]:
        """The different numbers of seeds behind the means."""
        return sorted({point.done for point in self.points if point.done})

    @property
    def has_success(self) -> bool:
        return bool(self.goals)

    @cached_property
    def goals(self) -> list[Key]:
        """The success of everybody, or, where there are several collectives, of each."""
        found = {group for point in self.points for metric, group in point.estimates if metric == "success"}
        return [("success", group) for group in sorted({"all"} & found or found) if "." not in group]

    @property
    def groups(self) -> list[str]:
        """The groups of `success` besides its goals."""
        found = {group for point in self.points for metric, group in point.estimates if metric == "success"}
        return sorted(found - {group for _, group in self.goals})

    def has(self, metric: str) -> bool:
        """Whether the metric was measured anywhere."""
        return any(metric == name for point in self.points for name, _ in point.estimates)

    @cached_property
    def alphas(self) -> list[float]:
        """Every alpha with a done run, ascending."""
        return sorted({point.alpha for point in self.points if point.done})

    @cached_property
    def middle(self) -> float | None:
        """The middle (of two, the larger) of the positive alphas that every measured setting has; None for none."""
        shared = [a for a in self.alphas if a > 0 and all(s.at(a) for s in self.settings if s.measured)]
        return shared[len(shared) // 2] if shared else None
