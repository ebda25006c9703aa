"""What several tests need: a small federation in memory, and an experiment over it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedacdp.config import Execution, Experiment, experiment_from
from fedacdp.products import one_thread
from fedacdp.rounds import Compute, Setting, run
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
