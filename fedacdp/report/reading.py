"""The studies under a folder of results, read into numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fedacdp import contradictions
from fedacdp.config import ConfigError
from fedacdp.labels import settings
from fedacdp.report.numbers import CEILING, FLOOR, MEASURED, Estimate, Key, Point, Run, Setting, StudyResults
from fedacdp.results import finished_runs, table


def studies(folder: Path) -> list[StudyResults]:
    """The studies at or below `folder`, by path. A run that cannot be read is left out and told in the `faults` of its
    study, or of the first where its own has no other; ConfigError if there is no finished run, or a study.json is
    damaged."""
    faults: list[str] = []
    places = dict.fromkeys(folder if path == folder else path.parent for path, _, _ in finished_runs(folder, faults))
    if not places:
        raise ConfigError("; ".join([f"{folder}: no finished runs", *faults]))
    found = [_study(place) for place in places]
    lost = [line for line in faults if not any(line.startswith(f"{place}/") for place in places)]
    return [replace(found[0], faults=(*found[0].faults, *lost)), *found[1:]]


def _study(place: Path) -> StudyResults:
    faults: list[str] = []
    found = list(finished_runs(place, faults))
    labels = settings([experiment for _, _, experiment in found])
    manifests = [manifest for _, manifest, _ in found]
    frame = table(place, faults=[])
    names = sorted({str(manifest["study"]) for manifest in manifests})
    if len(names) > 1:
        faults.append(f"{place}: holds runs of {len(names)} studies, {', '.join(names)}; they are shown as one")
    started = {path.parent for path in place.glob("*/experiment.json")} - {path for path, _, _ in found}
    unfinished = sorted(path.name for path in started if not (path / "manifest.json").exists())
    if unfinished:
        faults.append(f"{place}: {len(unfinished)} runs were begun and not finished: {', '.join(unfinished[:12])}")
    frame = frame[frame["status"] == "done"]
    estimates = _estimates(frame)
    runs = [Run(experiment, label, manifest) for (_, manifest, experiment), label in zip(found, labels, strict=True)]
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
        faults=tuple(faults),
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
    last = frame[frame["metric"].isin(MEASURED)].dropna(subset=["value"])
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
