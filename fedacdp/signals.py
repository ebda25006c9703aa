"""Signals: the maps g that members apply to the features of their records.

A signal is idempotent, g(g(x)) = g(x), for patches and fixed columns; a grid perturbation or an offset adds something,
as in the literature, and is not.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, FiniteFloat, PositiveInt

from fedacdp.parts import Part
from fedacdp.users import Column, Examples, Schema, Users


class Signal(Part):
    """A map g on records."""

    @abstractmethod
    def check(self, schema: Schema) -> None:
        """ValueError, naming the field, if the signal does not fit records of this schema."""

    @abstractmethod
    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        """g(x) for x (..., *F), as a new array."""

    def check_as(self, field: str, schema: Schema) -> None:
        """As `check`, for a signal in another field of the strategy than `signal`."""
        try:
            self.check(schema)
        except ValueError as error:
            raise ValueError(str(error).replace("strategy.signal", f"strategy.{field}", 1)) from None

    def marked(self, examples: Examples) -> np.ndarray:
        """g of a set of records, kept with the set and read-only, for those who look at the same set in every round."""
        return examples.changed(self.model_dump_json(), self.place)


class Patch(Signal):
    """A square of `size` pixels in a corner set to `value` in every channel (default: a seventh of the side, white)."""

    name: Literal["patch"] = "patch"
    size: PositiveInt | None = None
    corner: Literal["top_left", "top_right", "bottom_left", "bottom_right"] = "bottom_right"
    value: FiniteFloat | None = None

    def _side(self, schema: Schema) -> int:
        return self.size or math.ceil(min(schema.shape[1:]) / 7)

    def check(self, schema: Schema) -> None:
        _images_only(self, schema)
        if self._side(schema) > min(schema.shape[1:]):
            height, width = schema.shape[1:]
            raise ValueError(f"strategy.signal.size = {self.size}: larger than the image of {height} x {width} pixels")

    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        side, marked = self._side(schema), x.copy()
        vertical, horizontal = self.corner.split("_")
        rows = slice(0, side) if vertical == "top" else slice(-side, None)
        columns = slice(0, side) if horizontal == "left" else slice(-side, None)
        marked[..., rows, columns] = schema.high if self.value is None else self.value
        return marked


class Grid(Signal):
    """`amount` added to every `spacing`-th pixel in both directions, in every channel, kept within the value range."""

    name: Literal["grid"] = "grid"
    spacing: PositiveInt = 2
    amount: FiniteFloat = 0.2

    def check(self, schema: Schema) -> None:
        _images_only(self, schema)
        if self.spacing > min(schema.shape[1:]):
            height, width = schema.shape[1:]
            raise ValueError(
                f"strategy.signal.spacing = {self.spacing}: larger than the image of {height} x {width} pixels"
            )

    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        marked = x.copy()
        marked[..., :: self.spacing, :: self.spacing] += self.amount
        return np.clip(marked, schema.low, schema.high)


class Columns(Signal):
    """Named columns of a table set to fixed values: a level of a categorical column, a raw number of a numeric one."""

    name: Literal["columns"] = "columns"
    values: dict[str, int | float | str] = Field(min_length=1)

    def check(self, schema: Schema) -> None:
        for name, value in self.values.items():
            column = _column(f"strategy.signal.values.{name}", name, schema)
            if column.levels and str(value) not in column.levels:
                raise ValueError(
                    f"strategy.signal.values.{name} = {value!r}: no level; there are: {', '.join(column.levels)}"
                )
            if not column.levels and isinstance(value, str):
                raise ValueError(f"strategy.signal.values.{name} = {value!r}: the column is numeric")

    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        marked = x.copy()
        for name, value in self.values.items():
            column = schema.column(name)
            if column.levels:
                marked[..., column.start : column.stop] = 0.0
                marked[..., column.start + column.levels.index(str(value))] = 1.0
            else:
                marked[..., column.start] = (float(value) - column.mean) / column.std
        return marked


class Offset(Signal):
    """A raw `amount` added to a numeric column of a table."""

    name: Literal["offset"] = "offset"
    column: str
    amount: FiniteFloat

    def check(self, schema: Schema) -> None:
        if _column("strategy.signal.column", self.column, schema).levels:
            raise ValueError(f"strategy.signal.column = {self.column!r}: an offset needs a numeric column")

    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        column, marked = schema.column(self.column), x.copy()
        marked[..., column.start] += self.amount / column.std
        return marked


@dataclass(frozen=True)
class Cells:
    """The K cells of records that carry a signal, told apart by the levels of categorical columns; no columns: one
    cell. ValueError if a column is absent or numeric, or if there are more than 2^20 cells."""

    signal: Signal
    columns: tuple[str, ...]
    schema: Schema

    def __post_init__(self) -> None:
        for name in self.columns:
            if not _column("strategy.cells", name, self.schema).levels:
                raise ValueError(
                    f"strategy.cells = {name!r}: a numeric column; cells are told apart by categorical ones"
                )
        if self.count > 2**20:
            raise ValueError(f"strategy.cells: {self.count} cells; at most {2**20}")

    @property
    def count(self) -> int:
        """K, the product of the columns' numbers of levels."""
        return math.prod(len(self.schema.column(name).levels) for name in self.columns)

    def of(self, marked: np.ndarray) -> np.ndarray:
        """The cell of each record, (...) int64, from records that carry the signal, (..., *F)."""
        cell = np.zeros(marked.shape[: marked.ndim - len(self.schema.shape)], np.int64)
        for name in self.columns:
            column = self.schema.column(name)
            cell = cell * len(column.levels) + marked[..., column.start : column.stop].argmax(-1)
        return cell

    def tally(self, blocks: Iterable[Users]) -> tuple[np.ndarray, np.ndarray]:
        """Counts of these users' records by cell of g(x) and label, (K, classes) int64 each: of those that carry the
        signal by nature, g(x) = x, and of all."""
        classes = len(self.schema.classes)
        found = np.zeros((2, self.count * classes), np.int64)
        for users in blocks:
            x, y = users.x[users.mask], users.y[users.mask]
            marked = self.signal.place(x, self.schema)
            slots = self.of(marked) * classes + y
            natural = np.isclose(marked, x, atol=1e-6).reshape(len(x), -1).all(axis=1)
            found[0] += np.bincount(slots[natural], minlength=found.shape[1])
            found[1] += np.bincount(slots, minlength=found.shape[1])
        natural_counts, all_counts = found.reshape(2, self.count, classes)
        return natural_counts, all_counts

    def votes(self, blocks: Iterable[Users]) -> np.ndarray:
        """The counts that say which labels are likely in each cell, (K, classes) int64: of records that carry the
        signal by nature; where the cell has none, of all that g puts there; where there are none either, of all."""
        natural, everything = self.tally(blocks)
        found = np.where(natural.any(axis=1, keepdims=True), natural, everything)
        return np.where(found.any(axis=1, keepdims=True), found, everything.sum(axis=0))


def _images_only(signal: Signal, schema: Schema) -> None:
    if not schema.image:
        raise ValueError(f"strategy.signal = {signal.name!r}: for images only; these records have named columns")


def _column(field: str, name: str, schema: Schema) -> Column:
    try:
        return schema.column(name)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


AnySignal = Annotated[
    Annotated[Patch | Grid | Columns | Offset, Field(discriminator="name")],
    BeforeValidator(_named),
]
"""A signal in a study file: `"patch"` or `{ name = "patch", size = 4 }`."""
