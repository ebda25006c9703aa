"""What the page shows, as numbers: settings, runs, points and curves of each study under a folder of results."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fedacdp import bounds, contradictions
from fedacdp.config import ConfigError, Experiment
from fedacdp.labels import settings
from fedacdp.results import finished_runs, table
from fedacdp.statistics import mean_interval

Key = tuple[str, str]
"""A metric and its group."""

ACCURACY, SUCCESS = ("accuracy", "all"), ("success", "all")
BASELINE, CEILING, FLOOR = "success_baseline", bounds.CEILING, bounds.FLOOR
"""Metrics that stand beside the success of a group."""


@dataclass(frozen=True)
class Estimate:
    """The mean of a share over seeds, and its 95 % interval cut at 0 and 1: Student's, and from ten seeds on BCa's, see
    `statistics.mean_interval`. With one seed there is no interval: both ends are NaN."""

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

    run_id: str
    seed: int
    setting: str
    alpha: float
    manifest: dict[str, Any]

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
    ceiling or floor, -> the labels of settings, by metric.
    """

    name: str
    question: str
    recipe: dict[str, Any] | None
    settings: tuple[Setting, ...]
    runs: tuple[Run, ...]
    curves: pd.DataFrame
    contradictions: tuple[str, ...]
    unbounded: dict[str, dict[str, list[str]]]

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


def studies(folder: Path) -> list[StudyResults]:
    """The studies at or below `folder`, by path; ConfigError if there is no finished run or a file is damaged."""
    places = dict.fromkeys(folder if path == folder else path.parent for path, _, _ in finished_runs(folder))
    if not places:
        raise ConfigError(f"{folder}: no finished runs")
    return [_study(place) for place in places]


def _study(place: Path) -> StudyResults:
    found = list(finished_runs(place))
    labels = settings([experiment for _, _, experiment in found])
    manifests = [manifest for _, manifest, _ in found]
    frame = table(place)
    frame = frame[frame["status"] == "done"]
    estimates = _estimates(frame)
    runs = [
        Run(experiment.run_id, experiment.seed, label, experiment.strategy.alpha, manifest)
        for (_, manifest, experiment), label in zip(found, labels, strict=True)
    ]
    runs.sort(key=lambda run: (run.setting, run.alpha, run.seed))
    first = {label: (experiment, manifest) for (_, manifest, experiment), label in zip(found, labels, strict=True)}
    by_setting = []
    for label, (experiment, manifest) in first.items():
        points = []
        for alpha in sorted({run.alpha for run in runs if run.setting == label}):
            own = tuple(run for run in runs if (run.setting, run.alpha) == (label, alpha))
            points.append(Point(label, alpha, own, estimates.get((label, alpha), {})))
        by_setting.append(Setting(label, experiment, manifest["guarantee"], tuple(points)))
    recipe = _recipe(place)
    return StudyResults(
        name=str((recipe or manifests[0]).get("name", manifests[0]["study"])),
        question=str((recipe or manifests[0])["question"]),
        recipe=recipe,
        settings=tuple(sorted(by_setting, key=_order)),
        runs=tuple(runs),
        curves=_curves(frame),
        contradictions=tuple(contradictions.told(frame)),
        unbounded={metric: _reasons(frame[frame["metric"] == metric]) for metric in (CEILING, FLOOR)},
    )


def _order(setting: Setting) -> tuple[Any, ...]:
    """No privacy first, then the central model, then the local one; users before examples."""
    about = setting.guarantee
    return (
        about["unit"] != "none",
        about["observer"] != "model_holder",
        about["unit"] != "user",
        about["mechanism"],
        setting.epsilon,
        setting.label,
    )


def _estimates(frame: pd.DataFrame) -> dict[tuple[str, float], dict[Key, Estimate]]:
    """By setting and alpha: metric and group -> the estimate over the last rounds of these (done) runs."""
    last = frame[frame["metric"].isin(["accuracy", "success", BASELINE, CEILING, FLOOR])].dropna(subset=["value"])
    last = last[last["round"] == last.groupby("run_id")["round"].transform("max")]
    found: dict[tuple[str, float], dict[Key, Estimate]] = {}
    for (setting, alpha, metric, group), rows in last.groupby(["setting", "alpha", "metric", "group"]):
        values = tuple(float(value) for value in rows["value"])
        found.setdefault((str(setting), float(alpha)), {})[str(metric), str(group)] = Estimate(values)
    return found


def _curves(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[frame["metric"].isin(["accuracy", "success"])]
    return rows.groupby(["setting", "alpha", "round", "metric", "group"], as_index=False)["value"].mean()


def _reasons(rows: pd.DataFrame) -> dict[str, list[str]]:
    absent = rows[rows["value"].isna() & (rows["alpha"] > 0)]
    return {str(note): sorted(set(found["setting"])) for note, found in absent.groupby("note")}


def _recipe(place: Path) -> dict[str, Any] | None:
    path = place / "study.json"
    if not path.exists():
        return None
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        return {name: recipe[name] for name in ("name", "question", "base", "grid")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error})") from None
