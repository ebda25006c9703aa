"""What tells the settings of a study apart, in words."""

from __future__ import annotations

import json
import re
from typing import Any

from fedacdp.config import Experiment

_SHARE = re.compile(r"strategy\.collectives\.[^.]+\.alpha")


def settings(experiments: list[Experiment]) -> list[str]:
    """For each experiment a text that tells its setting, seed and alpha aside, from the others': the mechanism with its
    budget, then every field that is not the same in all experiments that have the same part there."""
    flat = [_flat(json.loads(experiment.text)) for experiment in experiments]
    for fields in flat:
        if fields["strategy.alpha"] == 0:  # says that all collectives are empty
            for name in [name for name in fields if _SHARE.fullmatch(name)]:
                del fields[name]
    seen: dict[tuple[str, Any], set[str]] = {}
    for fields in flat:
        for name, value in fields.items():
            seen.setdefault((name, fields.get(_part_name(name))), set()).add(json.dumps(value))
    named = ("data.name", "model.name", "strategy.name", "aggregation.name")
    parts = {name for name in named if len({fields[name] for fields in flat}) > 1}
    told_by_alpha = {"seed", "strategy.alpha"}
    varying = {name for (name, _), values in seen.items() if _SHARE.fullmatch(name) and len(values) > 1}
    if len(varying) == 1:  # then alpha, the sum, says which it is
        told_by_alpha |= varying

    def label(fields: dict[str, Any]) -> str:
        words = [fields["privacy.name"], *(fields[name] for name in sorted(parts))]
        for name, value in fields.items():
            differs = len(seen[name, fields.get(_part_name(name))]) > 1 and not name.endswith(".name")
            budget = name in ("privacy.epsilon", "privacy.noise_multiplier", "privacy.message_epsilon")
            if value is not None and (budget or differs) and name not in told_by_alpha:
                words.append(
                    f"{name.removeprefix('privacy.')}={value:g}" if isinstance(value, float) else f"{name}={value}"
                )
        return " ".join(words)

    return [label(fields) for fields in flat]


def _part_name(field: str) -> str:
    return field.partition(".")[0] + ".name"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{path}.{name}".strip(".")).items()
    }
