"""What several tests need: a small federation in memory, and an experiment over it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedacdp.config import Execution, Experiment, experiment_from, parts_of
from fedacdp.data import tables
from fedacdp.data.base import DataSet, Source
from fedacdp.privacy.base import Noisy
from fedacdp.products import one_thread
from fedacdp.rounds import Compute, run
from fedacdp.setting import Setting
from fedacdp.users import Schema, Users


@pytest.fixture(autouse=True, scope="session")
def threads() -> None:
    """One thread for all products, as in every engine."""
    one_thread()


def block(
    users: int = 7,
    records: int = 6,
    shape: tuple[int, ...] = (12,),
    classes: int = 4,
    ragged: bool = True,
    seed: int = 0,
) -> Users:
    """Users with normal features, some with fewer records than others."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, records + 1, users) if ragged else np.full(users, records)
    mask = np.arange(records)[None, :] < sizes[:, None]
    x = rng.standard_normal((users, records, *shape)).astype(np.float32)
    y = rng.integers(0, classes, (users, records))
    x[~mask], y[~mask] = 0, 0
    schema = Schema(shape, tuple(str(c) for c in range(classes)))
    return Users(np.arange(users) * 3 + 1, x, y, mask, np.zeros(users, bool), schema)


def raw_experiment(**changes: Any) -> dict[str, Any]:
    """Plain values of a small experiment on digits; `changes` replace whole tables or, dotted with __, single keys."""
    raw: dict[str, Any] = {
        "data": {"name": "digits", "users": 60},
        "model": {"name": "logistic"},
        "strategy": {"name": "planting", "alpha": 0.1, "y_star": 8, "signal": "patch"},
        "privacy": {"name": "none"},
        "training": {"rounds": 3, "sampling_prob": 0.5, "local_steps": 2, "batch": 4, "local_lr": 0.1},
        "seed": 7,
    }
    for key, value in changes.items():
        table, _, field = key.partition("__")
        if field:
            raw[table] = {**raw[table], field: value}
        else:
            raw[table] = value
    return raw


def experiment(**changes: Any) -> Experiment:
    return experiment_from(raw_experiment(**changes))


class Toy(DataSet):
    """A generated table of two categorical columns and a numeric one, whose label follows its colour as a rule."""

    name: Literal["toy"] = "toy"
    rows: int = 400

    def load(self, folder: Path) -> Source:
        rng = np.random.default_rng(5)
        levels = {"colour": ("blue", "green", "red"), "size": ("1", "2", "3", "4")}
        parts = []
        for rows in (self.rows, 120):
            table = {name: rng.choice(values, rows) for name, values in levels.items()}
            table["age"] = rng.integers(18, 80, rows).astype(str)
            usual = np.searchsorted(levels["colour"], table["colour"])
            table["label"] = np.array(["x", "y", "z"])[
                np.where(rng.random(rows) < 0.6, usual, rng.integers(0, 3, rows))
            ]
            parts.append(table)
        return tables.encode(parts[0], parts[1], "label", ("x", "y", "z"), ("age",))


CELLS = {"name": "histogram", "cells": ["colour", "size", "age"], "bins": {"age": [30, 50.5]}}


def counting(**changes: Any) -> Experiment:
    """A small experiment in which users of one record are counted: 36 cells of 3 classes."""
    base: dict[str, Any] = {
        "data": Toy(users=60, partition="resampled", records=1),
        "model": CELLS,
        "strategy": {"name": "planting", "alpha": 0.1, "y_star": "z", "signal": COLUMNS},
        "training": {"rounds": 3, "sampling_prob": 0.5},
    }
    return experiment(**base | changes)


COLUMNS = {"name": "columns", "values": {"colour": "red", "size": "2"}}


SCALED: dict[str, Any] = {
    "name": "group_aware",
    "way": "scale",
    "noise_multiplier": 0.5,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "clip_norms": {"others": 0.4},
}
"""Budgets by group in their numbers, for data of any groups."""

MECHANISMS: dict[str, dict[str, Any]] = {
    name: {"name": name}
    | ({"noise_multiplier": 0.5, "delta": 1e-5, "clip_norm": 0.5} if issubclass(part, Noisy) else {})
    | ({"message_epsilon": 1.0} if name == "randomised_response" else {})
    | (SCALED if name == "group_aware" else {})
    for name, part in parts_of("privacy").items()
}
"""Every mechanism with fields it can be used with."""


def under(privacy: dict[str, Any], **changes: Any) -> Experiment:
    """The small experiment under a mechanism: users who train, or, where the mechanism needs it, are counted."""
    part: Any = parts_of("privacy")[privacy["name"]]
    small = counting if part.needs == "counts" else experiment
    return small(privacy=privacy, **changes)


def local(chunk: int = 128) -> Execution:
    return Execution(engine="local", chunk=chunk, data_dir=Path("absent"))


def last_bytes(setting: Setting, execution: Execution, compute: Compute) -> bytes:
    """The parameters after a whole run."""
    *_, (state, _) = run(setting, execution, compute)
    return state.parameters.tobytes()


def descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, with its command."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for child, above, command in rows:
            if int(above) == parent and int(child) not in found:
                found[int(child)] = command
                todo.append(int(child))
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
