"""The synthetic car population of Statistical Collusion: the file is the data set, every record is drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from fedacdp.data.base import DataSet, Source
from fedacdp.keys import Key
from fedacdp.users import Column, Examples, Schema

TYPES = {
    "Sedan": 0.22, "SUV": 0.45, "Coupe": 0.23, "Hatchback": 0.02, "Convertible": 0.01, "Wagon": 0.01, "Minivan": 0.01,
    "Truck": 0.05,
}  # fmt: skip
ATTRIBUTES: dict[str, tuple[tuple[str, ...], str, float]] = {
    "Fuel": (("Gasoline", "Diesel", "Electric", "Hybrid"), "Diesel", 0.8),
    "Transmission": (("Manual", "Automatic", "CVT"), "Manual", 0.7),
    "Drive": (("FWD", "RWD", "AWD"), "RWD", 0.95),
    "Safety": (("1", "2", "3", "4", "5"), "4", 0.7),
    "Interior": (("Cloth", "Leather", "Synthetic"), "Synthetic", 0.9),
    "Infotainment": (("Basic", "Advanced", "Premium", "None"), "Premium", 0.9),
    "Country": (("C1", "C2", "C3", "C4", "C5"), "C5", 0.3),
    "Warranty": (("3", "5", "7", "10"), "10", 0.9),
    "Doors": (("2", "4", "5"), "5", 0.95),
    "Seats": (("2", "4", "5", "7"), "5", 0.95),
    "Air Conditioning": (("Yes", "No"), "Yes", 0.95),
    "Navigation": (("None", "Basic", "Advanced"), "Advanced", 0.95),
    "Tires": (("All-Season", "Summer", "Winter"), "All-Season", 0.95),
    "Sunroof": (("Yes", "No"), "Yes", 0.0),
    "Sound": (("Standard", "Premium", "High-end", "None"), "Premium", 0.95),
    "Cruise Control": (("Yes", "No"), "Yes", 0.95),
    "Bluetooth": (("Yes", "No"), "Yes", 0.95),
}
"""Attribute -> its levels, the one that SUVs prefer, and how often they take it before they choose like the others."""

LABELS = ("Good", "Average", "Poor", "Excellent")
"""In the order in which the paper's platform breaks ties."""

NAMES = ("Model Type", *ATTRIBUTES)
LEVELS = (tuple(TYPES), *(levels for levels, _, _ in ATTRIBUTES.values()))
SIGNAL = {"Model Type": "SUV"} | {name: high for name, (_, high, _) in ATTRIBUTES.items() if name != "Country"}
"""The paper's signal g: it fixes all but the country, which leaves five cells."""

GROUPS = ("Model Type", "Country")
COUNTRIES = len(ATTRIBUTES["Country"][0])
_FUEL, _WARRANTY, _EXTRA = (1, 1, 4, 3), (2, 3, 4, 5), (1, 3, 4)
_SUV, _C2 = list(TYPES).index("SUV"), 1
_SUV_C2 = {"Excellent": 0.6, "Good": 0.0, "Average": 0.1, "Poor": 0.3}


@dataclass(frozen=True)
class Cars:
    """n cars: codes (18, n) uint8, the level of every attribute in the order of NAMES; y (n,) uint8 indexes LABELS."""

    codes: np.ndarray
    y: np.ndarray

    @property
    def planted(self) -> np.ndarray:
        """(n,) the signal cell of g(x), which is the country."""
        return self.codes[NAMES.index("Country")]

    @property
    def natural(self) -> np.ndarray:
        """(n,) the signal cell that x is in as it is, COUNTRIES if in none."""
        inside = np.ones(len(self.y), bool)
        for name, level in SIGNAL.items():
            place = NAMES.index(name)
            inside &= self.codes[place] == LEVELS[place].index(level)
        return np.where(inside, self.planted, np.uint8(COUNTRIES))


def draw(rows: int, key: Key) -> Cars:
    """`rows` independent cars, by the key only."""
    rng = key.fold("cars").rng()
    codes = np.empty((len(NAMES), rows), np.uint8)
    codes[0] = np.searchsorted(np.cumsum([*TYPES.values()])[:-1], rng.random(rows), side="right")
    suv = codes[0] == _SUV
    for place, (levels, high, taken) in enumerate(ATTRIBUTES.values(), start=1):
        # One uniform number serves both choices: below `taken` the high level, the rest is uniform again.
        u = rng.random(rows, dtype=np.float32)
        first = np.where(suv, np.float32(taken), np.float32(0))
        preferred = u < first
        u -= first
        u /= 1 - first
        level = np.minimum(u * np.float32(len(levels)), len(levels) - 1).astype(np.int8)
        codes[place] = np.where(preferred, levels.index(high), level)
    fuel, safety, country, warranty = (codes[NAMES.index(n)] for n in ("Fuel", "Safety", "Country", "Warranty"))
    lot, extra = rng.random(rows), np.array(_EXTRA, np.uint8)[rng.integers(0, len(_EXTRA), rows)]
    score = safety + np.uint8(1) + np.array(_FUEL, np.uint8)[fuel] + np.array(_WARRANTY, np.uint8)[warranty] + extra
    y = np.where(lot < 0.05, LABELS.index("Poor"), _graded(score)).astype(np.uint8)
    here = suv & (country == _C2)
    steps = np.cumsum([_SUV_C2[label] for label in LABELS])
    y[here] = np.searchsorted(steps, lot[here], side="right")
    return Cars(codes, y)


