"""The numbers of the page as CSV, held by the page itself."""

from __future__ import annotations

import base64
import math
from typing import Any

import pandas as pd

from fedacdp.report.numbers import StudyResults
from fedacdp.report.words import names
from fedacdp.results import as_csv

_POINT = [
    "setting",
    "name",
    "mechanism",
    "epsilon",
    "delta",
    "alpha",
    "metric",
    "group",
    "seeds",
    "mean",
    "low",
    "high",
]


def points(study: StudyResults) -> str:
    """One row per point, metric and group: mean, 95 % interval, number of seeds, and the runs."""
    named, rows = names(study.settings), []
    for setting in study.settings:
        for point in setting.measured:
            done = [run for run in point.runs if run.status == "done"]
            fixed = {
                "setting": setting.label,
                "name": named[setting.label],
                "mechanism": setting.guarantee["mechanism"],
                **{name: _number(setting.guarantee[name]) for name in ("epsilon", "delta")},
                "alpha": point.alpha,
                "runs": " ".join(run.run_id for run in done),
            }
            for (metric, group), estimate in sorted(point.estimates.items()):
                low, high = (math.nan, math.nan) if metric.startswith("persistence") else estimate.interval
                values = {"seeds": len(estimate.values), "mean": estimate.mean, "low": low, "high": high}
                rows.append(fixed | {"metric": metric, "group": group} | values)
    return as_csv(pd.DataFrame(rows, columns=[*_POINT, "runs"]))


def runs(study: StudyResults) -> str:
    """One row per run: what it was, how it ended, and its configuration."""
    rows = [
        {"run_id": run.run_id, "seed": run.seed, "setting": run.setting, "alpha": run.alpha, "status": run.status}
        | {name: run.manifest.get(name) for name in ("reason", "role", "members", "rounds_done", "started", "seconds")}
        | {"config": run.experiment.text}
        for run in study.runs
    ]
    return as_csv(pd.DataFrame(rows))


def link(text: str) -> str:
    """A text file as the address of a download."""
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
