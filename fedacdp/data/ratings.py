"""What data sets of ratings have in common: a table of who rated what, checked, cut into folds, and groups of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fedacdp.data.base import DataSet, Owners, Source
from fedacdp.keys import Key
from fedacdp.users import Column, Examples, Schema

FOLDS = 5
POWER = 0.1
LIKED = 4.0
"""A rating from here on is a hit (Vincent, Hecht, Sen 2019, WWW)."""
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
"""Lower end of an age group -> its name, as in MovieLens 1M."""


class RatingData(DataSet):
    """A data set whose users hold ratings of items. They are its own: each holds what it rated.

    fold: which fifth of all ratings is held out, 0 to 4, the same fifths for every experiment. column: which groups of
    users `members_from` names.
    """

    partition: Literal["natural"] = "natural"
    fold: int = Field(default=0, ge=0, lt=FOLDS)


@dataclass(frozen=True)
class Table:
    """n ratings: `user`, `item` (n,) count from 0, `rating` (n,) on `scale`. `people` are columns about the users, (U,)
    of text each; `genres` the genres of each item, or none."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    scale: tuple[str, ...]
    people: dict[str, np.ndarray]
    genres: list[tuple[str, ...]]

    @property
    def users(self) -> int:
        return int(self.user.max()) + 1


def twice(user: np.ndarray, item: np.ndarray) -> tuple[int, int] | None:
    """The places of the first rating that repeats an earlier one of the same user and item, earlier first."""
    both = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    order = np.argsort(both, kind="stable")
    again = np.flatnonzero(both[order][1:] == both[order][:-1])
    if not len(again):
        return None
    first = again[order[again + 1].argmin()]
    return int(order[first]), int(order[first + 1])


def source(table: Table, fold: int, name: str) -> Source:
    """The ratings in users' hands and those of `fold` that are held out. Folds are equal shares of all ratings in an
    order drawn by a fixed key that knows the data set's name. ValueError for a rating that is there twice or is not on
    the scale."""
    repeated = twice(table.user, table.item)
    if repeated is not None:
        at = repeated[1]
        raise ValueError(f"{name}: user {table.user[at]} rated item {table.item[at]} twice")
    levels = np.array([float(level) for level in table.scale])
    y = np.searchsorted(levels, table.rating).clip(max=len(levels) - 1).astype(np.int64)
    if (levels[y] != table.rating).any():
        raise ValueError(f"{name}: rating {table.rating[levels[y] != table.rating][0]:g} is not on the scale")
    schema = Schema((1,), table.scale, (Column("item", 0),), items=int(table.item.max()) + 1)
    order = Key(0).fold("folds", name).rng().permutation(len(y))
    test = np.zeros(len(y), bool)
    test[order[fold * len(y) // FOLDS : (fold + 1) * len(y) // FOLDS]] = True
    parts, owners = [], []
    for rows in (np.flatnonzero(~test), np.flatnonzero(test)):
        rows = rows[np.argsort(table.user[rows], kind="stable")]
        parts.append(Examples(table.item[rows].astype(np.float32)[:, None], y[rows], schema))
        owners.append(table.user[rows].astype(np.int32))
    groups = table.people | _habits(table)
    return Source(parts[0], parts[1], owners=Owners(table.users, owners[0], owners[1], groups))


def _habits(table: Table) -> dict[str, np.ndarray]:
    """`activity`: `power` for the tenth of users with most ratings, else `usual`. `favourite`: the genre of which a
    user likes more than others do, argmax of (L - E) / sqrt(E), L the user's liked items of that genre and E as many as
    if its share were everybody's. Both from all ratings, held out or not."""
    users = table.users
    counts = np.bincount(table.user, minlength=users)
    activity = np.full(users, "usual")
    activity[np.argsort(-counts, kind="stable")[: round(POWER * users)]] = "power"
    found = {"activity": activity}
    names = sorted({genre for genres in table.genres for genre in genres})
    if names:
        liked = table.rating >= LIKED
        user, item = table.user[liked], table.item[liked]
        has = np.array([[genre in genres for genre in names] for genres in table.genres])
        each = np.stack([np.bincount(user[own[item]], minlength=users) for own in has.T], axis=1).astype(float)
        expected = np.outer(np.bincount(user, minlength=users), each.sum(axis=0) / max(1, len(user)))
        lift = (each - expected) / np.sqrt(np.maximum(expected, 1e-9))
        found["favourite"] = np.array(names)[lift.argmax(axis=1)]
    return found
