"""Cutting records: among users (`partition`), and into a training and a test part (`held_out`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedacdp.keys import Key

if TYPE_CHECKING:
    from fedacdp.data.base import DataSet, Source

_TEST_SHARE = 0.2
_FLOOR = 1e-12
_DRAWS = 2**18  # numbers in hand at once where users are done block by block


class Shares(NamedTuple):
    """Who holds which training record: user u holds `order[offsets[u]:offsets[u + 1]]`, its group is
    `names[code[u]]`."""

    order: np.ndarray
    offsets: np.ndarray
    code: np.ndarray
    names: np.ndarray


def partition(dataset: DataSet, source: Source, key: Key) -> Shares:
    """Cut the training records among U users.

    Every record has one holder and every user at least one record; only in `resampled` each of a user's records is any
    record, whoever else holds it. A group is the value of the column for `by_column`, else `label=<the user's most
    frequent class>`. The cut depends on the data set's fields and the key only. ValueError if the column of `by_column`
    is missing, unknown, or has more values than there are users. In `natural` a user has the records that it has, which
    may be none; ValueError if the data set has not that many users of its own.
    """
    labels, users = source.train.y, dataset.users
    key = key.fold("partition")
    if dataset.partition == "by_column":
        return _by_column(dataset, source, key)
    names = np.array([f"label={name}" for name in source.train.schema.classes])
    if dataset.partition == "natural":
        return _natural(dataset, source, names)
    if dataset.partition == "resampled":
        assert dataset.records is not None
        order = _drawn(users, dataset.records, len(labels), key.fold("resampled"))
        sizes = np.full(users, dataset.records)
    else:
        order = key.fold("order").rng().permutation(len(labels))
        sizes = _equal(len(labels), users)
    if dataset.partition == "dirichlet":
        assert dataset.concentration is not None
        counts = _label_counts(labels, sizes, dataset.concentration, key.fold("proportions").rng())
        order = _deal(labels, counts, order)
    elif dataset.partition == "sizes":
        assert dataset.spread is not None
        logs = dataset.spread * key.fold("sizes").rng().standard_normal(users)
        sizes = _shares(np.exp(logs - logs.max()), len(labels))
    offsets = _offsets(sizes)
    return Shares(_narrow(order), offsets, _most_frequent(labels, order, offsets, len(names)), names)


def held_out(labels: np.ndarray, name: str) -> np.ndarray:
    """Which records are the test part of a data set that comes without one: (n,) bool.

    A fifth of each class, drawn by a fixed key that knows the data set's name but not the experiment's seed, so that
    every experiment is tested on the same records.
    """
    rng = Key(0).fold("held out", name).rng()
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test[rows[: round(_TEST_SHARE * len(rows))]] = True
    return test


def _by_column(dataset: DataSet, source: Source, key: Key) -> Shares:
    """Users in proportion to each value's records, who share these equally."""
    order = key.fold("order").rng().permutation(len(source.train))
    names, record_value = np.unique(_column(dataset, source), return_inverse=True)
    if dataset.users < len(names):
        raise ValueError(
            f"data.users = {dataset.users}: too few for data.column = {dataset.column!r}, which has {len(names)} groups"
        )
    counts = np.bincount(record_value)
    users_of = _shares(counts, dataset.users)
    sizes = np.concatenate([_equal(int(c), int(m)) for c, m in zip(counts, users_of, strict=True)])
    order = order[np.argsort(record_value[order], kind="stable")]
    code = np.repeat(np.arange(len(names), dtype=np.int32), users_of)
    return Shares(_narrow(order), _offsets(sizes), code, names)


def _natural(dataset: DataSet, source: Source, names: np.ndarray) -> Shares:
    """The data set's own users, in the order of their records."""
    owners = source.owners
    if owners is None:
        raise ValueError(f"data.partition = 'natural': {dataset.name} has no users of its own")
    if dataset.users != owners.count:
        raise ValueError(
            f"data.users = {dataset.users}: {dataset.name} has {owners.count} users of its own; it takes all of them"
        )
    order = np.argsort(owners.train, kind="stable")
    offsets = _offsets(np.bincount(owners.train, minlength=owners.count))
    if dataset.column is None:
        code = _most_frequent(source.train.y, order, offsets, len(names))
    elif dataset.column in owners.groups:
        names, code = np.unique(owners.groups[dataset.column], return_inverse=True)
    else:
        raise ValueError(
            f"data.column = {dataset.column!r}: no column of {dataset.name}'s users; there are: "
            f"{', '.join(owners.groups)}"
        )
    return Shares(_narrow(order), offsets, code.astype(np.int32), names)


