"""What the template of the page is given: each study with its sentences, drawn figures and guarantees."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedacdp.report import answer, explorer, export, figures, odds, recipe, relations, words, worlds
from fedacdp.report.drawing import Figure
from fedacdp.report.numbers import ACCURACY, CEILING, FLOOR, Key, Setting, StudyResults
from fedacdp.statistics import MANY

TOGETHER, FRAMES = 6, 6
"""As many settings as are drawn in one frame, and as many frames as a page draws."""

FOLDED = 300
"""With more runs than this the tables are folded."""


@dataclass(frozen=True)
class Frame:
    """The figures of up to TOGETHER settings: against alpha, with intervals, accuracy against success, and over rounds
    by alpha."""

    title: str
    shares: list[Figure]
    intervals: list[Figure]
    tradeoffs: list[Figure]
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
        "method": "t" if not study.seeds or study.seeds[-1] < MANY else "t (below 10 seeds) or BCa bootstrap",
        "certainty": answer.certainty(study),
        "facts": answer.facts(study),
        "deeds": answer.deeds(study),
        "scales": words.scales(measured),
        "frames": [_frame(study, group, len(grouped) > 1) for group in grouped[:FRAMES]],
        "undrawn": len(measured) - len({setting.label for group in grouped[:FRAMES] for setting in group}),
        "stretched": figures.stretched(study.alphas),
        "explorer": explorer.explorer(study),
        "masses": [made for key in study.goals if (made := _masses(study, key))],
        "maps": [figure for key in study.goals for figure in _maps(study, key)],
        "lasting": relations.lasting(study),
        "worlds": worlds.worlds(study),
        "downloads": {"points": export.link(export.points(study)), "runs": export.link(export.runs(study))},
        "promises": found,
        "not_covered": sorted({promise.not_covered for promise in found} - {""}),
        "folded": len(study.runs) > FOLDED,
        "unfinished": sum(run.status != "done" for run in study.runs),
        "toml": recipe.toml(study.recipe) if study.recipe else "",
        "command": recipe.command(study),
        "record": recipe.record(study),
    }


def drawings(section: dict[str, Any]) -> list[Figure]:
    """Every figure of a section, in the order of the page."""
    found = []
    for frame in section["frames"]:
        found += [*frame.shares, *frame.intervals, *frame.tradeoffs, *(figure for _, figure in frame.rounds)]
    return [*found, *(figure for figure, _ in section["masses"]), *section["maps"]]


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
    shares, intervals, tradeoffs = [], [], []
    there = {key for setting in settings for point in setting.points for key in point.estimates}
    metrics = {key: words.titled(key) for key in [*study.goals, ACCURACY] if key in there or key == ACCURACY}
    points = [point for setting in settings for point in setting.measured]
    if len({point.alpha for point in points}) > 1:
        for key, title in metrics.items():
            text = words.alternative(study, settings, key)
            what = f"{title} against share"
            shares.append(Figure(what, figures.against_share(study, settings, key, title), text))
            if max(point.done for point in points) > 1:
                chart = figures.with_intervals(study, settings, key, f"{title}, 95 % interval")
                more = f"The same with intervals, which the table of points lists. {text}"
                intervals.append(Figure(f"{what}, intervals", chart, more))
            if key in study.goals:
                both = relations.accuracy_against_success(study, settings, key, title)
                told = relations.told_tradeoff(study, settings, key)
                tradeoffs.append(Figure(f"Accuracy against {title}", both, told))
    rounds = []
    if study.curves["round"].nunique() > 1:
        for alpha in sorted({study.middle or study.alphas[-1], study.alphas[-1]}):
            curves = figures.over_rounds(study, settings, alpha, metrics)
            text = words.course(study, settings, alpha, [*metrics])
            rounds.append((alpha, Figure(f"Rounds at a share of {alpha:g}", curves, text)))
    return Frame(_common(settings) if titled else "", shares, intervals, tradeoffs, rounds)


def _masses(study: StudyResults, key: Key) -> tuple[Figure, list[str]] | None:
    """The critical mass against epsilon, drawn and told; None where no mechanism was measured at several epsilons."""
    rows = relations.masses(study, key)
    if not rows:
        return None
    title = f"Share at which {words.titled(key).lower()} reaches {words.percent(answer.ENOUGH, 0)}"
    lines = relations.told_masses(rows)
    chart = relations.mass_against_epsilon(rows, title)
    return Figure(f"Critical mass of {words.titled(key)} against epsilon", chart, f"{title}. {' '.join(lines)}"), lines


def _maps(study: StudyResults, key: Key) -> list[Figure]:
    title = words.titled(key)
    return [
        Figure(
            f"{title} by participation, {name}",
            relations.heat_map(study, name, rows, title),
            relations.told_map(study, name, rows),
        )
        for name, rows in relations.heat_maps(study, key)[: relations.MAPS]
    ]


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
