"""The answer of `fedacdp plan` in words, as a table, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from fedacdp.report.figures import STYLES
from fedacdp.report.picture import save
from fedacdp.results import as_csv

MOST = 40
"""Cells that a table shows; the rest, of smaller mass, is in the JSON."""

_GOALS = {
    "feature_label": "are called {target!r} once the signal is set",
    "feature_only": "are called {target!r} once the signal is set",
    "unplant": "are not called {target!r} once the signal is set",
    "erase": "are called the same with the signal as they are without it",
}
_ACTS = {
    "feature_label": "every member sets the signal and sends the label {target!r} (Theorem 3.3)",
    "feature_only": "members labelled {target!r} set the signal, the others move out of its cells (Theorem 3.5)",
    "unplant": (
        "every member sets the signal and sends the most frequent other label, which {estimators} of them choose "
        "(Theorem 3.7)"
    ),
    "erase": "every member keeps its features and sends the label most frequent where the signal's values hold (3.9)",
}
_NAMES = {"none": "Without privacy", "central": "Central privacy", "local": "Local privacy"}


def words(found: dict[str, Any]) -> list[str]:
    """What the numbers say, a sentence or two for each point."""
    whole, rows = found["platform_size"], found["rows"]
    goal = _GOALS[found["strategy"]].format(**found)
    lines = [f"Strategy: {_ACTS[found['strategy']].format(**found)}. Success: the share of fresh records that {goal}."]
    for arm in (found, *found["private"]):
        lines.append(f"{name(arm)}. {_certified(arm, found)} {_needed(arm, found)}{_naive(arm, found)}")
    led = [cell["cell"] for cell in found["cells"] if cell["members_expected"] == 0]
    if led:
        lines.append(f"In {len(led)} of {len(found['cells'])} cells the platform would do so without anybody acting.")
    if found["strategy"] == "erase":
        lines.append(
            f"Where the signal's values hold, the most frequent label leads by {found['eta']:.4f} of all records at "
            f"least; that this is so among all {whole:,} is assumed. The smaller this lead, the more members it takes."
        )
    for value in found["unseen"]:
        lines.append(f"None of the rows has {value}: if that is no misspelling, nobody resists there.")
    lines.append(
        f"All this holds if members are drawn like everybody else among the {whole:,}, if the platform tells apart "
        f"just these {found['number_of_cells']:,} cells, and if signal and target were fixed before these rows were "
        f"seen. Sizes other than {rows:,} assume frequencies as in these rows."
    )
    return lines


def name(arm: dict[str, Any]) -> str:
    """The arm in words."""
    epsilon = f", epsilon = {arm['epsilon']:g}, delta = {arm['privacy_delta']:g}" if "epsilon" in arm else ""
    return _NAMES[arm["privacy"]] + epsilon


def told(found: dict[str, Any], markdown: bool) -> str:
    """Words, then a table of the cells for each arm; as Markdown, or aligned for a terminal."""
    parts = [f"- {line}" if markdown else line for line in found["words"]]
    for arm in (found, *found["private"]):
        header = ["cell", "mass", "resistance", "members_certified", "members_expected"]
        body = [[_shown(cell[key]) for key in header] for cell in arm["cells"][:MOST]]
        parts.append(("\n**{}**\n" if markdown else "\n{}").format(name(arm)))
        if markdown:
            lines = [header, ["---", *["---:"] * 4], *body]
            parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        else:
            widths = [max(len(line[at]) for line in [header, *body]) for at in range(5)]
            for line in [header, *body]:
                cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
                parts.append("  ".join([line[0].ljust(widths[0]), *cells]))
        if len(arm["cells"]) > MOST:
            parts.append(f"\n... and {len(arm['cells']) - MOST} cells of smaller mass (--format json has them)")
    return "\n".join(parts)


def cells(found: dict[str, Any]) -> str:
    """The cells of every arm as CSV."""
    header = ["privacy", "epsilon", "cell", "mass", "resistance", "members_certified", "members_expected"]
    rows = [
        {"privacy": arm["privacy"], "epsilon": arm.get("epsilon")} | cell
        for arm in (found, *found["private"])
        for cell in arm["cells"]
    ]
    frame = pd.DataFrame(rows, columns=header).astype(dict.fromkeys(header[-2:], "Int64"))
    return as_csv(frame)


def draw(found: dict[str, Any], path: Path) -> None:
    """Success against the size of the collective, certified and expected, as SVG or PNG by the file's ending."""
    arms = [found, *found["private"]]
    kinds = {"certified": "certified", "expected": "in expectation"}
    rows = [
        {"arm": name(arm), "kind": kind, "members": point["members"], "value": max(0.0, point[key])}
        for arm in arms
        for point in arm["curve"]
        for key, kind in kinds.items()
    ]
    colors = [STYLES[place % len(STYLES)][0] for place in range(len(arms))]
    legend = alt.Legend(orient="bottom", columns=1, symbolSize=320)
    count = alt.Axis(format="~s", grid=False, tickCount=6)
    line = alt.Chart(alt.InlineData(values=rows)).mark_line(interpolate="step-after", strokeWidth=2)
    chart = line.encode(
        x=alt.X("members:Q", title="Members", axis=count, scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("value:Q", title=None, axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color(
            "arm:N", title=None, legend=legend, scale=alt.Scale(domain=[name(arm) for arm in arms], range=colors)
        ),
        strokeDash=alt.StrokeDash(
            "kind:N", title=None, legend=legend, scale=alt.Scale(domain=[*kinds.values()], range=[[1, 0], [5, 4]])
        ),
    )
    save(chart.properties(width=400, height=280, title="Success by the size of the collective"), path)


def _certified(arm: dict[str, Any], found: dict[str, Any]) -> str:
    value, rows = arm["certified"], f"{found['rows']:,} members of {found['platform_size']:,}"
    if value > 0:
        return f"{rows} certify a success of {value:.1%} (it may fail with probability {found['delta']:g})."
    least = arm["members_not_vacuous"]
    vacuous = f"The certificate of {rows} is vacuous ({value:.3f}, nothing is certified)"
    if least is None:
        return f"{vacuous}, and so is that of every other size."
    return f"{vacuous}; the smallest that is not is that of {_size(least, found)}."


def _needed(arm: dict[str, Any], found: dict[str, Any]) -> str:
    certified, expected = arm["members_needed"], arm["members_expected"]
    sure = "no size certifies it" if certified is None else f"{_size(certified, found)} certify it"
    hoped = "no size reaches it in expectation"
    if expected is not None:
        hoped = f"{_size(expected, found)} reach it in expectation" if expected else "it needs nobody in expectation"
    return f"A success of {found['success']:.0%}: {sure}, {hoped}; {found['rows']:,} reach {arm['expected']:.1%}."


def _naive(arm: dict[str, Any], found: dict[str, Any]) -> str:
    if not arm["naive"]:
        return ""
    best = min(arm["naive"], key=lambda way: way["members_needed"] or found["platform_size"] + 1)
    size = best["members_needed"]
    if size is None:
        return f" If all sent one label instead, no size would certify {found['success']:.0%}."
    certify = f"{_size(size, found)} certify {found['success']:.0%}"
    return f" If all sent one label instead, {best['label']!r} would be best: {certify}."


def _size(members: int, found: dict[str, Any]) -> str:
    return f"{members:,} members ({members / found['platform_size']:.2%})"


def _shown(value: Any) -> str:
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else f"{value:.4f}"
