"""The exact frequency classifier on declared cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from fedacdp.keys import Key
from fedacdp.models.base import Learner, Model
from fedacdp.users import Column, Schema

MOST = 2**24
"""Parameters that a histogram may have: 128 MiB, and whole numbers up to here are exact in float32."""
_TIE = 1e-12


class Histogram(Model):
    """f(x) = argmax_y count(cell of x, y): the classifier of Gauthier et al. 2025 (arXiv 2502.04879).

    cells: the columns of a table whose values together are a record's cell. A categorical column has a value per level,
    or, where `levels` lists some of them, one for each of these and one for all others; a numeric column needs `bins`,
    the rising edges e1, e2, ... of the intervals below e1, from e1 to below e2, ..., from the last on.

    A user sends the counts of its records, one-hot where it has one record; they are clipped, noised and summed as any
    update, and rounds add up. The parameters are the sum of all rounds divided by the expected cohort: with
    sampling_prob = 1 and one round the joint frequencies of cell and class, times the records of a user.

    ties: classes in the order in which they win ties; those not named follow in the order of the data set. An empty
    cell is a tie of all classes, and a record outside of all cells (a level that the training part lacks) is treated as
    one in an empty cell. Values that differ by less than 1e-12 of the largest are equal: that is rounding.
    """

    name: Literal["histogram"] = "histogram"
    learns_by: ClassVar[Literal["gradients", "counts", "ratings"]] = "counts"
    cells: Annotated[tuple[str, ...], Field(min_length=1)]
    levels: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    bins: dict[str, Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]] = {}
    ties: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        _once("cells", self.cells)
        _once("ties", self.ties)
        for field, name in [("levels", name) for name in self.levels] + [("bins", name) for name in self.bins]:
            if name not in self.cells:
                raise ValueError(f"{field}.{name}: not among the columns of cells: {', '.join(self.cells)}")
        for name, levels in self.levels.items():
            _once(f"levels.{name}", levels)
        for name, edges in self.bins.items():
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"bins.{name} = {list(edges)}: edges must rise")
        return self

    def net(self, schema: Schema) -> Counts:
        if schema.items:
            raise ValueError(f"model.name = {self.name!r}: counts classes; ratings need matrix_factorization")
        axes = [self._axis(name, schema) for name in self.cells]
        classes, cells = len(schema.classes), math.prod(axis.values for axis in axes)
        if cells * classes > MOST:
            raise ValueError(
                f"model.cells: {cells:,} cells of {classes} classes each are more than the {MOST:,} counts that are "
                "allowed; take fewer columns or bins, or list only the levels that matter (model.levels)"
            )
        for name in self.ties:
            if name not in schema.classes:
                raise ValueError(f"model.ties = {name!r}: no class; there are: {', '.join(schema.classes)}")
        order = sorted(range(classes), key=lambda y: (*self.ties, *schema.classes).index(schema.classes[y]))
        return Counts(tuple(axes), classes, np.array(order))

    def _axis(self, name: str, schema: Schema) -> Axis:
        try:
            column = schema.column(name)
        except ValueError as error:
            raise ValueError(f"model.cells = {name!r}: {error}") from None
        levels, edges = self.levels.get(name), self.bins.get(name)
        if column.levels:
            if edges is not None:
                raise ValueError(f"model.bins.{name}: the column is categorical, every level is a value of its own")
            return _categorical(column, levels)
        if levels is not None:
            raise ValueError(f"model.levels.{name}: the column is numeric, it needs model.bins")
        if edges is None:
            raise ValueError(f"model.cells = {name!r}: the column is numeric, it needs edges in model.bins.{name}")
        # As records are stored, so that a value equal to an edge stays equal to it.
        stored = ((np.array(edges) - column.mean) / column.std).astype(np.float32)
        return Axis(column, len(edges) + 1, edges=stored)


class Axis(NamedTuple):
    """One column of the cells, with so many values: value_of[l] is that of level l, or `edges` cut the numbers."""

    column: Column
    values: int
    value_of: np.ndarray | None = None
    edges: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Counts(Learner):
    """Counts of records by cell and class as a flat vector (cells * classes,) float64, the class running fastest.
    `order` (classes,) is the order in which classes win ties."""

    axes: tuple[Axis, ...]
    classes: int
    order: np.ndarray

    @property
    def cells(self) -> int:
        """The number of cells."""
        return math.prod(axis.values for axis in self.axes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"counts": (self.cells, self.classes)}

    def initial(self, key: Key) -> np.ndarray:
        return np.zeros(self.size)

    def cell(self, x: np.ndarray) -> np.ndarray:
        """The cell of each record x (m, F), (m,) int64, -1 for a record that lies in none."""
        found, inside = np.zeros(len(x), np.int64), np.ones(len(x), dtype=bool)
        for axis in self.axes:
            part = x[:, axis.column.start : axis.column.stop]
            found *= axis.values
            if axis.edges is not None:
                found += np.searchsorted(axis.edges, part[:, 0], side="right")
                continue
            # A product is many times faster than looking for the ones. The second column tells that there is just one.
            value = part @ np.stack([np.asarray(axis.value_of), np.ones(part.shape[1])], axis=1, dtype=np.float32)
            inside &= (value[:, 1] == 1) & (value[:, 0] >= 0) & (value[:, 0] < axis.values)
            found += np.where(inside, value[:, 0], 0).astype(np.int64)
        return np.where(inside, found, -1)

    def place(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Where each record x (m, F), y (m,) is counted in the flat vector, (m,) int64; -1 for one in no cell."""
        cell = self.cell(x)
        return np.where(cell < 0, -1, cell * self.classes + y)

    def predict(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        table = flat.reshape(self.cells, self.classes)[:, self.order]
        near = table >= table.max(axis=1, keepdims=True) - _TIE * np.abs(flat).max()
        best, cell = self.order[near.argmax(axis=1)], self.cell(x.reshape(len(x), -1))
        return np.where(cell < 0, self.order[0], best[cell])


def _categorical(column: Column, levels: tuple[str, ...] | None) -> Axis:
    if levels is None:
        return Axis(column, len(column.levels), value_of=np.arange(len(column.levels)))
    for level in levels:
        if level not in column.levels:
            raise ValueError(
                f"model.levels.{column.name} = {level!r}: no level; there are: {', '.join(column.levels[:20])}"
            )
    value_of = np.array([levels.index(level) if level in levels else len(levels) for level in column.levels])
    return Axis(column, int(value_of.max()) + 1, value_of=value_of)


def _once(field: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{field}: {name!r} is there twice")