def _drawn(users: int, records: int, total: int, key: Key) -> np.ndarray:
    """`records` of `total` records for each user, with replacement, (users * records,). A user's draws depend on the
    key and its id only: the first users of a larger population are the smaller one, and so are their first records."""
    drawn = np.empty((users, records), dtype=_kind(total))
    step = max(1, _DRAWS // records)
    for first in range(0, users, step):
        ids = np.arange(first, min(first + step, users))
        # 53 random bits times n, rounded down: no record's chance is off by more than n / 2^53 of itself.
        drawn[ids[0] : ids[-1] + 1] = key.uniforms(ids, records) * total
    return drawn.ravel()


def _column(dataset: DataSet, source: Source) -> np.ndarray:
    known = ", ".join(source.groups) or "none"
    if dataset.column is None:
        raise ValueError(f"data.column: partition 'by_column' needs one; {dataset.name} has: {known}")
    if dataset.column not in source.groups:
        raise ValueError(
            f"data.column = {dataset.column!r}: {dataset.name} has no such column to cut by; it has: {known}"
        )
    return source.groups[dataset.column]


def _equal(total: int, parts: int) -> np.ndarray:
    """Whole numbers (parts,) that add up to total and differ by at most 1."""
    return np.diff(np.arange(parts + 1, dtype=np.int64) * total // parts)


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers (len(weights),) of at least 1 that add up to `total` >= len(weights), else as the weights.

    A part whose proportional share is below 1 gets 1, and the others share the rest; each number is its share rounded
    up or down.
    """
    weights, parts = weights.astype(float), len(weights)
    rising = np.sort(weights)
    at_least = np.cumsum(rising[::-1])[::-1]
    rest = total - np.arange(parts)
    raised = int(np.argmax(rising * rest >= at_least))
    above_one = np.maximum(weights * rest[raised] / at_least[raised] - 1.0, 0.0)
    # Rounding the running sum, not each share, keeps the total; it never falls, so no part gets less than 1.
    ends = np.floor(np.cumsum(above_one) + 0.5).astype(np.int64)
    ends[-1] = total - parts
    return 1 + np.diff(np.minimum(ends, total - parts), prepend=0)


def _label_counts(labels: np.ndarray, sizes: np.ndarray, concentration: float, rng: np.random.Generator) -> np.ndarray:
    """How many records of each class each user holds, (U, C) whole numbers with row sums `sizes`.

    User u's label proportions are q_u ~ Dirichlet(concentration * p), p the shares of the classes among all records,
    and its labels are drawn from q_u without replacement (Hsu, Qi and Brown 2019, arXiv 1909.06335, section 3). Papers
    that write Dirichlet(a, ..., a) over C balanced classes have a = concentration / C.

    All users draw at once; where they ask for more records of a class than there are left, those who get one are drawn
    at random, and the others draw again among the classes that are left. So no user is served before another, and there
    are at most C passes.
    """
    left, want = np.bincount(labels), sizes.copy()
    held = np.zeros((len(sizes), len(left)), dtype=np.int64)
    present = np.flatnonzero(left)
    prior = left[present] / len(labels)
    wish = np.zeros(held.shape)
    # The floor lets a user draw from the classes that are left even where its own proportions there are 0.
    wish[:, present] = rng.dirichlet(concentration * prior, size=len(sizes)) + _FLOOR * prior
    while want.any():
        rows, open_ = np.flatnonzero(want), np.flatnonzero(left)
        weights = wish[np.ix_(rows, open_)]
        drawn = rng.multinomial(want[rows], weights / weights.sum(axis=1, keepdims=True))
        for column in np.flatnonzero(drawn.sum(axis=0) > left[open_]):
            supply = int(left[open_[column]])
            drawn[:, column] = rng.multivariate_hypergeometric(drawn[:, column], supply, method="marginals")
        held[np.ix_(rows, open_)] += drawn
        want[rows] -= drawn.sum(axis=1)
        left[open_] -= drawn.sum(axis=0)
    return held


def _deal(labels: np.ndarray, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The records in `order`, regrouped by user, so that user u gets counts[u, c] records of class c."""
    by_label = order[np.argsort(labels[order], kind="stable")]
    user = np.empty(len(labels), dtype=np.int64)
    user[by_label] = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return order[np.argsort(user[order], kind="stable")]


def _most_frequent(labels: np.ndarray, order: np.ndarray, offsets: np.ndarray, classes: int) -> np.ndarray:
    """The most frequent of each user's labels, (U,) int16 or int32; the first of those that tie."""
    found = np.empty(len(offsets) - 1, dtype=np.int16 if classes < 2**15 else np.int32)
    step = max(1, _DRAWS // classes)
    for first in range(0, len(found), step):
        ends = offsets[first : first + step + 1]
        user = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        counts = np.bincount(user * classes + labels[order[ends[0] : ends[-1]]], minlength=(len(ends) - 1) * classes)
        found[first : first + step] = counts.reshape(-1, classes).argmax(axis=1)
    return found


def _offsets(sizes: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(sizes) + 1, dtype=_kind(int(sizes.sum())))
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _kind(limit: int) -> type[np.signedinteger]:
    return np.int32 if limit < 2**31 else np.int64


def _narrow(order: np.ndarray) -> np.ndarray:
    return order.astype(_kind(len(order)), copy=False)
