"""The explorer of the page: every measured point behind controls for mechanism, epsilon and size."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from markupsafe import Markup

from fedacdp.report.answer import whose
from fedacdp.report.numbers import BASELINE, CEILING, FLOOR, Key, Point, Setting, StudyResults
from fedacdp.report.words import counted, interval, names, number, percent, place, share

_BUDGET = re.compile(r"(?:^|(?<= ))(epsilon|noise_multiplier|message_epsilon)=(\S+)")
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def island(found: dict[str, Any]) -> Markup:
    """Data as JSON for a script element: no text in it can end the element or the script."""
    return Markup(json.dumps(found, allow_nan=False, separators=(",", ":")).translate(_UNSAFE))


def explorer(study: StudyResults) -> list[dict[str, Any]]:
    """Everything measured as a tree: mechanisms, of each its epsilons, of each its variants (the other fields that tell
    settings apart), of each its points by ascending alpha. Empty where there is only one point to show."""
    measured = [setting for setting in study.settings if setting.measured]
    if sum(len(setting.measured) for setting in measured) < 2:
        return []
    named = names(study.settings)
    places = _places(measured)
    tree: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for setting in measured:
        budget, variant = _apart(setting)
        points = [_point(study, setting, point, named[setting.label]) for point in setting.measured]
        epsilons = tree.setdefault(places[setting.label], {})
        epsilons.setdefault(budget, []).append({"name": variant or "as it is", "points": points})
    size = {_apart(setting)[0]: setting.epsilon for setting in measured}
    return [
        {
            "name": mechanism,
            "epsilons": [
                {"name": budget, "value": size[budget] if math.isfinite(size[budget]) else None, "variants": variants}
                for budget, variants in epsilons.items()
            ],
        }
        for mechanism, epsilons in tree.items()
    ]


def _places(settings: list[Setting]) -> dict[str, str]:
    """By label the mechanism in words, with its name where the words do not tell mechanisms apart."""
    mechanisms: dict[str, set[str]] = {}
    for setting in settings:
        mechanisms.setdefault(place(setting), set()).add(setting.guarantee["mechanism"])
    return {
        s.label: place(s) if len(mechanisms[place(s)]) == 1 else f"{place(s)}, {s.guarantee['mechanism']}"
        for s in settings
    }


def _apart(setting: Setting) -> tuple[str, str]:
    """The privacy budget of a setting in words, and what else its label says."""
    rest = setting.label.removeprefix(str(setting.guarantee["mechanism"]))
    asked = _BUDGET.search(rest)
    rest = " ".join(_BUDGET.sub("", rest, count=1).split())
    if asked is None:
        return ("no limit" if math.isinf(setting.epsilon) else number(setting.epsilon)), rest
    if asked[1] == "epsilon":
        return asked[2], rest
    return f"{number(setting.epsilon)} ({asked[1].replace('_', ' ')} {asked[2]})", rest


def _point(study: StudyResults, setting: Setting, point: Point, name: str) -> dict[str, Any]:
    done = [run for run in point.runs if run.status == "done"]
    config = json.loads(done[0].experiment.text)
    del config["seed"]
    return {
        "alpha": point.alpha,
        "share": share(point.alpha),
        "says": says(study, point, name),
        "bars": [bar for key in study.goals if (bar := _bar(point, key))],
        "runs": [[run.run_id, f"seed {run.seed}"] for run in done],
        "config": config,
    }


def says(study: StudyResults, point: Point, name: str) -> list[str]:
    """What was measured at a point in sentences: success with its interval and seeds, what theory bounds it by, and
    accuracy, each beside its value without a collective."""
    at = f"With {share(point.alpha)} of the users in the collective and {name}"
    if point.alpha == 0:
        at = f"With nobody in the collective and {name}"
    lines = []
    for key in study.goals:
        if key not in point.estimates:
            continue
        own = point.estimates[key]
        base = (BASELINE, key[1])
        compared = "" if point.alpha == 0 or base not in point.estimates else percent(point.mean(base))
        without = f" Without the collective it is {compared}." if compared else ""
        of = f"95\u00a0% interval {interval(own)}, " if interval(own) else ""
        lines.append(f"{at}, {whose(key)} is {percent(own.mean)} ({of}{counted(len(own.values), 'seed')}).{without}")
        lines += _theory(point, key)
    if ("accuracy", "all") in point.estimates:
        accuracy, base = point.mean(("accuracy", "all")), ("accuracy_baseline", "all")
        without = "" if point.alpha == 0 or base not in point.estimates else f", {percent(point.mean(base))} without"
        start = "The model" if lines else f"{at}, the model"
        seeds = "" if lines else f" ({counted(point.done, 'seed')})"
        lines.append(f"{start}\u2019s accuracy is {percent(accuracy)}{without}{seeds}.")
    return lines


def _theory(point: Point, key: Key) -> list[str]:
    floor, ceiling = point.mean((FLOOR, key[1])), point.mean((CEILING, key[1]))
    parts = []
    if floor > 0:
        parts.append(f"its members could certify {percent(floor)} beforehand")
    if ceiling < 1:
        parts.append(f"no collective of this size can pass {percent(ceiling)}")
    return [f"In theory {' and '.join(parts)}."] if parts else []


def _bar(point: Point, key: Key) -> dict[str, Any]:
    """What is drawn of a success: mean, interval, every seed, and its level without a collective and in theory."""
    if key not in point.estimates:
        return {}
    own = point.estimates[key]
    low, high = own.interval
    drawn = {
        "mean": own.mean,
        "low": low,
        "high": high,
        "without": point.mean((BASELINE, key[1])),
        "floor": point.mean((FLOOR, key[1])),
        "ceiling": point.mean((CEILING, key[1])),
    }
    known = {name: round(min(1.0, max(0.0, value)), 5) for name, value in drawn.items() if not math.isnan(value)}
    return {"of": "" if key[1] == "all" else key[1], "seeds": [round(value, 5) for value in own.values], **known}
