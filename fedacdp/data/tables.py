"""Tables of text: reading them, and turning them into features.

Every cell stays text until its column is known to be numeric, so that "None", "NA" or "?" is a level like any other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence

import numpy as np

from fedacdp.data.base import Source
from fedacdp.users import Column, Examples, Schema

Table = dict[str, np.ndarray]
"""Columns by name, each (n,) text, in the order of the file."""


def parse(data: bytes, delimiter: str, names: Sequence[str] | None = None) -> Table:
    """The columns of a delimited text file; without `names` its first line has them.

    Blanks after a delimiter and empty lines are skipped, and so are lines of one cell that starts with `|` (comments of
    the UCI repository). ValueError names a line with too few or too many cells.
    """
    reader = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), delimiter=delimiter, skipinitialspace=True)
    rows: list[list[str]] = []
    for row in reader:
        if not row or (len(row) == 1 and row[0].startswith("|")):
            continue
        if names is None:
            names = row
        elif len(row) != len(names):
            raise ValueError(f"line {reader.line_num}: {len(row)} cells, expected {len(names)}")
        else:
            rows.append(row)
    if names is None or not rows:
        raise ValueError("no records")
    return {name: np.array(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def rows(table: Table, where: np.ndarray) -> Table:
    """The rows of a table at a boolean mask."""
    return {name: cells[where] for name, cells in table.items()}


def encode(train: Table, test: Table, label: str, classes: tuple[str, ...], numeric: Collection[str]) -> Source:
    """Features and labels of a table that is cut into a training and a test part, all but `label` being features.

    Numeric columns become (raw - mean) / std with the mean and standard deviation of the training part (a constant
    column has std 1), the others one-hot by the levels of the training part, in alphabetical order; a level that only
    the test part has is all zeros. The categorical columns of the training part are the source's `groups`. ValueError
    for an unknown label or a number that is none.
    """
    columns: list[Column] = []
    start = 0
    for name in train:
        if name == label:
            continue
        if name in numeric:
            raw = _numbers(name, train[name])
            columns.append(Column(name, start, mean=float(raw.mean()), std=float(raw.std()) or 1.0))
        else:
            columns.append(Column(name, start, levels=tuple(str(level) for level in np.unique(train[name]))))
        start = columns[-1].stop
    schema = Schema((start,), classes, tuple(columns))
    train_part, test_part = (
        Examples(_features(part, schema), _labels(part[label], classes), schema) for part in (train, test)
    )
    return Source(train_part, test_part, {column.name: train[column.name] for column in columns if column.levels})


def _features(table: Table, schema: Schema) -> np.ndarray:
    x = np.zeros((len(next(iter(table.values()))), *schema.shape), dtype=np.float32)
    for column in schema.columns:
        cells = table[column.name]
        if column.levels:
            hit, level = np.nonzero(cells[:, None] == np.array(column.levels))
            x[hit, column.start + level] = 1.0
        else:
            x[:, column.start] = (_numbers(column.name, cells) - column.mean) / column.std
    return x


def _labels(cells: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    row, label = np.nonzero(cells[:, None] == np.array(classes))
    if len(row) != len(cells):
        raise ValueError(
            f"labels {', '.join(sorted(set(cells.tolist()) - set(classes)))}: not among {', '.join(classes)}"
        )
    return label.astype(np.int64)


def _numbers(name: str, cells: np.ndarray) -> np.ndarray:
    try:
        numbers = cells.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name!r}: {str(cells[~np.isfinite(numbers)][0])!r} is not a finite number")
    return numbers
