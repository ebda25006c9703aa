"""A run on disk, and the tidy table of many runs.

`<out>/<study>/<run_id>/` holds experiment.json, rounds.parquet, model.safetensors and, written last, manifest.json: a
run is there when its manifest is. While it runs there is a checkpoint. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from fedacdp import bounds, firms
from fedacdp.config import ConfigError, Experiment, experiment_from
from fedacdp.derived import derived
from fedacdp.rounds import Row

COLUMNS = [
    "study",
    "run_id",
    "seed",
    "dataset",
    "model",
    "users",
    "strategy",
    "alpha",
    "mechanism",
    "unit",
    "observer",
    "adjacency",
    "epsilon",
    "delta",
    "noise_multiplier",
    "clip_norm",
    "sampling_prob",
    "round",
    "metric",
    "group",
    "value",
    "seconds",
    "setting",
    "role",
    "status",
    "warning",
    "note",
]
"""Columns of the tidy table. `setting` names what distinguishes the run's experiment besides seed and alpha: runs are
repetitions of each other if, and only if, setting and alpha agree. `role` is `run`, or `baseline` for a run without a
collective that was added for comparison. `note` says why a bound has no value, and what a floor is worth."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SHARE = re.compile(r"strategy\.collectives\.[^.]+\.alpha")
_ROUNDS = {"round": "int32", "metric": "str", "group": "str", "value": "float64", "seconds": "float64"}


USERS = "users.parquet"
"""What each user was served in the last round, of runs on ratings."""


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; ValueError for infinity or NaN, which JSON does not have."""
    write(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def save_users(folder: Path, users: pd.DataFrame) -> None:
    """One line per user, see `ranking.by_user`."""
    buffer = io.BytesIO()
    users.to_parquet(buffer, index=False)
    write(folder / USERS, buffer.getvalue())


def save_rounds(folder: Path, rows: list[Row]) -> None:
    """The rounds of a run as Parquet: one line per metric and group."""
    lines = [(row.round, metric, group, value, row.seconds) for row in rows for metric, group, value in row.values]
    frame = pd.DataFrame(lines, columns=list(_ROUNDS)).astype(_ROUNDS)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write(folder / "rounds.parquet", buffer.getvalue())


def save_model(folder: Path, shapes: dict[str, tuple[int, ...]], parameters: np.ndarray) -> None:
    """The model as safetensors, one array per parameter, by name, in the precision that it has."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    pieces = np.split(parameters, ends)
    named = {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
    write(folder / "model.safetensors", save(named))


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, None if the run is not finished; ConfigError if it is damaged."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        return manifest if isinstance(manifest["status"], str) else None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: damaged manifest ({error}); delete the folder to run it again") from None


def finished_runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any], Experiment]]:
    """Every finished run at or below `folder`: its folder, manifest and experiment."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of results")
    for path in sorted(folder.rglob("manifest.json")):
        manifest = manifest_of(path.parent)
        if manifest is None:
            continue
        try:
            raw = json.loads((path.parent / "experiment.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path.parent}: experiment.json cannot be read ({error})") from None
        yield path.parent, manifest, experiment_from(raw)


def table(folder: Path) -> pd.DataFrame:
    """The tidy table of all finished runs at or below `folder`, columns COLUMNS, one row per run, round, metric, group.

    What was measured of the model, as `success` and `accuracy`, has a `success_baseline`, `accuracy_baseline` and so on
    of the same round and group: the same experiment without a collective, with the same random numbers. From both
    follow `accuracy_drop`, `amplification`, `utility` and `persistence`, see `fedacdp.outcomes`, and a
    `success_ceiling` and a `success_floor`, or why there is none, see `bounds.rows`. From the runs of two firms follows
    `dlp`, see `firms.rows`. ConfigError if there are no runs or a file is damaged.
    """
    runs = list(finished_runs(folder))
    if not runs:
        raise ConfigError(f"{folder}: no finished runs")
    labels = settings([experiment for _, _, experiment in runs])
    constants, rounds, about, served, certificates = [], {}, {}, {}, {}
    for (path, manifest, experiment), label in zip(runs, labels, strict=True):
        slot = (manifest["study"], experiment.run_id)
        try:
            rounds[slot] = pd.read_parquet(path / "rounds.parquet")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path / 'rounds.parquet'}: cannot be read ({error})") from None
        if (path / USERS).exists():
            served[slot] = pd.read_parquet(path / USERS)
        constants.append(_constants(manifest, experiment, label))
        about[slot] = (experiment, constants[-1]["noise_multiplier"], rounds[slot])
        certificates[slot] = manifest.get("certificate", {})
    parts = [frame.assign(study=study, run_id=run_id) for (study, run_id), frame in rounds.items()]
    for _, manifest, experiment in runs:
        own = rounds[manifest["study"], experiment.run_id]
        alone = (manifest["study"], experiment.baseline.run_id)
        slot = (manifest["study"], experiment.run_id)
        both = (served[slot], served[alone]) if slot in served and alone in served else None
        found = derived(own, rounds.get(alone), experiment.strategy, manifest.get("label_shares", {}), both)
        parts.append(found.assign(study=manifest["study"], run_id=experiment.run_id))
    found = pd.concat(parts, ignore_index=True).merge(pd.DataFrame(constants), on=["study", "run_id"])
    powers = firms.rows(found, {slot: experiment for slot, (experiment, *_) in about.items()})
    bounded = bounds.rows(found, about, certificates)
    found = pd.concat([found.assign(note=""), powers.assign(note=""), bounded], ignore_index=True)
    order = ["study", "mechanism", "epsilon", "setting", "alpha", "seed", "round"]
    return found.sort_values(order, kind="stable")[COLUMNS].reset_index(drop=True)


def as_csv(frame: pd.DataFrame) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula gets a quote before it, as OWASP advises."""
    safe = {}
    for name in frame:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            formulas = {text: f"'{text}" for text in frame[name].unique() if str(text).startswith(_FORMULA)}
            safe[str(name)] = frame[name].replace(formulas) if formulas else frame[name]
    return frame.assign(**safe).to_csv(index=False)


def _constants(manifest: dict[str, Any], experiment: Experiment, label: str) -> dict[str, Any]:
    guarantee = manifest["guarantee"]
    return {
        "study": manifest["study"],
        "run_id": experiment.run_id,
        "seed": experiment.seed,
        "dataset": experiment.data.name,
        "model": experiment.model.name,
        "users": experiment.data.users,
        "strategy": experiment.strategy.name,
        "alpha": experiment.strategy.alpha,
        "mechanism": experiment.privacy.name,
        **{name: guarantee[name] for name in ("unit", "observer", "adjacency")},
        **{name: _number(guarantee[name]) for name in ("epsilon", "delta", "noise_multiplier", "clip_norm")},
        "sampling_prob": experiment.training.sampling_prob,
        "setting": label,
        "role": manifest["role"],
        "status": manifest["status"],
        "warning": "; ".join(guarantee["warnings"]),
    }


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


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
