"""The ranges in which arguments of formulas must lie. ValueError names the argument, its value and what is allowed."""

from __future__ import annotations

import math

import numpy as np


def share(name: str, value: float) -> float:
    """`value` if it is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value}: must be between 0 and 1")
    return float(value)


def inside(name: str, value: float) -> float:
    """`value` if it is in (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value}: must be above 0 and below 1")
    return float(value)


def not_negative(name: str, value: float) -> float:
    """`value` if it is 0 or above, and finite."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} = {value}: must be 0 or above, and finite")
    return float(value)


def positive(name: str, value: float) -> float:
    """`value` if it is above 0, and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value}: must be above 0, and finite")
    return float(value)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
    return value


def amounts(name: str, values: np.ndarray) -> np.ndarray:
    """A vector as float64 if it has entries and all of them are 0 or above, and finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"{name}: must be a vector with at least one entry, not of shape {vector.shape}")
    if not (np.isfinite(vector) & (vector >= 0)).all():
        worst = vector[~(np.isfinite(vector) & (vector >= 0))][0]
        raise ValueError(f"{name}: an entry is {worst}; all must be 0 or above, and finite")
    return vector


def shares(name: str, values: np.ndarray) -> np.ndarray:
    """A vector as float64 if it has entries and all of them are in [0, 1]."""
    vector = amounts(name, values)
    if (vector > 1).any():
        raise ValueError(f"{name}: an entry is {vector.max()}; all must be between 0 and 1")
    return vector
