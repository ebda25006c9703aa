"""A run on disk, and the tidy table of many runs.

`<out>/<study>/<run_id>/` holds experiment.json, rounds.parquet, model.safetensors and, written last, manifest.json: a
run is there when its manifest is. While it runs there is a checkpoint. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet
from safetensors.numpy import save

from fedacdp import bounds, firms
from fedacdp.config import ConfigError, Experiment, experiment_from
from fedacdp.derived import constructiveness, derived
from fedacdp.labels import settings
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


def finished_runs(folder: Path, faults: list[str] | None = None) -> Iterator[tuple[Path, dict[str, Any], Experiment]]:
    """Every finished run at or below `folder`: its folder, manifest and experiment. ConfigError for one that cannot be
    read; with a list of `faults`, that is told there, a line each, and the others go on."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of results")
    for path in sorted(folder.rglob("manifest.json")):
        try:
            found = _run_in(path.parent, faults is not None)
        except ConfigError as error:
            if faults is None:
                raise
            faults.append(str(error))
            continue
        if found is not None:
            yield path.parent, *found


def _run_in(folder: Path, thorough: bool) -> tuple[dict[str, Any], Experiment] | None:
    manifest = manifest_of(folder)
    if manifest is None:
        return None
    try:
        raw = json.loads((folder / "experiment.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: experiment.json cannot be read ({error})") from None
    try:
        experiment = experiment_from(raw)
    except ConfigError as error:
        raise ConfigError(f"{folder}: experiment.json is not of this version of fedacdp: {error}") from None
    if thorough:
        absent = [name for name in ("study", "role", "guarantee", "execution", "versions") if name not in manifest]
        if absent:
            raise ConfigError(f"{folder}: manifest.json is not of this version of fedacdp: no {', '.join(absent)}")
        try:
            parquet.read_schema(folder / "rounds.parquet")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder / 'rounds.parquet'}: cannot be read ({error})") from None
    return manifest, experiment


def table(folder: Path, faults: list[str] | None = None) -> pd.DataFrame:
    """The tidy table of all finished runs at or below `folder`, columns COLUMNS, one row per run, round, metric, group.

    What was measured of the model, as `success` and `accuracy`, has a `success_baseline`, `accuracy_baseline` and so on
    of the same round and group: the same experiment without a collective, with the same random numbers. From both
    follow `accuracy_drop`, `amplification`, `utility` and `persistence`, see `fedacdp.outcomes`, and a
    `success_ceiling` and a `success_floor`, or why there is none, see `bounds.rows`. From the runs of two firms follows
    `dlp`, see `firms.rows`; where two collectives act, and the runs of each alone are there too, `constructiveness` of
    the group of each. ConfigError if there are no runs or a file is damaged, which goes to `faults` if there are some,
    see `finished_runs`.
    """
    runs = list(finished_runs(folder, faults))
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
        slot, nobody = (manifest["study"], experiment.run_id), (manifest["study"], experiment.baseline.run_id)
        both = (served[slot], served[nobody]) if slot in served and nobody in served else None
        found = derived(own, rounds.get(nobody), experiment.strategy, manifest.get("label_shares", {}), both)
        slots = {name: (manifest["study"], one.run_id) for name, one in experiment.alone.items()}
        alone = {name: rounds[slot] for name, slot in slots.items() if slot in rounds}
        if alone and nobody in rounds:
            found = pd.concat([found, constructiveness(own, alone, rounds[nobody])], ignore_index=True)
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
            formulas = {
                text: f"'{text}" for text in frame[name].unique() if isinstance(text, str) and text.startswith(_FORMULA)
            }
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


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
