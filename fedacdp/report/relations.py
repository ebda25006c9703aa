"""Figures that set measured numbers against each other: critical mass against epsilon, accuracy against success, and
success by two ways of taking part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np

from fedacdp import statistics
from fedacdp.report.answer import ENOUGH
from fedacdp.report.figures import SHARE_LABEL, STYLES, Rows, data, encodings, percent_axis, styled
from fedacdp.report.numbers import ACCURACY, Key, Point, Setting, StudyResults
from fedacdp.report.words import names, percent, place, share, titled
from fedacdp.statistics import CriticalMass

AXES: dict[str, tuple[str, Callable[[Setting, Point], float]]] = {
    "alpha": ("Share of users in the collective", lambda setting, point: point.alpha),
    "compliance": (
        "Members who act",
        lambda setting, point: setting.experiment.strategy.compliance,
    ),
    "sampling_prob": (
        "Users asked in a round",
        lambda setting, point: setting.experiment.training.sampling_prob,
    ),
}
"""What participation is made of: field -> its title and its value at a point."""

_FIELDS = (("strategy", "compliance"), ("training", "sampling_prob"))

MAPS = 6
"""As many heat maps as a page draws."""


def critical_mass(setting: Setting, key: Key) -> CriticalMass | None:
    """Where the mean of `key` first reaches ENOUGH, of the seeds that every measured point of the setting has, see
    `statistics.critical_mass`; None where no two points have a seed in common."""
    found: dict[float, dict[int, float]] = {}
    for point in setting.measured:
        done = [run.seed for run in point.runs if run.status == "done"]
        if key in point.estimates and len(done) == len(point.estimates[key].values):
            found[point.alpha] = dict(zip(done, point.estimates[key].values, strict=True))
    common = sorted(set.intersection(*map(set, found.values()))) if found else []
    if not common or len(found) < 2:
        return None
    curves = np.array([[values[seed] for values in found.values()] for seed in common])
    return statistics.critical_mass(list(found), curves, ENOUGH)


def masses(study: StudyResults, key: Key) -> Rows:
    """The critical mass of each setting with a finite epsilon of whose mechanism other epsilons were measured too, with
    its interval; `reached` is false where it lies above the largest measured alpha, which then stands in its place, as
    it does for an end of the interval (`high_known`)."""
    rows: Rows = []
    for setting in study.settings:
        found = critical_mass(setting, key) if math.isfinite(setting.epsilon) else None
        if found is None:
            continue
        most = setting.measured[-1].alpha
        low, high = (None if math.isnan(end) else min(end, most) for end in (found.low, found.high))
        rows.append(
            {"kind": place(setting), "setting": _beside_epsilon(setting), "epsilon": setting.epsilon,
             "value": min(found.value, most), "reached": found.value <= most, "low": low, "high": high,
             "high_known": found.high <= most, "seeds": found.seeds}
        )  # fmt: skip
    lines: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        lines.setdefault((row["kind"], row["setting"]), set()).add(row["epsilon"])
    return [row for row in rows if len(lines[row["kind"], row["setting"]]) > 1]


def _beside_epsilon(setting: Setting) -> str:
    words = setting.label.split()[1:]
    budget = ("epsilon=", "noise_multiplier=", "message_epsilon=")
    return " ".join(word for word in words if not word.startswith(budget)) or "as it is"


def mass_against_epsilon(rows: Rows, title: str) -> alt.HConcatChart:
    """The critical mass against epsilon, a frame for each kind of guarantee, because their epsilons are not on one
    scale; an open triangle where it was not reached, at the largest share that was tried."""
    lines = list(dict.fromkeys(row["setting"] for row in rows))
    color, dash, _ = encodings(lines, 320 if len(lines) > 1 else None)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    most = max(row["high"] or row["value"] for row in rows)
    up = alt.Axis(labelExpr=SHARE_LABEL, tickCount=5)
    scale = alt.Scale(domain=[0, most * 1.05], nice=False)
    y = alt.Y("value:Q", title=None, scale=scale, axis=up)
    frames = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        values = sorted({row["epsilon"] for row in own})
        axis = alt.Axis(values=values, format=".3~g", grid=False, labelOverlap=True)
        x = alt.X("epsilon:Q", title="Epsilon", axis=axis, scale=alt.Scale(type="log", nice=False, padding=12))
        reached, not_reached = ([row for row in own if row["reached"] is flag] for flag in (True, False))
        frame = alt.layer(
            data(own)
            .mark_rule(strokeWidth=1.2, opacity=0.7)
            .encode(x=x, y=alt.Y("low:Q", title=None, scale=scale, axis=up), y2="high:Q", color=color),
            data(reached).mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color, strokeDash=dash),
            data(reached).mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color),
            data(not_reached).mark_point(shape="triangle-up", size=90).encode(x=x, y=y, color=color),
        )
        frames.append(
            frame.properties(width=(400 - 50 * (len(kinds) - 1)) / len(kinds), height=220, title=kind.capitalize())
        )
    return styled(alt.hconcat(*frames, spacing=24).properties(title=title))


def told_masses(rows: Rows) -> list[str]:
    """The critical masses in words, one line per kind of guarantee and variant."""
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["epsilon"]):
        name = row["kind"] + ("" if row["setting"] == "as it is" else f" ({row['setting']})")
        text = _short(row["value"])
        text = text if row["reached"] else f"not reached at {text}, the largest measured,"
        if row["low"] is not None:
            high = _short(row["high"]) if row["high_known"] else "not reached"
            text += f" (95\u00a0% interval {_short(row['low'])} \u2013 {high}, {row['seeds']} seeds)"
        lines.setdefault(name, []).append(f"{text} with \u03b5\u00a0=\u00a0{row['epsilon']:.3g}")
    return [f"{name}: {'; '.join(parts)}." for name, parts in lines.items()]


def _short(alpha: float) -> str:
    return share(float(f"{alpha:.3g}"))


def accuracy_against_success(study: StudyResults, settings: Sequence[Setting], key: Key, title: str) -> alt.LayerChart:
    """The model's accuracy against `key`, a mark for every point, joined by ascending alpha."""
    named = names(study.settings)
    color, dash, shape = encodings([named[setting.label] for setting in settings], 90)
    rows = [
        {"setting": named[s.label], "alpha": p.alpha, "value": p.mean(ACCURACY), "success": p.mean(key)}
        for s in settings
        for p in s.measured
        if {key, ACCURACY} <= set(p.estimates)
    ]
    axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1], grid=False)
    x = alt.X("success:Q", title=title, scale=alt.Scale(domain=[0, 1]), axis=axis)
    y = percent_axis("value")
    line = data(rows).mark_line(strokeWidth=1.2, opacity=0.6)
    chart = alt.layer(
        line.encode(x=x, y=y, color=color, strokeDash=dash, order="alpha:Q"),
        data(rows).mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    )
    return styled(chart.properties(width=400, height=280, title=f"Accuracy against {title.lower()}"))


