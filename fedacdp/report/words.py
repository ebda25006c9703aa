"""Names of settings, formats of numbers, what a guarantee means, and the text alternatives of figures."""

from __future__ import annotations

import math
import re
from typing import Any

from fedacdp.privacy.guarantee import OBSERVERS
from fedacdp.report.numbers import Estimate, Key, Setting, StudyResults

_WHERE = {"model_holder": "central privacy", "sum": "distributed privacy", "server": "local privacy"}


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage, a dash where nothing was measured."""
    return "\u2013" if math.isnan(value) else f"{100 * value:.{digits}f}\u00a0%"


def share(alpha: float) -> str:
    """An alpha as a percentage, all its digits."""
    return f"{100 * alpha:.10g}\u00a0%"


def counted(count: int, noun: str) -> str:
    """So many things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def interval(estimate: Estimate) -> str:
    """The interval of an estimate, empty with one seed."""
    low, high = estimate.interval
    return "" if math.isnan(low) else f"{100 * low:.1f} \u2013 {100 * high:.1f}\u00a0%"


def number(value: Any) -> str:
    """A number of a guarantee, a dash where there is none."""
    return "\u2013" if value is None or math.isinf(float(value)) else f"{float(value):.3g}"


def names(settings: tuple[Setting, ...]) -> dict[str, str]:
    """Label -> a name to read, from who is trusted and what is protected; different for different labels."""
    plain = {setting.label: _name(setting, place(setting)) for setting in settings}
    taken = list(plain.values())
    return {
        setting.label: plain[setting.label]
        if taken.count(plain[setting.label]) == 1
        else _name(setting, f"{place(setting)}, {setting.guarantee['mechanism']}")
        for setting in settings
    }


def place(setting: Setting) -> str:
    """Who is trusted and what is protected, in a few words."""
    about = setting.guarantee
    if about["unit"] == "none":
        return "no privacy"
    words = _WHERE.get(about["observer"], str(about["mechanism"]))
    words += " (forecast)" if about.get("forecast") else ""
    return words if about["unit"] == "user" else f"{words} per {about['unit']}"


def _name(setting: Setting, start: str) -> str:
    rest = setting.label.removeprefix(str(setting.guarantee["mechanism"])).strip()
    rest = re.sub(r"(^|, )epsilon=", "\\1ε\u00a0=\u00a0", re.sub(r" (?=\S+=)", ", ", rest))
    return f"{start} ({rest})" if rest else start


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
        f"{place(group[0])}: one {unit}, against {against(observer)}; adjacency {adjacency.replace('_', '-')}"
        for (unit, observer, adjacency), group in kinds.items()
    ]


def against(observer: str) -> str:
    """From whom a guarantee protects."""
    return OBSERVERS.get(observer, observer)


def protects(unit: str) -> str:
    """What a guarantee protects, in words."""
    known = {
        "none": "nothing",
        "user": "one user: a person with everything that he or she contributes",
        "example": "one example: a single record. A person who contributes several is protected less than epsilon says",
    }
    return known.get(unit, f"one {unit}")


def neighbours(adjacency: str, unit: str) -> str:
    """Between which two worlds a guarantee bounds the difference."""
    known = {
        "none": "none",
        "add_or_remove": f"two worlds, with and without one {unit} (add or remove)",
        "replace_one": f"two worlds in which one {unit} contributes different data (replace one)",
        "replace_special": f"two worlds, in one of which one {unit} contributes nothing but zeros (replace special)",
    }
    return known.get(adjacency, adjacency)


def titled(key: Key) -> str:
    """A metric as a title; its group where it is not everybody."""
    return key[0].capitalize() + ("" if key[1] == "all" else f", {key[1]}")


def course(study: StudyResults, settings: list[Setting], alpha: float, keys: list[Key]) -> str:
    """The text alternative of a learning curve of these metrics: where each starts and ends."""
    named = names(study.settings)
    rows = study.curves[study.curves["alpha"] == alpha].sort_values("round")
    lines = []
    for setting in settings:
        own = rows[rows["setting"] == setting.label]
        for key in keys:
            curve = own[(own["metric"] == key[0]) & (own["group"] == key[1])]
            if curve.empty:
                continue
            first, last = curve.iloc[0], curve.iloc[-1]
            lines.append(
                f"{named[setting.label]}, {titled(key).lower()}: "
                f"{percent(first['value'])} after round {first['round']}, "
                f"{percent(last['value'])} after round {last['round']}."
            )
    return f"Line chart over the rounds with {share(alpha)} of the users in the collective. " + " ".join(lines)


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
    return (
        f"Line chart of {titled(key).lower()} at the last round against the share of users in the collective. "
        + " ".join(lines)
    )
