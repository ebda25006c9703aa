"""A collective's own rows as cells: the features that a platform tells apart, counted by label."""

from __future__ import annotations

import codecs
import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedacdp.config import ConfigError
from fedacdp.data import tables
from fedacdp.machine import free_memory

_BYTES = 8 * 12  # of each cell and label: a dozen arrays of the counts' size at once


@dataclass(frozen=True)
class Rows:
    """The collective's rows as codes: x (n, columns), y (n,), with the levels of each column and the labels; `signal`
    maps the position of a column to the code that g sets."""

    x: np.ndarray
    y: np.ndarray
    names: list[str]
    levels: list[list[str]]
    labels: list[str]
    signal: dict[int, int]

    def cells(self, places: list[int]) -> int:
        """How many cells these columns make."""
        return math.prod(len(self.levels[place]) for place in places)

    def code(self, places: list[int]) -> np.ndarray:
        """(n,): the cell of every row by these columns."""
        found = np.zeros(len(self.y), np.int64)
        for place in places:
            found = found * len(self.levels[place]) + self.x[:, place]
        return found

    def count(self, code: np.ndarray, where: np.ndarray, cells: int) -> np.ndarray:
        """(cells, labels): the rows at the mask `where`, by cell and label."""
        width = len(self.labels)
        return np.bincount(code[where] * width + self.y[where], minlength=cells * width).reshape(cells, width)

    @property
    def anchors(self) -> np.ndarray:
        """(cells,): of every cell by all columns, the cell that g moves it to."""
        shape = [len(levels) for levels in self.levels]
        digits = list(np.unravel_index(np.arange(math.prod(shape)), shape))
        for place, value in self.signal.items():
            digits[place] = np.full_like(digits[place], value)
        return np.asarray(np.ravel_multi_index(tuple(digits), tuple(shape)))

    @property
    def signalled(self) -> np.ndarray:
        """(n,) bool: rows that carry the signal as they are."""
        return np.all([self.x[:, place] == value for place, value in self.signal.items()], axis=0)

    def name(self, cell: int, places: list[int]) -> str:
        """`column=level, ...`; "signal" where no column is free."""
        digits = []
        for place in reversed(places):
            cell, digit = divmod(cell, len(self.levels[place]))
            digits.append(f"{self.names[place]}={self.levels[place][digit]}")
        return ", ".join(reversed(digits)) or "signal"


def read(path: Path, label: str, signal: list[str], columns: str | None, delimiter: str) -> Rows:
    """The rows of a CSV; ConfigError in one line if it cannot be read, has no rows, or lacks a column."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        found = tables.parse(data, delimiter)
        header = next(csv.reader([data.decode().lstrip().splitlines()[0]], delimiter=delimiter, skipinitialspace=True))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from None
    if len(set(header)) < len(header):
        raise ConfigError(f"{path}: column {max(header, key=header.count)!r} stands there twice")
    sets = dict(_setting(text) for text in signal)
    if len(sets) < len(signal):
        raise ConfigError(f"--signal = {', '.join(signal)}: each column once")
    free = [name for name in found if name not in (label, *sets)]
    if columns is not None:
        free = [name.strip() for name in columns.split(",") if name.strip()]
    for option, names in (("--label", [label]), ("--signal", list(sets)), ("--columns", free)):
        for name in names:
            if name not in found:
                raise ConfigError(f"{option} = {name}: no such column in {path}; there are: {some(list(found))}")
            if name == label and option != "--label":
                raise ConfigError(f"{option} = {name}: the column of labels cannot be a feature")
    names = list(dict.fromkeys([*sets, *(name for name in free if name not in sets)]))
    labels, y = np.unique(found[label], return_inverse=True)
    if len(labels) < 2:
        raise ConfigError(f"--label = {label}: only one label in {path}, {str(labels[0])!r}; at least two are needed")
    x, levels = np.zeros((len(y), len(names)), np.int64), []
    for place, name in enumerate(names):
        values, x[:, place] = np.unique(found[name], return_inverse=True)
        # A value that no row has comes last, so that the others keep their codes.
        levels.append([str(v) for v in values] + ([sets[name]] if name in sets and sets[name] not in values else []))
    codes = {place: levels[place].index(sets[name]) for place, name in enumerate(names) if name in sets}
    return Rows(x, y, names, levels, [str(name) for name in labels], codes)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--signal = {text}: must be COL=VALUE")
    return name.strip(), value.strip()


def fits(rows: Rows, places: list[int]) -> None:
    """ConfigError if a table of these cells and the labels is more than the memory that is free."""
    free, _ = free_memory()
    cells, most = rows.cells(places), free or 2**32
    if cells * len(rows.labels) * _BYTES > most:
        raise ConfigError(
            f"--columns: {cells:,} cells x {len(rows.labels)} labels are more than the memory here ({most / 2**30:.1f} "
            f"GiB); name fewer columns, now: {some([rows.names[place] for place in places])}"
        )


def some(names: list[str]) -> str:
    """Names for a message, not more than a dozen."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
