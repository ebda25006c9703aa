"""What the page says: names of settings, the answer, captions, text alternatives, and what a guarantee means."""

from __future__ import annotations

import inspect
import math
import re
import sys
from typing import Any

from fedacdp.report.numbers import ACCURACY, BASELINE, SUCCESS, Estimate, Key, Setting, StudyResults

ENOUGH = 0.5
"""The success that counts as reached when the page looks for the smallest share."""

_WHERE = {"model_holder": "central privacy", "server": "local privacy"}


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, a dash where nothing was measured."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def share(alpha: float) -> str:
    """An alpha as a percentage, all its digits."""
    return f"{100 * alpha:.10g} %"


def interval(estimate: Estimate) -> str:
    """The interval of an estimate, empty with one seed."""
    low, high = estimate.interval
    return "" if math.isnan(low) else f"{100 * low:.1f} – {100 * high:.1f} %"


def number(value: Any) -> str:
    """A number of a guarantee, a dash where there is none."""
    return "–" if value is None or math.isinf(float(value)) else f"{float(value):.3g}"


def names(settings: tuple[Setting, ...]) -> dict[str, str]:
    """Label -> a name to read, from who is trusted and what is protected; different for different labels."""
    plain = {setting.label: _name(setting, _place(setting)) for setting in settings}
    taken = list(plain.values())
    return {
        setting.label: plain[setting.label]
        if taken.count(plain[setting.label]) == 1
        else _name(setting, f"{_place(setting)}, {setting.guarantee['mechanism']}")
        for setting in settings
    }


def _place(setting: Setting) -> str:
    about = setting.guarantee
    if about["unit"] == "none":
        return "no privacy"
    place = _WHERE.get(about["observer"], str(about["mechanism"]))
    return place if about["unit"] == "user" else f"{place} per {about['unit']}"


def _name(setting: Setting, place: str) -> str:
    rest = setting.label.removeprefix(str(setting.guarantee["mechanism"])).strip()
    rest = re.sub(r"^epsilon=", "ε = ", re.sub(r" (?=\S+=)", ", ", rest)).replace(", epsilon=", ", ε = ")
    return f"{place} ({rest})" if rest else place


def answer(study: StudyResults) -> list[str]:
    """The answer in plain sentences, every number measured: success (or accuracy) at the middle alpha, the smallest
    alpha that reaches success 1/2, and what accuracy is without a collective."""
    measured = [setting for setting in study.settings if setting.measured]
    if not measured:
        return ["No run of this study was completed, so there is no answer."]
    named = names(study.settings)
    sentences = []
    if study.middle is not None:
        what, key = ("the collective’s success", SUCCESS) if study.has_success else ("the model’s accuracy", ACCURACY)
        values = {named[s.label]: p.mean(key) for s in measured if (p := s.at(study.middle))}
        sentences.append(f"With {share(study.middle)} of the users in the collective, {what} is {_listed(values)}.")
    if study.has_success and any(alpha > 0 for alpha in study.alphas):
        reached: dict[str, list[str]] = {}
        for setting in measured:
            reached.setdefault(reach(setting), []).append(f"with {named[setting.label]}")
        parts = [f"{text} {_joined(where)}" for text, where in reached.items()]
        sentences.append(f"The smallest measured share that reaches {percent(ENOUGH, 0)} success: {'; '.join(parts)}.")
    without = {named[s.label]: p.mean(ACCURACY) for s in measured if (p := s.at(0.0))}
    if without:
        sentences.append(f"Without a collective the model is right {_listed(without, 'of the time')}.")
    return sentences


def reach(setting: Setting) -> str:
    """The smallest measured alpha of this setting with mean success of at least ENOUGH, in words; never extrapolated."""
    points = [point for point in setting.measured if SUCCESS in point.estimates]
    if not points:
        return "not measured"
    for point in points:
        if point.mean(SUCCESS) >= ENOUGH:
            return share(point.alpha) if point.alpha > 0 else "reached already without a collective"
    if points[0].mean(BASELINE) >= ENOUGH:
        return "reached already without a collective"
    return f"not reached at {share(points[-1].alpha)}, the largest share measured"


def _listed(values: dict[str, float], unit: str = "") -> str:
    """Each value with its setting; of more than five, only the smallest and the largest."""
    values = {name: value for name, value in values.items() if not math.isnan(value)}
    if not values:
        return "not measured"
    if len(values) > 5:
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        return f"between {percent(values[low])} (with {low}) and {percent(values[high])} (with {high})"
    first, *rest = [f"{percent(value)} | with {name}" for name, value in values.items()]
    unit = f"{unit} " if unit else ""
    return _joined([first.replace("| ", unit, 1), *(text.replace("| ", "", 1) for text in rest)])


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def certainty(study: StudyResults) -> str:
    """What the number of seeds allows to say."""
    counts = study.seeds
    if not counts:
        return ""
    if counts == [1]:
        return "Every number comes from one seed: nothing can be said about how much it would vary."
    if counts[0] == 1:
        return f"Every number is a mean over 1 to {counts[-1]} seeds; where there is one seed there is no interval."
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[0] == 2:
        return (
            f"Every number is a mean over {seeds} seeds. With two seeds a 95 % interval is so wide (or, where both happen "
            "to agree, so deceptively narrow) that it says little: repeat the study with more seeds before citing it."
        )
    return f"Every number is a mean over {seeds} seeds."


def scales(settings: list[Setting]) -> list[str]:
    """One line per kind of guarantee (unit, observer, adjacency) if there are several, which no epsilon spans."""
    kinds: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in settings:
        if math.isfinite(setting.epsilon):
            about = setting.guarantee
            kinds.setdefault((about["unit"], about["observer"], about["adjacency"]), []).append(setting)
    if len(kinds) < 2:
        return []
    return [
        f"{_place(group[0])}: protects one {unit}, {against(observer)}, neighbours by {adjacency.replace('_', '-')}"
        for (unit, observer, adjacency), group in kinds.items()
    ]


def against(observer: str) -> str:
    """From whom a guarantee protects."""
    from fedacdp.privacy.base import OBSERVERS

    return f"against {OBSERVERS.get(observer, observer)}"


def alternative(study: StudyResults, settings: list[Setting], key: Key) -> str:
    """The text alternative of a figure of `key` against alpha: every value of it."""
    named = names(study.settings)
    lines = []
    for setting in settings:
        values = [
            f"{percent(p.mean(key))} at a share of {share(p.alpha)}" for p in setting.measured if key in p.estimates
        ]
        if values:
            lines.append(f"{named[setting.label]}: {', '.join(values)}.")
    return f"Line chart of {key[0]} at the last round against the share of users in the collective. " + " ".join(lines)


def deeds(study: StudyResults) -> list[tuple[str, str, str]]:
    """For each strategy of the study: its name, what the collective does, and what its success is, as the strategy's
    file documents them."""
    found = {}
    for setting in study.settings:
        kind = type(setting.experiment.strategy)
        module = " ".join((sys.modules[kind.__module__].__doc__ or "").split())
        defined = re.search(r"\bSuccess\b.*?(?=\n\s*\n|\Z)", inspect.cleandoc(kind.__doc__ or ""), re.DOTALL)
        found[setting.experiment.strategy.name] = (module, " ".join(defined[0].split()) if defined else "")
    return [(name, *texts) for name, texts in found.items()]
