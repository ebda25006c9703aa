"""Data sets as sources of records, and the federation: who holds which records."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from fedacdp.data.partition import partition
from fedacdp.keys import Key
from fedacdp.parts import Part
from fedacdp.users import Examples, Schema, Users


@dataclass(frozen=True)
class Source:
    """A data set in memory: `train` is cut among users, `test` stays with the evaluator. `groups` are raw categorical
    columns of the training part, (n_train,) of text each, for partitions by natural groups."""

    train: Examples
    test: Examples
    groups: dict[str, np.ndarray] = field(default_factory=dict)


class DataSet(Part):
    """A data set and how it is cut among users.

    partition: `iid` equal shares at random; `dirichlet` label proportions of each user from Dirichlet(concentration)
    (Hsu et al. 2019, arXiv 1909.06335); `sizes` log-normal numbers of records with log-standard-deviation `spread`;
    `by_column` each user's records come from one value of the categorical column `column`.
    """

    users: PositiveInt
    partition: Literal["iid", "dirichlet", "sizes", "by_column"] = "iid"
    concentration: float | None = Field(default=None, gt=0)
    spread: float | None = Field(default=None, ge=0)
    column: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for knob, way in {"concentration": "dirichlet", "spread": "sizes"}.items():
            if (getattr(self, knob) is not None) != (self.partition == way):
                raise ValueError(f'{knob}: must be given if, and only if, partition = "{way}"')
        if self.column is not None and self.partition != "by_column":
            raise ValueError('column: belongs to partition = "by_column"')
        return self

    @abstractmethod
    def load(self, folder: Path) -> Source:
        """Read the records, from files in `folder` where the data set has any (ValueError if missing or damaged)."""

    def fetch(self, folder: Path) -> str:
        """Download the files into `folder`, checked; returns a line that says what is there."""
        return f"{self.name} needs no download"


@dataclass(frozen=True)
class Federation:
    """Records of a source, cut among users: user u holds rows `order[offsets[u]:offsets[u + 1]]` of `train`.
    `group` (U,) text: the natural group of each user, `label=<its most frequent class>` where there is none."""

    train: Examples
    test: Examples
    order: np.ndarray
    offsets: np.ndarray
    group: np.ndarray

    @property
    def schema(self) -> Schema:
        return self.train.schema

    @property
    def sizes(self) -> np.ndarray:
        """Number of records of each user, (U,)."""
        return np.diff(self.offsets)

    def users(self, ids: np.ndarray, member: np.ndarray) -> Users:
        """The block of these users; `member` (U,) bool belongs to `ids`. Padded to the largest of them."""
        sizes = self.sizes[ids]
        column = np.arange(int(sizes.max(initial=0)))
        mask = column[None, :] < sizes[:, None]
        index = self.order[np.where(mask, self.offsets[ids][:, None] + column[None, :], 0)]
        x, y = self.train.x[index], self.train.y[index]
        x[~mask], y[~mask] = 0, 0
        return Users(ids, x, y, mask, member, self.schema)


def federate(dataset: DataSet, source: Source, key: Key) -> Federation:
    """Cut a source among users, by the data set's fields and the key only. ValueError if it cannot be."""
    records = len(source.train)
    if dataset.users > records:
        raise ValueError(f"data.users = {dataset.users}: {dataset.name} has only {records} training records")
    order, offsets, group = partition(dataset, source, key)
    return Federation(source.train, source.test, order, offsets, group)
