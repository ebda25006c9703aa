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
from fedacdp.users import Examples, Schema, Space, Users


@dataclass(frozen=True)
class Owners:
    """Who holds which record of a data set that has users of its own, 0 to count - 1: `train` (n_train,), `test`
    (n_test,) ascending, int32; `groups` are categorical columns of the users, (count,) of text each."""

    count: int
    train: np.ndarray
    test: np.ndarray
    groups: dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set in memory: `train` is cut among users, `test` stays with the evaluator. `groups` are raw categorical
    columns of the training part, (n_train,) of text each, for partitions by natural groups. `owners` are the users
    that the data set has itself."""

    train: Examples
    test: Examples
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    owners: Owners | None = None


class DataSet(Part):
    """A data set and how it is cut among users.

    partition: `iid` equal shares at random; `dirichlet` label proportions of each user from Dirichlet(concentration)
    (Hsu et al. 2019, arXiv 1909.06335); `sizes` log-normal numbers of records with log-standard-deviation `spread`;
    `by_column` each user's records come from one value of the categorical column `column`; `resampled` each user draws
    `records` records from the training part, uniformly with replacement; `natural` the users that the data set has
    itself, each with its own records, whose groups are the values of `column` if given.

    `resampled` simulates a population of any size, also more users than records: users are independent draws from the
    empirical distribution of the training part (the bootstrap of Efron 1979, Ann. Statist. 7(1)). A record may then be
    held by several users, or by one user twice. A guarantee per user means what it always means; the guarantee per
    example of `local_dpsgd` is about one user's copy of a record, not about the person behind all copies of it. Results
    are about that distribution: many users do not make up for few distinct records.
    """

    users: PositiveInt
    partition: Literal["iid", "dirichlet", "sizes", "by_column", "resampled", "natural"] = "iid"
    concentration: float | None = Field(default=None, gt=0)
    spread: float | None = Field(default=None, ge=0)
    records: PositiveInt | None = None
    column: str | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for knob, way in {"concentration": "dirichlet", "spread": "sizes", "records": "resampled"}.items():
            if (getattr(self, knob) is not None) != (self.partition == way):
                raise ValueError(f'{knob}: must be given if, and only if, partition = "{way}"')
        if self.column is not None and self.partition not in ("by_column", "natural"):
            raise ValueError('column: belongs to partition = "by_column"')
        return self

    @property
    def uncut(self) -> Self:
        """The same data set with the defaults of all that its records do not depend on: how it is cut."""
        cut = ("partition", "concentration", "spread", "records", "column")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in cut} | {"users": 1})

    def check(self, records: int) -> None:
        """ValueError if a training part of `records` records cannot be cut among so many users."""
        if self.users > records and self.partition != "resampled":
            raise ValueError(
                f"data.users = {self.users}: {self.name} has only {records} training records; "
                f'partition = "resampled" allows more users'
            )

    def records_each(self, records: int) -> float:
        """Records per user, on average, where the training part has `records`."""
        return records / self.users if self.records is None else float(self.records)

    def of_seed(self, seed: int) -> DataSet:
        """The data set that a run with this seed uses: itself, unless its records are drawn anew for each seed."""
        return self

    @abstractmethod
    def load(self, folder: Path) -> Source:
        """Read the records, from files in `folder` where the data set has any (ValueError if missing or damaged)."""

    def fetch(self, folder: Path) -> str:
        """Download the files into `folder`, checked; returns a line that says what is there."""
        return f"{self.name} needs no download"


@dataclass(frozen=True)
class Federation:
    """Records of a source, cut among users: user u holds rows `order[offsets[u]:offsets[u + 1]]` of `train`, and its
    natural group is `names[code[u]]`. A million users take a few bytes each: `order` and `offsets` are int32 where
    that is enough, `code` is int16 or int32. `test_owner` (n_test,), ascending, says whose the test records are, where
    the data set has users of its own."""

    train: Examples
    test: Examples
    order: np.ndarray
    offsets: np.ndarray
    code: np.ndarray
    names: np.ndarray
    test_owner: np.ndarray | None = None

    @property
    def schema(self) -> Schema:
        return self.train.schema

    @property
    def sizes(self) -> np.ndarray:
        """Number of records of each user, (U,)."""
        return np.diff(self.offsets)

    @property
    def group(self) -> np.ndarray:
        """(U,) text: the natural group of each user, `label=<its most frequent class>` where there is none."""
        return self.names[self.code]

    def label_shares(self, who: np.ndarray) -> dict[str, float]:
        """The mean over the users in `who` (N,) bool of the share of each class among their own records, by class;
        empty if nobody is."""
        classes, ids = self.schema.classes, np.flatnonzero(who)
        found = np.zeros(len(classes))
        for first in range(0, len(ids), 2**14):
            some = ids[first : first + 2**14]
            sizes = self.offsets[some + 1] - self.offsets[some]
            ends = np.cumsum(sizes, dtype=np.int64)
            place = np.arange(ends[-1]) + np.repeat(self.offsets[some] - (ends - sizes), sizes)
            labels = self.train.y[self.order[place]]
            found += np.bincount(labels, np.repeat(1 / sizes, sizes), minlength=len(classes))
        return dict(zip(classes, (found / len(ids)).tolist(), strict=True)) if len(ids) else {}

    def users(self, ids: np.ndarray, member: np.ndarray, space: Space | None = None) -> Users:
        """The block of these users, a copy, in `space` if given; `member` (U,) bool belongs to `ids`. Padded to the
        largest of them."""
        first = self.offsets[ids].astype(np.int64)
        sizes = self.offsets[ids + 1] - first
        column = np.arange(int(sizes.max(initial=0)))
        index = first[:, None] + column[None, :]
        mask = column[None, :] < sizes[:, None]
        ragged = not mask.all()
        if ragged:
            index[~mask] = 0
        rows = self.order[index]
        x = (space or Space()).block((*rows.shape, *self.schema.shape))
        # With "raise", numpy would gather into a buffer of its own first; the rows are those of the partition.
        self.train.x.take(rows, axis=0, out=x, mode="clip")
        y = self.train.y.take(rows)
        if ragged:
            x[~mask], y[~mask] = 0, 0
        return Users(ids, x, y, mask, member, self.schema)


def federate(dataset: DataSet, source: Source, key: Key) -> Federation:
    """Cut a source among users, by the data set's fields and the key only. ValueError if it cannot be."""
    dataset.check(len(source.train))
    owners = source.owners.test if source.owners is not None else None
    return Federation(source.train, source.test, *partition(dataset, source, key), owners)