def told_tradeoff(study: StudyResults, settings: Sequence[Setting], key: Key) -> str:
    """The text alternative of accuracy against `key`: every pair."""
    named = names(study.settings)
    lines = [
        f"{named[s.label]}: "
        + ", ".join(
            f"accuracy {percent(p.mean(ACCURACY))} and success {percent(p.mean(key))} at a share of {share(p.alpha)}"
            for p in s.measured
            if key in p.estimates
        )
        for s in settings
        if any(key in p.estimates for p in s.measured)
    ]
    return f"Chart of the model\u2019s accuracy against {titled(key).lower()}. {'. '.join(lines)}."


def varied(study: StudyResults) -> list[str]:
    """Which two ways of taking part the study varies, those of `AXES` with the most values first; none if fewer."""
    pairs = [(setting, point) for setting in study.settings for point in setting.measured]
    counts = {name: len({value(*pair) for pair in pairs if pair[1].alpha > 0}) for name, (_, value) in AXES.items()}
    found = [name for name in AXES if counts[name] > 1]
    return found[:2] if len(found) > 1 else []


def heat_maps(study: StudyResults, key: Key) -> list[tuple[str, Rows]]:
    """For all that is the same but the two ways of taking part: its name, and `key` by both, where both vary."""
    axes = varied(study)
    if not axes:
        return []
    dropped = tuple(f"{part}.{name}=" for part, name in _FIELDS if name in axes)
    settings = [
        replace(s, label=" ".join(word for word in s.label.split() if not word.startswith(dropped)))
        for s in study.settings
    ]
    named = names(tuple({setting.label: setting for setting in settings}.values()))
    maps: dict[str, Rows] = {}
    for setting in settings:
        for point in setting.measured:
            if key in point.estimates and (point.alpha > 0 or "alpha" not in axes):
                row = {name: AXES[name][1](setting, point) for name in axes}
                extra = "" if "alpha" in axes else f", {share(point.alpha)} of the users"
                maps.setdefault(named[setting.label] + extra, []).append(row | {"value": point.mean(key)})
    return [(name, rows) for name, rows in maps.items() if all(len({row[axis] for row in rows}) > 1 for axis in axes)]


