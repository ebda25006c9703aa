"""Users and their records as padded blocks, and the schema that says what the numbers in a record mean."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_lock = threading.Lock()


@dataclass(frozen=True)
class Column:
    """A named column of a table and where it lies in a record's feature vector.

    A numeric column takes one position and is stored as (raw - mean) / std; a categorical column takes one position
    per level, one-hot.
    """

    name: str
    start: int
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def stop(self) -> int:
        return self.start + max(1, len(self.levels))


@dataclass(frozen=True)
class Schema:
    """What a record is: feature shape F, class names, and for tables the columns. Images are (channels, height, width)
    with values from `low` to `high`. Where there are `items`, a record is a rating: x is the number of the item and
    the classes are the levels of the scale, rising."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    low: float = 0.0
    high: float = 1.0
    items: int = 0

    @property
    def scale(self) -> np.ndarray:
        """The ratings that classes stand for, (classes,)."""
        return np.array([float(level) for level in self.classes])

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    def column(self, name: str) -> Column:
        """The column of that name; ValueError names those there are."""
        for column in self.columns:
            if column.name == name:
                return column
        raise ValueError(f"no column {name!r}; there are: {', '.join(c.name for c in self.columns) or 'none (images)'}")


@dataclass(frozen=True)
class Examples:
    """A flat set of records: x (n, *F) float32, y (n,) int64."""

    x: np.ndarray
    y: np.ndarray
    schema: Schema

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all features and labels, as they are in memory."""
        found = hashlib.sha256(np.ascontiguousarray(self.x).data)
        found.update(np.ascontiguousarray(self.y).data)
        return found.hexdigest()

    def changed(self, how: str, change: Callable[[np.ndarray, Schema], np.ndarray]) -> np.ndarray:
        """change(x, schema), read-only. The results of the last two `how` are kept, which must say all that `change`
        depends on: a collective's test set is the same in every round."""
        with _lock:
            found = self._changes.pop(how, None)
            if found is None:
                found = change(self.x, self.schema)
                found.flags.writeable = False
            self._changes[how] = found
            while len(self._changes) > 2:
                del self._changes[next(iter(self._changes))]
            return found

    @cached_property
    def _changes(self) -> dict[str, np.ndarray]:
        return {}


class Space(threading.local):
    """Memory for one block of records in each thread, used again for every block: fresh pages cost more than filling
    them. A block in it lasts until the thread asks for the next."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)

    def block(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of float32 with any values in it."""
        size = math.prod(shape)
        if len(self._held) < size:
            self._held = np.empty(size, np.float32)
        return self._held[:size].reshape(shape)


@dataclass(frozen=True)
class Users:
    """A block of U users, padded to n records: ids (U,), x (U, n, *F) float32, y (U, n) int64, mask (U, n) bool (True
    where a record exists), member (U,) bool (True for users in the collective)."""

    ids: np.ndarray
    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    member: np.ndarray
    schema: Schema

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: np.ndarray | slice) -> Users:
        """The users at `index` (positions, a boolean mask or a slice), as a new block."""
        return Users(self.ids[index], self.x[index], self.y[index], self.mask[index], self.member[index], self.schema)

    def replace(self, **changes: np.ndarray) -> Users:
        """The same block with some arrays replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """One user after another: id, its own x (m, *F) and y (m,) without padding."""
        for row, user in enumerate(self.ids):
            yield int(user), self.x[row][self.mask[row]], self.y[row][self.mask[row]]
