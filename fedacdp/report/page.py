"""What the template of the page is given: each study with its sentences, drawn figures and guarantees."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert
from markupsafe import Markup

from fedacdp.report import answer, figures, odds, recipe, words
from fedacdp.report.numbers import ACCURACY, CEILING, FLOOR, Setting, StudyResults

TOGETHER, FRAMES = 6, 6
"""As many settings as are drawn in one frame, and as many frames as a page draws."""

FOLDED = 300
"""With more runs than this the tables are folded."""


@dataclass(frozen=True)
class Figure:
    """A drawing and its text alternative."""

    svg: Markup
    alternative: str


@dataclass(frozen=True)
class Frame:
    """The figures of up to TOGETHER settings: against alpha, with intervals, and over rounds by alpha."""

    title: str
    shares: list[Figure]
    intervals: list[Figure]
    rounds: list[tuple[float, Figure]]


@dataclass(frozen=True)
class Promise:
    """A guarantee of one or more settings, spelled out."""

    names: list[str]
    guarantee: dict[str, Any]
    protects: str
    against: str
    neighbours: str
    odds: str
    statement: str
    not_covered: str


def draw(chart: Any) -> Markup:
    """A chart as SVG for an HTML page; nothing is loaded from anywhere. Vega escapes the texts."""
    return Markup(vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[]))


def section(study: StudyResults) -> dict[str, Any]:
    """The variables of a study in the template."""
    measured = [setting for setting in study.settings if setting.measured]
    grouped = groups(measured)
    found, named = promises(study), words.names(study.settings)
    return {
        "study": study,
        "names": named,
        "bounds": {name: metric for name, metric in (("Floor", FLOOR), ("Ceiling", CEILING)) if study.has(metric)},
        "unbounded": {
            name: {reason: "; ".join(named[label] for label in labels) for reason, labels in found.items()}
            for name, found in (("floor", study.unbounded[FLOOR]), ("ceiling", study.unbounded[CEILING]))
        },
        "answer": answer.answer(study),
        "certainty": answer.certainty(study),
        "facts": answer.facts(study),
        "deeds": answer.deeds(study),
        "scales": words.scales(measured),
        "frames": [_frame(study, group, len(grouped) > 1) for group in grouped[:FRAMES]],
        "undrawn": len(measured) - len({setting.label for group in grouped[:FRAMES] for setting in group}),
        "stretched": figures.stretched(study.alphas),
        "promises": found,
        "not_covered": sorted({promise.not_covered for promise in found} - {""}),
        "folded": len(study.runs) > FOLDED,
        "unfinished": sum(run.status != "done" for run in study.runs),
        "toml": recipe.toml(study.recipe) if study.recipe else "",
        "command": recipe.command(study),
        "record": recipe.record(study),
    }


def groups(settings: Sequence[Setting]) -> list[list[Setting]]:
    """All settings together if they are few. Else apart by everything but privacy, so that mechanisms meet in one
    frame; where that is still too many, apart by mechanism, each beside the setting without privacy."""
    if len(settings) <= TOGETHER:
        return [list(settings)] if settings else []
    found = []
    for group in _apart(settings, _beside_privacy):
        if len(group) <= TOGETHER:
            found.append(group)
            continue
        free = [setting for setting in group if setting.guarantee["unit"] == "none"]
        size = TOGETHER - len(free)
        for part in _apart([setting for setting in group if setting not in free], _mechanism):
            found += [free + part[start : start + size] for start in range(0, len(part), size)]
    return found


def _apart(settings: Sequence[Setting], key: Callable[[Setting], str]) -> list[list[Setting]]:
    parts: dict[str, list[Setting]] = {}
    for setting in settings:
        parts.setdefault(key(setting), []).append(setting)
    return list(parts.values())


def _beside_privacy(setting: Setting) -> str:
    fields = json.loads(setting.experiment.text)
    fields["strategy"]["alpha"] = 0
    return json.dumps(fields | {"privacy": None, "seed": 0}, sort_keys=True)


def _mechanism(setting: Setting) -> str:
    return str(setting.guarantee["mechanism"])


def _common(settings: list[Setting]) -> str:
    """The words that all labels of a group have."""
    shared = set.intersection(*(set(setting.label.split()) for setting in settings))
    return " ".join(word for word in settings[0].label.split() if word in shared)


def _frame(study: StudyResults, settings: list[Setting], titled: bool) -> Frame:
    shares, intervals = [], []
    there = {key for setting in settings for point in setting.points for key in point.estimates}
    metrics = {key: words.titled(key) for key in [*study.goals, ACCURACY] if key in there or key == ACCURACY}
    points = [point for setting in settings for point in setting.measured]
    if len({point.alpha for point in points}) > 1:
        for key, title in metrics.items():
            text = words.alternative(study, settings, key)
            shares.append(Figure(draw(figures.against_share(study, settings, key, title)), text))
            if max(point.done for point in points) > 1:
                chart = figures.with_intervals(study, settings, key, f"{title}, 95 % interval")
                intervals.append(
                    Figure(draw(chart), f"The same with intervals, which the table of points lists. {text}")
                )
    rounds = []
    if study.curves["round"].nunique() > 1:
        for alpha in sorted({study.middle or study.alphas[-1], study.alphas[-1]}):
            curves = figures.over_rounds(study, settings, alpha, metrics)
            rounds.append((alpha, Figure(draw(curves), words.course(study, settings, alpha, [*metrics]))))
    return Frame(_common(settings) if titled else "", shares, intervals, rounds)


def promises(study: StudyResults) -> list[Promise]:
    """Every different guarantee of a study, with the settings that have it."""
    named = words.names(study.settings)
    holders: dict[tuple[str, str], list[Setting]] = {}
    for setting in study.settings:
        about = setting.guarantee
        holders.setdefault((about["mechanism"], about["sentence"]), []).append(setting)
    found = []
    for (_, sentence), settings in holders.items():
        about = settings[0].guarantee
        statement, mark, rest = sentence.partition("Not covered:")
        found.append(
            Promise(
                names=[named[setting.label] for setting in settings],
                guarantee=about,
                protects=words.protects(about["unit"]),
                against=words.against(about["observer"]),
                neighbours=words.neighbours(about["adjacency"], about["unit"]),
                odds=odds.odds(about),
                statement=statement.strip(),
                not_covered=(mark + rest).strip(),
            )
        )
    return found
