"""The answer to the question of a study in plain sentences, each number of them measured."""

from __future__ import annotations

import inspect
import math
import re
import sys
from typing import Any

from fedacdp.report.numbers import ACCURACY, BASELINE, SUCCESS, Key, Setting, StudyResults
from fedacdp.report.words import counted, names, percent, share

ENOUGH = 0.5
"""The success that counts as reached when the page looks for the smallest share."""

FEW = 5
"""As many settings as a sentence names one by one."""


def answer(study: StudyResults) -> list[str]:
    """The answer in plain sentences, every number measured: success (or accuracy) at the middle alpha, the smallest
    alpha that reaches success 1/2, and accuracy without a collective."""
    measured = [setting for setting in study.settings if setting.measured]
    if not measured:
        return ["No run of this study was completed, so there is no answer."]
    named = names(study.settings)
    sentences = []
    if study.middle is not None:
        for key in study.goals or [ACCURACY]:
            values = {named[s.label]: p.mean(key) for s in measured if (p := s.at(study.middle))}
            base = (BASELINE, key[1])
            floors = [p.mean(base) for s in measured if (p := s.at(study.middle)) and base in p.estimates]
            without = (
                f" Without a collective it is {_span([percent(value) for value in sorted(floors)])}."
                if floors and study.goals
                else ""
            )
            at = f"With {share(study.middle)} of the users in the collective"
            sentences.append(f"{at}, {whose(key)} is {_listed(values)}.{without}")
    if study.has_success and study.alphas[-1] > 0:
        sentences += [_smallest(measured, named, key) for key in study.goals]
    unmoved = {named[s.label]: p.mean(ACCURACY) for s in measured if (p := s.at(0.0))}
    if unmoved:
        sentences.append(f"Without a collective, the model\u2019s accuracy is {_listed(unmoved)}.")
    return sentences


def whose(key: Key) -> str:
    """What a metric is, in a sentence; several collectives have names."""
    if key == ACCURACY:
        return "the model\u2019s accuracy"
    return "the collective\u2019s success" if key[1] == "all" else f"the success of {key[1]}"


def _smallest(measured: list[Setting], named: dict[str, str], key: Key) -> str:
    of = "" if key[1] == "all" else f" of {key[1]}"
    if len(measured) > FEW:
        found = sorted(first for setting in measured if (first := _first_enough(setting, key)) is not None)
        at = f"; the smallest share is {_span([share(alpha) for alpha in found])}" if found else ""
        return f"A success{of} of {percent(ENOUGH, 0)} is reached in {len(found)} of {len(measured)} settings{at}."
    reached: dict[str, list[str]] = {}
    for setting in measured:
        reached.setdefault(reach(setting, key), []).append(f"with {named[setting.label]}")
    parts = [f"{text} {_joined(where)}" for text, where in reached.items()]
    return f"The smallest measured share with a success{of} of at least {percent(ENOUGH, 0)}: {'; '.join(parts)}."


def reach(setting: Setting, key: Key = SUCCESS) -> str:
    """The smallest measured alpha of this setting whose mean `key` is at least ENOUGH; nothing is extrapolated."""
    points = [point for point in setting.measured if key in point.estimates]
    if not points:
        return "not measured"
    first = _first_enough(setting, key)
    if first is None:
        return f"not reached at {share(points[-1].alpha)}, the largest measured,"
    return share(first) if first > 0 else "0\u00a0% (no collective is needed)"


def _first_enough(setting: Setting, key: Key) -> float | None:
    return next((point.alpha for point in setting.measured if point.mean(key) >= ENOUGH), None)


def _listed(values: dict[str, float]) -> str:
    """Each value with its setting; of more than a few, only the smallest and the largest."""
    values = {name: value for name, value in values.items() if not math.isnan(value)}
    if not values:
        return "not measured"
    if len(values) > FEW:
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        return f"between {percent(values[low])} with {low} and {percent(values[high])} with {high}"
    return _joined([f"{percent(value)} with {name}" for name, value in values.items()])


def _span(ascending: list[str]) -> str:
    low, high = ascending[0], ascending[-1]
    return low if low == high else f"between {low} and {high}"


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
            f"Every number is a mean over {seeds} seeds. With two seeds a 95\u00a0% interval is so wide (or, where "
            "both happen to agree, so deceptively narrow) that it says little: repeat the study with more seeds before "
            "citing it."
        )
    return f"Every number is a mean over {seeds} seeds."


def deeds(study: StudyResults) -> list[tuple[str, str, str]]:
    """For each strategy of the study: its name, what the collective does, and what its success is, as the strategy's
    file documents them, a `field` with its value where all settings have the same."""
    found: list[tuple[str, str, str]] = []
    for name in dict.fromkeys(setting.experiment.strategy.name for setting in study.settings):
        strategies = [s.experiment.strategy for s in study.settings if s.experiment.strategy.name == name]
        kind = type(strategies[0])

        def value(match: re.Match[str], strategies: list[Any] = strategies) -> str:
            values = {str(getattr(strategy, match[1], match[1])) for strategy in strategies}
            return f"{match[1]} = {values.pop()}" if len(values) == 1 and values != {match[1]} else match[1]

        module = " ".join((sys.modules[kind.__module__].__doc__ or "").split())
        defined = re.search(r"\bSuccess\b.*?(?=\n\s*\n|\Z)", inspect.cleandoc(kind.__doc__ or ""), re.DOTALL)
        success = " ".join(defined[0].split()) if defined else ""
        found.append((name, re.sub(r"`(\w+)`", value, module), re.sub(r"`(\w+)`", value, success)))
    return found


def facts(study: StudyResults) -> list[str]:
    """How many runs there are, and what all settings have in common."""
    experiments = [setting.experiment for setting in study.settings]
    common = (
        ("data {}", {e.data.name for e in experiments}),
        ("model {}", {e.model.name for e in experiments}),
        ("{}", {counted(e.data.users, "user") for e in experiments}),
        ("{}", {counted(e.training.rounds, "round") for e in experiments}),
    )
    runs = counted(len(study.runs), "simulated run")
    return [runs, *(text.format(*values) for text, values in common if len(values) == 1)]