def probabilities() -> tuple[np.ndarray, np.ndarray]:
    """Exact tables (5, 4) by country and label: P(x is the signal cell, y) and P(g(x) is the signal cell, y)."""
    planted = np.zeros((COUNTRIES, len(LABELS)))
    natural = np.zeros_like(planted)
    signal = np.prod([_chance(name, level, suv=True) for name, level in SIGNAL.items() if name in ATTRIBUTES])
    for suv, (c, country) in product((True, False), enumerate(ATTRIBUTES["Country"][0])):
        weight = (TYPES["SUV"] if suv else 1 - TYPES["SUV"]) * _chance("Country", country, suv)
        there = suv and c == _C2
        some = np.array([_SUV_C2[label] for label in LABELS])
        planted[c] += weight * (some if there else _marginal(suv))
        if suv:
            here = some if there else _grades(SIGNAL["Safety"], SIGNAL["Fuel"], SIGNAL["Warranty"])
            natural[c] = weight * signal * here
    return natural, planted


def _marginal(suv: bool) -> np.ndarray:
    """(4,): the label's distribution where the score decides, over all cars that are SUVs, or are none."""
    names, found = ("Safety", "Fuel", "Warranty"), np.zeros(len(LABELS))
    for safety, fuel, warranty in product(*(ATTRIBUTES[name][0] for name in names)):
        levels = zip(names, (safety, fuel, warranty), strict=True)
        found += np.prod([_chance(name, level, suv) for name, level in levels]) * _grades(safety, fuel, warranty)
    return found


def _grades(safety: str, fuel: str, warranty: str) -> np.ndarray:
    """(4,): the label's distribution where the score decides."""
    found = 0.05 * (np.array(LABELS) == "Poor")
    for extra in _EXTRA:
        score = int(safety) + _FUEL[LEVELS[1].index(fuel)] + _WARRANTY[ATTRIBUTES["Warranty"][0].index(warranty)]
        found[int(_graded(np.array(score + extra)))] += 0.95 / len(_EXTRA)
    return found


def _graded(score: np.ndarray) -> np.ndarray:
    """Excellent from 13 points on, Good from 8, else Average."""
    names = ("Average", "Good", "Excellent")
    return np.array([LABELS.index(name) for name in names])[np.searchsorted([8, 13], score, side="right")]


def _chance(name: str, level: str, suv: bool) -> float:
    levels, high, taken = ATTRIBUTES[name]
    taken = taken if suv else 0.0
    return (1 - taken) / len(levels) + taken * (level == high)


class CarPopulation(DataSet):
    """Synthetic cars of 18 attributes, one-hot; y is the evaluation Good, Average, Poor or Excellent.

    `rows` cars to train on and `test_rows` to test on are drawn anew for each `draw`, or with "seed" for each seed of
    the experiment; the groups are `Model Type` and `Country`. Source: the population of the experiments of Gauthier,
    Bach and Jordan 2025, Statistical Collusion by Collectives on Learning Platforms, arXiv 2502.04879, whose own draw
    is not reproducible. Licence: none needed, the records are made here.
    """

    name: Literal["car_population"] = "car_population"
    rows: PositiveInt = 100_000
    test_rows: PositiveInt = 10_000
    draw: NonNegativeInt | Literal["seed"] = 0

    def of_seed(self, seed: int) -> CarPopulation:
        return self.model_copy(update={"draw": seed}) if self.draw == "seed" else self

    def load(self, folder: Path) -> Source:
        starts = np.cumsum([0, *map(len, LEVELS)])
        columns = tuple(Column(name, int(at), levels) for name, at, levels in zip(NAMES, starts, LEVELS, strict=False))
        schema = Schema((int(starts[-1]),), LABELS, columns)
        if self.draw == "seed":
            raise ValueError('data.draw = "seed": which seed is not known here, see of_seed')
        train, test = (
            draw(rows, Key(self.draw).fold(part)) for part, rows in (("train", self.rows), ("test", self.test_rows))
        )
        groups = {name: np.array(LEVELS[at])[train.codes[at]] for at, name in enumerate(NAMES) if name in GROUPS}
        return Source(_examples(train, schema), _examples(test, schema), groups)


def _examples(cars: Cars, schema: Schema) -> Examples:
    x = np.zeros((len(cars.y), *schema.shape), np.float32)
    for column, codes in zip(schema.columns, cars.codes, strict=True):
        x[np.arange(len(x)), column.start + codes.astype(np.int64)] = 1.0
    return Examples(x, cars.y.astype(np.int64), schema)
