"""What several tests need: a small federation in memory, and an experiment over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedacdp.config import Execution, Experiment, experiment_from
from fedacdp.users import Schema, Users


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
