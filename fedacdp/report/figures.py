"""The figures of the page: one function each, from numbers to an Altair chart, the same for every output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from fedacdp.report.numbers import BASELINE, CEILING, FLOOR, Key, Point, Setting, StudyResults
from fedacdp.report.words import names

STYLES = [
    ("#1b1b1b", [1, 0], "circle"),
    ("#0072b2", [8, 3], "square"),
    ("#d55e00", [2, 2], "triangle-up"),
    ("#009e73", [10, 3, 2, 3], "diamond"),
    ("#cc79a7", [5, 2], "triangle-down"),
    ("#b07d00", [12, 3], "cross"),
]
"""Colour, dash and shape of the settings of one figure; colours after Okabe and Ito 2008, safe for the colour-blind."""

DRAWN_ROUNDS = 200
"""Of more rounds than about this, a learning curve draws so many, evenly spread and the last one always."""

_WIDTH, _HEIGHT = 400, 280
_SHAPE, _LINE = 90, 320  # sizes of legend symbols
SHARE_LABEL = "format(100 * datum.value, '.4~g') + '%'"
_SHARE_TITLE = "Share of users in the collective"

Rows = list[dict[str, Any]]


def against_share(study: StudyResults, settings: Sequence[Setting], key: Key, title: str) -> alt.LayerChart:
    """The last round's `key` against alpha, all settings in one frame: mean over seeds, every seed, and, for success,
    dotted, its level without a collective."""
    named = names(study.settings)
    color, dash, shape = encodings([named[setting.label] for setting in settings], symbol=_SHAPE)
    means, seeds, floors = _rows(settings, named, key)
    x, y = _share_axis(study.alphas, _SHARE_TITLE), percent_axis("value")
    chart = alt.layer(
        data(floors).mark_rule(strokeDash=[1, 3], strokeWidth=1.2, opacity=0.8).encode(y=y, color=color),
        data(seeds).mark_point(filled=True, size=24, opacity=0.4).encode(x=x, y=y, color=color, shape=shape),
        data(means).mark_line(strokeWidth=2.2).encode(x=x, y=y, color=color, strokeDash=dash),
        data(means).mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    )
    return styled(chart.properties(width=_WIDTH, height=_HEIGHT, title=title))


def with_intervals(study: StudyResults, settings: Sequence[Setting], key: Key, title: str) -> alt.ConcatChart:
    """The same means, a frame for each setting, with the band of the 95 % t interval over the seeds; for success, what
    is above its ceiling or below its floor is grey."""
    named = names(study.settings)
    shown = [named[setting.label] for setting in settings]
    color, dash, _ = encodings(shown, symbol=None)
    x, y = _share_axis(study.alphas, None), percent_axis("value")
    panels = []
    for setting in settings:
        means, seeds, _ = _rows([setting], named, key)
        name, _, rest = named[setting.label].partition(" (")
        panel = alt.layer(
            *_bounds(setting, key, x),
            data(means).mark_area(opacity=0.18).encode(x=x, y=percent_axis("low"), y2="high:Q", color=color),
            data(seeds).mark_point(filled=True, size=18, opacity=0.55).encode(x=x, y=y, color=color),
            data(means).mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color, strokeDash=dash),
        )
        heading = alt.TitleParams(
            name, subtitle="(" + rest if rest else " ", fontSize=13, fontWeight="normal", offset=6, limit=210
        )
        panels.append(panel.properties(width=165, height=110, title=heading))
    return styled(alt.concat(*panels, columns=2, spacing=22).properties(title=title))


def over_rounds(
    study: StudyResults, settings: Sequence[Setting], alpha: float, titles: dict[Key, str]
) -> alt.VConcatChart:
    """Each metric (key -> title) after every round at one alpha, mean over seeds, one frame above the other."""
    named = names(study.settings)
    labels = [setting.label for setting in settings]
    color, dash, _ = encodings([named[label] for label in labels], symbol=_LINE)
    rows = study.curves[(study.curves["alpha"] == alpha) & study.curves["setting"].isin(labels)]
    rows = rows[rows["round"].isin(thinned(sorted(int(number) for number in rows["round"].unique())))]
    frames = []
    for (metric, group), title in titles.items():
        values = [
            {"setting": named[row.setting], "round": int(row.round), "value": float(row.value)}
            for row in rows[(rows["metric"] == metric) & (rows["group"] == group)].itertuples()
        ]
        axis = alt.Axis(grid=False, tickMinStep=1, tickCount=6, format="d", labelFlush=False)
        if rows["round"].nunique() <= 6:
            axis.values = sorted(int(number) for number in rows["round"].unique())
        x = alt.X("round:Q", title="Round" if title == [*titles.values()][-1] else None, axis=axis)
        line = data(values).mark_line(strokeWidth=1.8)
        frame = line.encode(x=x, y=percent_axis("value"), color=color, strokeDash=dash)
        frames.append(frame.properties(width=_WIDTH, height=170, title=title))
    return styled(alt.vconcat(*frames))


def stretched(alphas: list[float]) -> bool:
    """Whether the axis of shares is stretched towards the small ones: they span more than a factor of 30."""
    positive = [alpha for alpha in alphas if alpha > 0]
    return bool(positive) and positive[-1] > 30 * positive[0]


def thinned(rounds: list[int]) -> list[int]:
    """The rounds that a learning curve draws."""
    return rounds[:: -(math.ceil(len(rounds) / DRAWN_ROUNDS) or 1)][::-1]


def _rows(settings: Sequence[Setting], named: dict[str, str], key: Key) -> tuple[Rows, Rows, Rows]:
    """Rows of the means with their intervals, of the seeds, and of the levels without a collective. Where no run is
    done the value is null: the line breaks there, because nothing was measured."""
    means, seeds, floors = [], [], []
    for setting in settings:
        name = named[setting.label]
        for point in setting.points:
            estimate, at = point.estimates.get(key), {"setting": name, "alpha": point.alpha}
            if estimate is None:
                means.append(at | {"value": None, "low": None, "high": None})
                continue
            low, high = (None if math.isnan(end) else end for end in estimate.interval)
            means.append(at | {"value": estimate.mean, "low": low, "high": high})
            seeds += [at | {"value": value} for value in estimate.values]
        base = (BASELINE, key[1])
        levels = [point.mean(base) for point in setting.measured if base in point.estimates]
        if levels and key[0] == "success":
            floors.append({"setting": name, "value": levels[0]})
    return means, seeds, floors


def _bounds(setting: Setting, key: Key, x: alt.X) -> list[alt.Chart]:
    """What theory excludes of the success of a group: above its ceiling, below a floor that certifies something."""
    drawn = []
    for metric, end in ((CEILING, 1.0), (FLOOR, 0.0)):
        bound = (metric, key[1])
        if key[0] != "success" or not any(bound in point.estimates for point in setting.measured):
            continue
        rows = [{"alpha": point.alpha, "value": _bound(point, bound, end), "end": end} for point in setting.measured]
        area = data(rows).mark_area(color="#888", opacity=0.25, line={"color": "#888", "strokeWidth": 1})
        drawn.append(area.encode(x=x, y=percent_axis("value"), y2="end:Q"))
    return drawn


def _bound(point: Point, bound: Key, trivial: float) -> float:
    """The bound at a point; without one the trivial one, and without members what is measured without members."""
    if bound in point.estimates:
        return min(1.0, max(0.0, point.mean(bound)))
    known = bound[0] == CEILING and point.alpha == 0 and ("success", bound[1]) in point.estimates
    return point.mean(("success", bound[1])) if known else trivial


def data(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def percent_axis(field: str) -> alt.Y:
    axis = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=axis)


def _share_axis(alphas: list[float], title: str | None) -> alt.X:
    axis = alt.Axis(
        labelExpr=SHARE_LABEL, grid=False, tickCount=5, labelFlush=False, labelOverlap=True, labelSeparation=6
    )
    scale: dict[str, Any] = {"domain": [alphas[0], alphas[-1]], "nice": False}
    if stretched(alphas):
        scale |= {"type": "symlog", "constant": next(alpha for alpha in alphas if alpha > 0)}
        axis.values = alphas
    return alt.X("alpha:Q", title=title, axis=axis, scale=alt.Scale(**scale))


def encodings(shown: list[str], symbol: int | None) -> tuple[alt.Color, alt.StrokeDash, alt.Shape]:
    """Colour, dash and shape by setting, with one common legend whose symbols have this size, or none."""
    styles = [STYLES[place % len(STYLES)] for place in range(len(shown))]
    legend = None
    if symbol is not None:
        stroke = 2.2 if symbol == _LINE else 0  # a dashed outline would fray the shapes
        legend = alt.Legend(orient="bottom", columns=1, symbolSize=symbol, symbolStrokeWidth=stroke)
    colors, dashes, shapes = ([style[part] for style in styles] for part in range(3))
    return (
        alt.Color("setting:N", title=None, legend=legend, scale=alt.Scale(domain=shown, range=colors)),
        alt.StrokeDash("setting:N", title=None, legend=legend, scale=alt.Scale(domain=shown, range=dashes)),
        alt.Shape("setting:N", title=None, legend=legend, scale=alt.Scale(domain=shown, range=shapes)),
    )


def styled(chart: Any) -> Any:
    """The chart in the style of all figures."""
    return chart.configure(
        aria=False,
        font="Helvetica, Arial, sans-serif",
        background="white",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelFontSize=13, titleFontSize=13, titleFontWeight="normal", titlePadding=10, titleColor="#444",
            labelColor="#444", gridColor="#e6e6e6", domainColor="#999", tickColor="#999",
        ),
        axisY=alt.AxisConfig(domain=False, ticks=False, labelPadding=6),
        legend=alt.LegendConfig(
            labelFontSize=13, labelColor="#222", labelLimit=_WIDTH, rowPadding=5, symbolOpacity=1
        ),
        title=alt.TitleConfig(
            fontSize=15, fontWeight=600, anchor="start", color="#1b1b1b", offset=12, subtitleFontSize=12,
            subtitleColor="#444",
        ),
    )  # fmt: skip