def heat_map(study: StudyResults, name: str, rows: Rows, title: str) -> alt.LayerChart:
    """One of the `heat_maps`: the darker, the more success, and the number in each cell."""
    across, up = varied(study)
    shown = [
        {across: share(row[across]), up: share(row[up]), "value": row["value"]}
        | {"text": percent(row["value"], 0), "dark": row["value"] > 0.5}
        for row in rows
    ]
    x, y = (
        alt.X(f"{across}:N", title=AXES[across][0], sort=[share(v) for v in sorted({row[across] for row in rows})],
              axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
        alt.Y(f"{up}:N", title=AXES[up][0], sort=[share(v) for v in sorted({row[up] for row in rows}, reverse=True)]),
    )  # fmt: skip
    ramp = alt.Scale(domain=[0, 1], range=["#f2f6fa", STYLES[1][0]])
    fill = alt.Color("value:Q", scale=ramp, legend=None)
    ink = alt.condition("datum.dark", alt.value("white"), alt.value("#1b1b1b"))
    chart = alt.layer(
        data(shown).mark_rect(stroke="white", strokeWidth=2).encode(x=x, y=y, color=fill),
        data(shown).mark_text(fontSize=13).encode(x=x, y=y, text="text:N", color=ink),
    )
    height = 48 * len({row[up] for row in rows})
    return styled(chart.properties(width=400, height=height, title=alt.TitleParams(title, subtitle=name)))


def told_map(study: StudyResults, name: str, rows: Rows) -> str:
    """The text alternative of a heat map: every value of it."""
    across, up = varied(study)
    one, other = (axis.replace("_", " ") for axis in (across, up))
    cells = [f"{percent(row['value'])} with {one} {share(row[across])} and {other} {share(row[up])}" for row in rows]
    return f"Heat map of {name}: {', '.join(cells)}."


def lasting(study: StudyResults) -> list[dict[str, Any]]:
    """Where members stop: how many rounds success stayed above half of what it was, by setting and alpha; of a mean
    with runs that ended before it fell, so many at least."""
    named, rows = names(study.settings), []
    for setting in study.settings:
        for point in setting.measured:
            for key in study.goals:
                fell = point.estimates.get(("persistence", key[1]))
                stayed = point.estimates.get(("persistence_at_least", key[1]))
                values = [*(fell.values if fell else ()), *(stayed.values if stayed else ())]
                if values and point.alpha > 0:
                    stop = setting.experiment.strategy.stops.get(key[1])
                    rows.append(
                        {"setting": named[setting.label], "alpha": point.alpha, "group": key[1], "stop": stop,
                         "rounds": math.fsum(values) / len(values), "seeds": len(values),
                         "at_least": len(stayed.values) if stayed else 0}
                    )  # fmt: skip
    return rows
