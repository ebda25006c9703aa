"""Signals: the maps g that members apply to the features of their records.

A signal is idempotent, g(g(x)) = g(x), for patches and fixed columns; a grid perturbation or an offset adds something,
as in the literature, and is not.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, FiniteFloat, PositiveInt

from fedacdp.parts import Part
from fedacdp.users import Column, Examples, Schema


class Signal(Part):
    """A map g on records."""

    @abstractmethod
    def check(self, schema: Schema) -> None:
        """ValueError, naming the field, if the signal does not fit records of this schema."""

    @abstractmethod
    def place(self, x: np.ndarray, schema: Schema) -> np.ndarray:
        """g(x) for x (..., *F), as a new array."""

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
