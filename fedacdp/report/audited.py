"""The answer of `fedacdp audit` in words, as tables, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from fedacdp.anonymity import SCORES
from fedacdp.config import ConfigError
from fedacdp.findings import Finding
from fedacdp.report.figures import STYLES
from fedacdp.report.odds import odds
from fedacdp.report.picture import save
from fedacdp.results import as_csv

VIEWS = {
    "messages": "every update before any noise",
    "noised": "every message as it is sent",
    "sum": "each round's sum with its noise, and who took part",
    "models": "the released models alone",
}
_NUMBERS = ("value", "low", "high", "chance", "ceiling", "control")
_AGAINST = {"model_holder": ("models",), "server": ("noised", "sum", "models"), "none": ()}


def odds_line(guarantee: dict[str, Any], view: str, found: Sequence[Finding]) -> str:
    """What the guarantee allows who has this view, and what the attacks that are not told anything reached."""
    allowed = f"Nothing in the guarantee limits what can be told from {VIEWS[view]}."
    if view in _AGAINST.get(str(guarantee["observer"]), ()):
        allowed = odds(guarantee)
    for rate in ("1", "10"):
        best = [f for f in found if f.measure == f"TPR at {rate} % FPR" and f.value is not None and f.attack in SCORES]
        if best:
            top = max(best, key=lambda finding: finding.value or 0.0)
            return (
                f"{allowed} Here, of 100 people who are no members, the best score ({top.attack}) flags {rate} by "
                f"mistake and {100 * (top.value or 0.0):.1f} of 100 members."
            )
    return allowed


def told(run: dict[str, Any]) -> str:
    """One run: what was looked at, then a line for each number."""
    same = {True: "yes, bit for bit", False: "NO: the numbers are of another run", None: "its model was not kept"}
    lines = [
        f"{run['setting']}, alpha {run['alpha']:g}, seed {run['seed']}: {run['members']} members, {run['users']} users",
        f"Seen: {VIEWS[run['view']]}. Repeated as it was: {same[run['reproduced']]}.",
        f"Ceiling: {run['ceiling']}.",
        run["odds"],
        *(f"Note: {note}." for note in run["notes"]),
        "",
    ]
    header = ["attack", "measure", *_NUMBERS, "note"]
    body = [[_shown(finding[name]) for name in header] for finding in run["findings"]]
    widths = [max(len(row[at]) for row in [header, *body]) for at in range(len(header) - 1)]
    for row in [header, *body]:
        cells = [cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in
                 enumerate(zip(row, widths, strict=False))]  # fmt: skip
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def summary(runs: list[dict[str, Any]]) -> str:
    """Several runs: a line for each setting and alpha with the AUC of each attack, its ceiling, and that of the control
    of the first in brackets; means over the seeds."""
    frame = _frame(runs)
    auc = frame[frame["measure"] == "AUC"]
    keys, order = ["setting", "alpha"], list(dict.fromkeys(auc["attack"]))
    found = auc.pivot_table(index=keys, columns="attack", values="value", sort=False)
    seeds = auc.groupby(keys)["seed"].nunique()
    limit = auc[auc["attack"].isin(SCORES)].groupby(keys)["ceiling"].mean()
    shown = [name for name in order if name in found]
    header = ["setting", "alpha", "seeds", *shown, "ceiling"]
    body = [
        [
            str(setting),
            f"{alpha:g}",
            str(seeds[setting, alpha]),
            *(_shown(row[name]) for name in shown),
            _shown(limit.get((setting, alpha))),
        ]
        for (setting, alpha), row in found.iterrows()
    ]
    lines = ["AUC, mean over seeds; --format json and csv have everything."]
    widths = [max(len(row[at]) for row in [header, *body]) for at in range(len(header))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *body]]
    failed = [run["run_id"] for run in runs if run["reproduced"] is False]
    if failed:
        lines.append(f"Not repeated as they were: {', '.join(failed)}")
    return "\n".join(lines)


def rows(runs: list[dict[str, Any]]) -> str:
    """Every number of every run as CSV."""
    return as_csv(_frame(runs))


def draw(run: dict[str, Any], path: Path) -> None:
    """The ROC curves of one run, both axes logarithmic, as SVG or PNG by the file's ending; dotted: chance."""
    names = list(run["curves"])
    if not names:
        raise ConfigError(f"--picture = {path}: there is no curve to draw; {run['findings'][0]['note']}")
    points = [
        {"score": name, "fpr": fpr, "tpr": tpr}
        for name in names
        for fpr, tpr in run["curves"][name]
        if fpr > 0 and tpr > 0
    ]
    least = min([point["fpr"] for point in points] + [point["tpr"] for point in points])
    chance = [{"fpr": least, "tpr": least}, {"fpr": 1.0, "tpr": 1.0}]
    styles = [STYLES[place % len(STYLES)] for place in range(len(names))]
    dashes = [dash if place < len(STYLES) else [1, 4] for place, (_, dash, _) in enumerate(styles)]
    legend = alt.Legend(orient="bottom", columns=2, symbolSize=320)
    scale = alt.Scale(type="log", domain=[least, 1.0], nice=False)
    x = alt.X("fpr:Q", title="False-positive rate", scale=scale, axis=alt.Axis(format="~g", grid=False))
    y = alt.Y("tpr:Q", title="True-positive rate", scale=scale, axis=alt.Axis(format="~g"))
    color = alt.Color("score:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=[s[0] for s in styles]))
    dash = alt.StrokeDash("score:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=dashes))
    lines = alt.Chart(alt.InlineData(values=points)).mark_line(interpolate="step-after", strokeWidth=2)
    diagonal = alt.Chart(alt.InlineData(values=chance)).mark_line(strokeDash=[1, 3], strokeWidth=1.2, color="#555")
    title = f"Singling out members from {VIEWS[run['view']]}"
    layers = alt.layer(diagonal.encode(x=x, y=y), lines.encode(x=x, y=y, color=color, strokeDash=dash))
    save(layers.properties(width=400, height=400, title=title), path)


def _frame(runs: list[dict[str, Any]]) -> pd.DataFrame:
    about = ["study", "run_id", "setting", "mechanism", "epsilon", "alpha", "seed", "view", "members", "users",
             "reproduced"]  # fmt: skip
    found = [{name: run[name] for name in about} | finding for run in runs for finding in run["findings"]]
    return pd.DataFrame(found).astype(dict.fromkeys(_NUMBERS, "float64"))


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return value if isinstance(value, str) else f"{value:.3f}"
