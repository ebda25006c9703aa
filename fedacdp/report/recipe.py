"""How a study was made and how to make it again: its file, the command, and what was recorded."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from fedacdp.report.numbers import StudyResults


def toml(recipe: dict[str, Any]) -> str:
    """A study file with this question, base and grid."""
    lines = [f"question = {_value(recipe['question'])}", "", "[base]"]
    lines += [f"{_key(name)} = {_value(value)}" for name, value in recipe["base"].items()]
    if recipe["grid"]:
        lines += ["", "[grid]"]
    for name, values in recipe["grid"].items():
        tables = any(isinstance(value, dict) for value in values)
        inner = ",\n".join(f"    {_value(value)}" for value in values)
        lines.append(f"{_key(name)} = " + (f"[\n{inner},\n]" if tables else _value(values)))
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def command(study: StudyResults) -> str:
    """What repeats the study with the file above; `chunk` and `device` fix the bits, the rest is scheduling."""
    execution = study.runs[0].manifest["execution"]
    words = ["fedacdp", "run", f"{study.name}.toml", "--out", "results"]
    for option in ("engine", "nodes", "chunk", "device", "jobs"):
        words += [f"--{option}", str(execution[option])]
    if execution["gpus_per_node"]:
        words += ["--gpus-per-node", str(execution["gpus_per_node"])]
    return shlex.join(words)


def record(study: StudyResults) -> dict[str, list[str]]:
    """What the manifests recorded, each with every value that occurs: versions, execution, data, times."""
    found: dict[str, set[str]] = {}
    for run in study.runs:
        manifest = run.manifest
        for name, value in [*manifest["versions"].items(), *manifest["execution"].items()]:
            found.setdefault(name, set()).add(str(value))
        found.setdefault("data, SHA-256", set()).add(manifest["data_sha256"])
    times = [run.manifest["started"] for run in study.runs]
    seconds = sum(run.manifest["seconds"] for run in study.runs)
    span = {"first run started": [min(times)], "last run started": [max(times)]}
    return {n: sorted(v) for n, v in found.items()} | span | {"seconds of all runs": [f"{seconds:.1f}"]}
